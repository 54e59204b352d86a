// What functions print, as it comes: search, follow, and REPORT lines in a form that can be read.

import { get } from "./api.js";
import { el, field, mark, put } from "./dom.js";
import { clock, plural } from "./format.js";

const LINES_MAX = 1_000;
const SEARCH_DELAY_MS = 250;

/** @typedef {{sequence: number, at: number, pipeline: string | null, function: string, stream: string,
 *   origin: string, text: string, truncated: boolean}} Line */

export class LogsView {
  /**
   * @param {import("./model.js").Model} model
   * @param {string} pipeline the chosen one; "" for all
   */
  constructor(model, pipeline) {
    this.model = model;
    this.title = "Logs";
    this.wanted = pipeline;
    this.last = 0;
    this.asked = 0;
    /** @type {Line[]} */
    this.coming = [];
    this.drawing = 0;
    this.timer = 0;
    this.scrollTop = 0;
    this.pipeline = el("select", { id: "log-pipeline", on: { change: () => this.load() } });
    this.search = el("input", {
      id: "log-search", type: "search", placeholder: "text in the line", "data-search": true, on: { input: () => this.later() },
    });
    this.follow = el("input", { id: "log-follow", type: "checkbox", checked: true, on: { change: () => this.toEnd() } });
    this.platform = el("input", { id: "log-platform", type: "checkbox", checked: true, on: { change: () => this.sieve() } });
    this.status = el("span", { class: "about", role: "status" });
    this.list = el("ol", { class: "log-lines" });
    this.box = el("div", { class: "log-box", tabindex: 0, role: "log", "aria-live": "off", "aria-label": "Lines of functions" }, this.list);
    this.box.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.root = el("div", { class: "view" },
      el("div", { class: "view-head" }, el("h1", {}, "Logs"), this.status),
      el("div", { class: "tools" },
        field("Pipeline", this.pipeline), field("Search", this.search),
        el("span", { class: "check" }, this.follow, el("label", { for: "log-follow" }, "Follow")),
        el("span", { class: "check" }, this.platform, el("label", { for: "log-platform" }, "START, END and REPORT"))),
      el("section", { class: "panel", "aria-label": "Lines" }, this.box));
  }

  async enter() {
    const names = this.model.status?.pipelines.map((each) => each.name) ?? [];
    const now = this.pipeline.value || this.wanted;
    this.pipeline.replaceChildren(el("option", { value: "" }, "all"), ...names.map((name) => el("option", { value: name }, name)));
    this.pipeline.value = names.includes(now) ? now : "";
    await this.load();
  }

  /** Add what was printed while the stream was away. */
  async back() {
    try {
      const lines = await get("/api/logs", { pipeline: this.pipeline.value, search: this.search.value, limit: LINES_MAX });
      this.append(lines.reverse());
    } catch {
      // The stream has gone again, and will come back again.
    }
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load(), SEARCH_DELAY_MS);
  }

  async load() {
    const asked = ++this.asked;
    try {
      const lines = await get("/api/logs", { pipeline: this.pipeline.value, search: this.search.value, limit: LINES_MAX });
      if (asked !== this.asked) return;
      this.coming = [];
      this.last = 0;
      this.list.replaceChildren();
      this.append([...lines].reverse());
      if (lines.length === 0) put(this.status, this.search.value === "" ? "Nothing has been printed yet" : "No line has it");
    } catch (error) {
      if (asked === this.asked) put(this.status, /** @type {Error} */ (error).message);
    }
  }

  /** @param {Line} line one that has just been printed; those of one frame are drawn together */
  log(line) {
    const words = this.search.value.toLowerCase();
    if (this.pipeline.value !== "" && line.pipeline !== this.pipeline.value) return;
    if (words !== "" && !line.text.toLowerCase().includes(words)) return;
    this.coming.push(line);
    if (this.coming.length > LINES_MAX) this.coming.shift();
    this.drawing ||= requestAnimationFrame(() => {
      this.drawing = 0;
      this.append(this.coming.splice(0));
    });
  }

  /** @param {Line[]} lines oldest first */
  append(lines) {
    const fresh = lines.filter((line) => line.sequence > this.last).slice(-LINES_MAX);
    if (fresh.length === 0) return;
    this.last = fresh[fresh.length - 1].sequence;
    const following = this.follow.checked;
    this.list.append(...fresh.map(item));
    let over = this.list.children.length - LINES_MAX;
    // Lines that go above the reader's would move what is read, so they stay while nobody follows, up to a bound.
    if (!following) over -= LINES_MAX;
    for (; over > 0; over--) this.list.firstElementChild?.remove();
    this.sieve();
    put(this.status, `${plural(this.list.children.length, "line")}${this.list.children.length >= LINES_MAX ? ", the latest" : ""}`);
    if (following) this.toEnd();
  }

  sieve() {
    mark(this.list, "data-platform", this.platform.checked ? "yes" : "no");
  }

  toEnd() {
    if (this.follow.checked) this.box.scrollTop = this.box.scrollHeight;
  }

  /** Whoever scrolls up reads, and is not taken away; whoever comes back to the end follows again. */
  scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.box;
    if (scrollHeight - scrollTop - clientHeight < 24) this.follow.checked = true;
    else if (scrollTop < this.scrollTop) this.follow.checked = false;
    this.scrollTop = scrollTop;
  }
}

/** @param {Line} line */
function item(line) {
  const report = line.origin === "platform" ? readReport(line.text) : null;
  const content = report === null
    ? el("span", { class: "log-text" }, line.truncated ? `${line.text}…` : line.text)
    : el("span", { class: "log-text report", title: line.text }, el("strong", {}, "REPORT"),
      report.flatMap(([name, text]) => [" ", el("span", { class: "fact" }, `${name} `, el("b", {}, text))]));
  return el("li", { data: { origin: line.origin } },
    el("time", { datetime: new Date(line.at * 1000).toISOString() }, clock(line.at)),
    el("span", { class: "log-function", title: line.stream }, line.function), content);
}

/**
 * The figures of a REPORT line, in their order; null for another line.
 * @param {string} text
 * @returns {string[][] | null}
 */
export function readReport(text) {
  if (!text.startsWith("REPORT RequestId:")) return null;
  const names = { "Duration": "took", "Billed Duration": "billed", "Memory Size": "of", "Max Memory Used": "memory", "Init Duration": "init", "Status": "status", "Error Type": "error", "RequestId": "request" };
  const found = new Map();
  for (const part of text.replace(/^REPORT /, "").split("\t")) {
    const at = part.indexOf(":");
    if (at > 0) found.set(part.slice(0, at).trim(), part.slice(at + 1).trim());
  }
  const order = ["Status", "Error Type", "Duration", "Billed Duration", "Init Duration", "Max Memory Used", "Memory Size", "RequestId"];
  return order.filter((name) => found.has(name)).map((name) => [names[/** @type {keyof names} */ (name)], found.get(name)]);
}
