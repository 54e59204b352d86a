// The line below the bar: what /healthz says, in one line of constant height, with all reasons when it is opened.

import { health } from "./api.js";
import { el, mark, put } from "./dom.js";
import { plural } from "./format.js";

const EVERY_MS = 5_000;

/** @typedef {{pipeline: string | null, message: string, hint: string | null}} Reason */

export class Health {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    this.shown = "";
    this.text = el("span", { class: "health-text", role: "status" }, "Health is not known yet");
    this.list = el("ul", { class: "health-list", id: "health-reasons", hidden: true });
    this.more = el("button", {
      type: "button", class: "quiet small", hidden: true, "aria-expanded": "false", "aria-controls": "health-reasons",
      on: { click: () => this.fold(!this.list.hidden) },
    }, "Reasons");
    root.append(el("span", { class: "dot", "aria-hidden": "true" }), this.text, this.more, this.list);
    this.ask();
    setInterval(() => this.ask(), EVERY_MS);
  }

  /** @param {boolean} hidden */
  fold(hidden) {
    this.list.hidden = hidden;
    mark(this.more, "aria-expanded", String(!hidden));
  }

  async ask() {
    if (document.hidden) return;
    try {
      this.show(await health());
    } catch {
      this.unknown("The engine does not answer");
    }
  }

  /** @param {string} why */
  unknown(why) {
    mark(this.root, "data-state", "unknown");
    put(this.text, why);
    this.more.hidden = true;
    this.fold(true);
  }

  /** @param {{ok?: boolean, reasons?: Reason[], reasons_count?: number, error?: string}} answer */
  show(answer) {
    if (answer.ok === undefined) {
      this.unknown(answer.error ?? "Health is not known yet");
      return;
    }
    const reasons = answer.reasons ?? [];
    const more = (answer.reasons_count ?? reasons.length) - 1;
    mark(this.root, "data-state", answer.ok ? "good" : "bad");
    const first = answer.ok ? "Every shard makes progress" : sentence(reasons[0]);
    put(this.text, more > 0 ? `${first} (and ${plural(more, "more reason")})` : first);
    this.more.hidden = answer.ok;
    if (answer.ok) this.fold(true);
    const key = JSON.stringify(reasons);
    if (key === this.shown) return;
    this.shown = key;
    this.list.replaceChildren(...reasons.map((reason) => el("li", {},
      reason.pipeline ? el("a", { href: `#/pipeline/${encodeURIComponent(reason.pipeline)}` }, reason.message) : reason.message,
      reason.hint ? el("div", { class: "about" }, reason.hint) : null)));
  }
}

/** @param {Reason | undefined} reason */
function sentence(reason) {
  if (reason === undefined) return "Not healthy";
  return reason.pipeline && !reason.message.includes(reason.pipeline) ? `${reason.pipeline}: ${reason.message}` : reason.message;
}
