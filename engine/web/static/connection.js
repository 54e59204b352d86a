// The word in the bar that says whether figures are live, and the mark on the page when they are old.

import { mark, put } from "./dom.js";
import { seconds } from "./format.js";

/** Older figures are marked: statuses come about once a second. */
const STALE_MS = 3_000;

export class Connection {
  /** @param {HTMLElement} word */
  constructor(word) {
    this.word = word;
    this.state = "connecting";
    this.heardMs = 0;
    this.nextMs = 0;
    setInterval(() => this.show(), 1000);
  }

  heard() {
    this.heardMs = performance.now();
    this.show();
  }

  /** @param {string} state @param {number | null} nextTryMs */
  to(state, nextTryMs) {
    this.nextMs = nextTryMs === null ? 0 : performance.now() + nextTryMs;
    if (state === this.state) return;
    // A try that follows a failed one is no news until it succeeds.
    if (!(this.state === "waiting" && state === "connecting")) this.state = state;
    this.show();
  }

  show() {
    const age = performance.now() - this.heardMs;
    const stale = this.heardMs > 0 && age > STALE_MS && this.state !== "paused";
    mark(document.body, "data-stale", stale ? "yes" : null);
    mark(this.word, "data-state", stale && this.state === "live" ? "waiting" : this.state);
    const texts = {
      live: stale ? "silent" : "live",
      connecting: "connecting",
      waiting: "reconnecting",
      paused: "paused",
      locked: "login needed",
    };
    put(this.word, texts[/** @type {keyof texts} */ (this.state)] ?? this.state);
    mark(this.word, "title", stale ? `The figures are ${seconds(Math.round(age / 1000))} old` : null);
  }
}
