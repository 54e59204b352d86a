// The latest failed records: a list, newest first, one of them in full beside it, and sending it again.

import { get, post } from "./api.js";
import { copyButton, el, field, mark, put } from "./dom.js";
import { clock, exact, moment, plural } from "./format.js";
import { payloadBox } from "./payload.js";

/** Of the list, so many are kept; the sink has all of them. */
const KEPT_MAX = 500;
const SHOWN_STEP = 100;

/**
 * @typedef {import("./payload.js").Payload} Payload
 * @typedef {{sequence: number, pipeline: string, topic: string, partition: number, offset: number,
 *   timestamp: number, failed_at: number, key: Payload | null, value: Payload | null,
 *   headers: {key: string, value: Payload | null}[], reason: string, error_type: string, attempts: number,
 *   request_id: string | null, replayable: boolean, replay_refusal: string | null}} Failure
 */

export class FailuresView {
  /**
   * @param {import("./model.js").Model} model
   * @param {string} pipeline the chosen one; "" for all
   */
  constructor(model, pipeline) {
    this.model = model;
    this.title = "Failed records";
    /** @type {Failure[]} */
    this.all = [];
    /** @type {Failure[]} */
    this.waiting = [];
    /** @type {Map<string, string>} what became of records that were sent again */
    this.replayed = new Map();
    this.shownMax = SHOWN_STEP;
    /** @type {Failure | null} */
    this.open = null;

    this.pipeline = el("select", { id: "failure-pipeline", on: { change: () => this.load() } });
    this.wanted = pipeline;
    this.filter = el("input", {
      id: "failure-filter", type: "search", placeholder: "cause, type, key, value, 3:1042", "data-search": true,
      on: { input: () => this.list() },
    });
    this.fresh = el("button", { type: "button", class: "small fresh", data: { some: "no" }, on: { click: () => this.take() } }, "0 new");
    this.status = el("span", { class: "about", role: "status" });
    this.body = el("tbody", { on: { keydown: (/** @type {KeyboardEvent} */ event) => this.keys(event) } });
    this.more = el("button", { type: "button", hidden: true, on: { click: () => this.further() } }, "Show more");
    this.detail = el("section", { class: "panel detail", "aria-label": "The record", tabindex: -1 });
    this.root = el("div", { class: "view" },
      el("div", { class: "view-head" }, el("h1", {}, "Failed records"), this.status),
      el("div", { class: "tools" },
        field("Pipeline", this.pipeline), field("Filter", this.filter), this.fresh),
      el("div", { class: "split" },
        el("section", { class: "panel list", "aria-label": "List of failed records" },
          el("div", { class: "scroll" }, el("table", { class: "lines failures" },
            el("caption", { class: "unseen" }, "Failed records, newest first; the arrow keys go from one to the next"),
            el("thead", {}, el("tr", {}, ["Failed at", "Record", "Type", "Cause"].map((name) => el("th", { scope: "col" }, name)),
              el("th", { scope: "col", class: "n" }, "Attempts"))),
            this.body)),
          this.more),
        this.detail));
    this.show(null);
  }

  /** Called when the view is put on the page, and when the engine has restarted. */
  async enter() {
    this.names();
    await this.load();
  }

  names() {
    const names = this.model.status?.pipelines.map((each) => each.name) ?? [];
    const now = this.pipeline.value || this.wanted;
    this.pipeline.replaceChildren(el("option", { value: "" }, "all"), ...names.map((name) => el("option", { value: name }, name)));
    this.pipeline.value = names.includes(now) ? now : "";
  }

  async load() {
    try {
      this.all = await get("/api/failures", { pipeline: this.pipeline.value, limit: KEPT_MAX });
      this.waiting = [];
      this.list();
    } catch (error) {
      put(this.status, /** @type {Error} */ (error).message);
    }
  }

  /** Take up what has failed while the stream was away. */
  async back() {
    try {
      const all = await get("/api/failures", { pipeline: this.pipeline.value, limit: KEPT_MAX });
      for (const failure of all.reverse()) this.failed(failure);
    } catch {
      // The stream has gone again, and will come back again.
    }
  }

  /** @param {Failure} failure one that has just happened; it waits, for the list must not move under the reader */
  failed(failure) {
    if (this.pipeline.value !== "" && failure.pipeline !== this.pipeline.value) return;
    if ([this.all[0], this.waiting[0]].some((each) => each !== undefined && each.sequence >= failure.sequence)) return;
    this.waiting.unshift(failure);
    this.waiting.length = Math.min(this.waiting.length, KEPT_MAX);
    if (this.all.length === 0) this.take();
    else this.showFresh();
  }

  showFresh() {
    mark(this.fresh, "data-some", this.waiting.length > 0 ? "yes" : "no");
    put(this.fresh, `Show ${this.waiting.length} new`);
  }

  take() {
    this.all = [...this.waiting, ...this.all].slice(0, KEPT_MAX);
    this.waiting = [];
    this.list();
  }

  further() {
    const last = this.body.children.length;
    this.shownMax += SHOWN_STEP;
    this.list();
    /** @type {HTMLElement | null} */ (this.body.children[last]?.querySelector("button"))?.focus();
  }

  list() {
    this.showFresh();
    const words = this.filter.value.trim().toLowerCase();
    const found = words === "" ? this.all : this.all.filter((each) => haystack(each).includes(words));
    const focused = this.body.contains(document.activeElement) ? identity(this.open) : null;
    this.body.replaceChildren(...found.slice(0, this.shownMax).map((each) => this.row(each)));
    if (focused !== null) this.button(focused)?.focus();
    this.more.hidden = found.length <= this.shownMax;
    const some = words === "" ? "" : ` of ${this.all.length}`;
    put(this.status, found.length === 0 ? (words === "" ? "None in this run" : "None matches") : `${plural(found.length, "record")}${some}, newest first`);
    if (this.open === null && found.length > 0 && matchMedia("(min-width: 900px)").matches) this.show(found[0]);
  }

  /** @param {Failure} failure */
  row(failure) {
    const id = identity(failure);
    const button = el("button", {
      type: "button", class: "link mono", data: { id }, "aria-expanded": String(id === identity(this.open)),
      on: { click: () => this.choose(failure) },
    }, `${failure.pipeline} ${failure.partition}:${failure.offset}`);
    return el("tr", { data: { open: id === identity(this.open) ? "yes" : "no" } },
      el("td", { data: { label: "Failed at" } }, clock(failure.failed_at)),
      el("td", { data: { label: "Record" } }, button),
      el("td", { data: { label: "Type" }, class: "cut" }, failure.error_type),
      el("td", { data: { label: "Cause" }, class: "cut", title: failure.reason.slice(0, 400) }, failure.reason),
      el("td", { data: { label: "Attempts" }, class: "n" }, exact(failure.attempts)));
  }

  /** @param {string | null} id @returns {HTMLButtonElement | undefined} */
  button(id) {
    const all = /** @type {NodeListOf<HTMLButtonElement>} */ (this.body.querySelectorAll("button[data-id]"));
    return [...all].find((each) => each.dataset.id === id);
  }

  /** @param {Failure} failure */
  choose(failure) {
    this.show(failure);
    if (!matchMedia("(min-width: 900px)").matches) this.detail.scrollIntoView({ block: "start" });
  }

  /** @param {KeyboardEvent} event */
  keys(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const buttons = /** @type {HTMLButtonElement[]} */ ([...this.body.querySelectorAll("button[data-id]")]);
    const next = buttons[buttons.indexOf(/** @type {any} */ (event.target)) + step];
    next?.focus();
    next?.click();
  }

  /** @param {Failure | null} failure */
  show(failure) {
    const before = this.button(identity(this.open));
    this.open = failure;
    const now = this.button(identity(failure));
    for (const [button, open] of /** @type {const} */ ([[before, false], [now, true]])) {
      if (button === undefined) continue;
      button.setAttribute("aria-expanded", String(open));
      /** @type {HTMLElement} */ (button.closest("tr")).dataset.open = open ? "yes" : "no";
    }
    this.detail.replaceChildren(...(failure === null ? [el("p", { class: "empty" }, "Choose a record to see all of it.")] : this.parts(failure)));
  }

  /** @param {Failure} failure */
  parts(failure) {
    const facts = [
      ["Pipeline", failure.pipeline], ["Topic", failure.topic],
      ["Partition and offset", `${failure.partition}:${failure.offset}`],
      ["Record's time", moment(failure.timestamp)], ["Failed at", moment(failure.failed_at * 1000)],
      ["Attempts", exact(failure.attempts)], ["Request id", failure.request_id ?? "–"],
    ];
    return [
      el("h2", { class: "mono" }, failure.error_type || "Failed"),
      el("pre", { class: "reason" }, failure.reason),
      this.again(failure),
      el("dl", { class: "facts" }, facts.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", { class: "mono" }, text)))),
      payloadBox("value", failure.value),
      payloadBox("key", failure.key),
      ...failure.headers.map((header) => payloadBox(`header ${header.key}`, header.value)),
    ];
  }

  /** The button that sends the record again, with what became of it. @param {Failure} failure */
  again(failure) {
    const id = /** @type {string} */ (identity(failure));
    const result = el("p", { class: "replay-result", role: "status" },
      this.replayed.get(id) ?? (failure.replayable ? "" : `Cannot be replayed: ${failure.replay_refusal}`));
    const button = el("button", { type: "button", class: "primary", disabled: !failure.replayable }, "Replay");
    button.addEventListener("click", async () => {
      button.disabled = true;
      put(result, "Sending …");
      result.dataset.kind = "info";
      const { pipeline, partition, offset } = failure;
      try {
        const outcome = await post("/api/failures/replay", { pipeline, partition, offset });
        put(result, outcome.before
          ? `An earlier replay has sent it to ${outcome.topic}; it was not sent again.`
          : `Sent to ${outcome.topic}, which the pipeline reads beside its topic.`);
        this.remember(id, result.textContent);
      } catch (error) {
        const { message, hint } = /** @type {import("./api.js").ApiError} */ (error);
        put(result, hint ? `${message} ${hint}` : message);
        result.dataset.kind = "bad";
      }
      button.disabled = false;
    });
    return el("div", { class: "replay" }, button, copyButton("record", () => JSON.stringify(failure, null, 2)), result);
  }

  /** @param {string} id @param {string} text */
  remember(id, text) {
    this.replayed.set(id, text);
    if (this.replayed.size > KEPT_MAX) this.replayed.delete(/** @type {string} */ (this.replayed.keys().next().value));
  }
}

/** @param {Failure | null} failure */
function identity(failure) {
  return failure === null ? null : `${failure.pipeline} ${failure.partition}:${failure.offset} ${failure.sequence}`;
}

/** @param {Failure} failure what the filter looks into */
function haystack(failure) {
  return [failure.pipeline, `${failure.partition}:${failure.offset}`, failure.error_type, failure.reason,
    failure.key?.text ?? "", failure.value?.text ?? ""].join("\n").toLowerCase();
}
