// The SQL box: what to ask and of what, running it, cancelling it, its history, downloads. Not here: the answer's looks.

import { download, get, post } from "./api.js";
import { el, field, mark, put } from "./dom.js";
import { ResultView } from "./result.js";

const HISTORY_KEY = "headrace.sql.history";
const DRAFT_KEY = "headrace.sql.draft";
const HISTORY_MAX = 50;
const HISTORY_CHARACTERS_MAX = 10_000;

/** @typedef {{name: string, kind: string, tables: string[], example: string, note?: string | null}} Target */
/** @typedef {import("./api.js").ApiError} ApiError */

export class SqlView {
  constructor() {
    this.title = "SQL";
    /** @type {Target[]} */
    this.targets = [];
    /** @type {string | null} the id of the query under way */
    this.running = null;
    this.timer = 0;
    this.result = new ResultView();
    this.target = el("select", { id: "sql-target", on: { change: () => this.choose() } });
    this.tables = el("div", { class: "chips", role: "group", "aria-label": "Tables" });
    this.text = el("textarea", {
      id: "sql-text", rows: 5, spellcheck: "false", autocapitalize: "off", autocomplete: "off", "data-search": true,
      placeholder: "SELECT …", "aria-describedby": "sql-keys",
      on: { keydown: (/** @type {KeyboardEvent} */ event) => this.keys(event), input: () => store(DRAFT_KEY, this.text.value.slice(0, HISTORY_CHARACTERS_MAX)) },
    });
    this.runButton = el("button", { type: "button", class: "primary", on: { click: () => this.run() } }, "Run");
    this.cancelButton = el("button", { type: "button", disabled: true, on: { click: () => this.cancel() } }, "Cancel");
    this.status = el("span", { class: "about", role: "status" });
    this.past = el("select", { id: "sql-history", on: { change: () => this.recall() } });
    this.error = el("pre", { class: "sql-error", role: "alert", hidden: true });
    this.views = ["Table", "Chart"].map((name, at) => el("button", {
      type: "button", class: "small", "aria-pressed": String(at === 0), on: { click: () => this.as(at === 1) },
    }, name));
    this.saves = ["csv", "parquet"].map((form) => el("button", {
      type: "button", class: "small", on: { click: () => this.save(form) },
    }, form === "csv" ? "Download CSV" : "Download Parquet"));
    this.root = el("div", { class: "view" },
      el("div", { class: "view-head" }, el("h1", {}, "SQL"), el("span", { class: "about" }, "Live, read only, over what is committed")),
      el("section", { class: "panel", "aria-label": "Query" },
        el("div", { class: "tools" },
          field("Ask", this.target), this.tables, field("Earlier", this.past)),
        el("label", { class: "unseen", for: "sql-text" }, "SQL"), this.text,
        el("div", { class: "tools" }, this.runButton, this.cancelButton, this.status,
          el("span", { class: "about end", id: "sql-keys" }, "Ctrl+Enter runs, Escape cancels"))),
      el("section", { class: "panel", "aria-label": "Answer", "aria-live": "off" },
        el("div", { class: "panel-head" }, el("h2", {}, "Answer"),
          el("span", { class: "buttons", role: "group", "aria-label": "Show as" }, this.views),
          el("span", { class: "buttons end" }, this.saves)),
        this.error, this.result.root));
    this.text.value = load(DRAFT_KEY) ?? "";
    this.showHistory();
  }

  async enter() {
    try {
      this.targets = await get("/api/sql/targets");
    } catch (error) {
      put(this.status, /** @type {Error} */ (error).message);
      return;
    }
    const now = this.target.value;
    this.target.replaceChildren(...this.targets.map((each) => el("option", { value: each.name }, `${each.name} (${each.kind})`)));
    if (this.targets.some((each) => each.name === now)) this.target.value = now;
    this.runButton.disabled = this.targets.length === 0;
    if (this.targets.length === 0) put(this.status, "No sink of this run can be asked: DuckDB, DuckLake and Parquet can.");
    this.choose();
  }

  choose() {
    const target = this.targets.find((each) => each.name === this.target.value);
    if (target === undefined) return;
    this.tables.replaceChildren(...target.tables.slice(0, 40).map((name) => el("button", {
      type: "button", class: "small mono", title: `Insert ${name}`, on: { click: () => this.insert(name) },
    }, name)));
    if (target.note) put(this.status, target.note);
    const examples = this.targets.map((each) => each.example);
    if (this.text.value.trim() === "" || examples.includes(this.text.value)) this.text.value = target.example;
  }

  /** @param {string} name */
  insert(name) {
    this.text.setRangeText(name, this.text.selectionStart, this.text.selectionEnd, "end");
    this.text.focus();
  }

  /** @param {KeyboardEvent} event */
  keys(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      void this.run();
    } else if (event.key === "Escape" && this.running !== null) {
      event.preventDefault();
      void this.cancel();
    }
  }

  /** The view's Escape, wherever the focus is. */
  escape() {
    if (this.running !== null) void this.cancel();
  }

  async run() {
    const sql = this.text.value.trim();
    if (sql === "" || this.running !== null) return;
    const id = identifier();
    this.begin(id);
    try {
      const answer = await post("/api/sql", { id, target: this.target.value, sql });
      if (this.running !== id) return;
      this.result.show(answer);
      put(this.status, "");
      this.remember(sql);
    } catch (error) {
      if (this.running === id) this.fail(/** @type {ApiError} */ (error));
    } finally {
      if (this.running === id) this.end();
    }
  }

  /** @param {string} id */
  begin(id) {
    this.running = id;
    this.error.hidden = true;
    this.runButton.disabled = true;
    this.cancelButton.disabled = false;
    const began = performance.now();
    const tick = () => put(this.status, `Running, ${((performance.now() - began) / 1000).toFixed(1)} s`);
    tick();
    this.timer = setInterval(tick, 200);
  }

  end() {
    clearInterval(this.timer);
    this.running = null;
    this.runButton.disabled = false;
    this.cancelButton.disabled = true;
  }

  async cancel() {
    const id = this.running;
    if (id === null) return;
    put(this.status, "Cancelling …");
    clearInterval(this.timer);
    try {
      await post(`/api/sql/${encodeURIComponent(id)}/cancel`, {});
    } catch (error) {
      if (this.running === id) put(this.status, /** @type {Error} */ (error).message);
    }
  }

  /** @param {ApiError} error */
  fail(error) {
    this.result.show(null);
    put(this.status, "");
    const place = this.point(error.message);
    put(this.error, [error.message, place, error.hint].filter((each) => each).join("\n\n"));
    this.error.hidden = false;
  }

  /**
   * Select the place that a message names at its end, "(line 3, column 6)"; that line, with a mark below it.
   * @param {string} message
   * @returns {string | null}
   */
  point(message) {
    const found = /\(line (\d+), column (\d+)\)\s*$/.exec(message);
    if (found === null) return null;
    const [line, column] = [Number(found[1]) - 1, Number(found[2]) - 1];
    // What was sent had no white space before it.
    const before = this.text.value.length - this.text.value.trimStart().length;
    const lines = this.text.value.slice(before).split("\n");
    if (line >= lines.length || column > lines[line].length) return null;
    const at = before + lines.slice(0, line).reduce((sum, each) => sum + each.length + 1, 0) + column;
    const word = /^\w+/.exec(this.text.value.slice(at))?.[0].length ?? 1;
    this.text.setSelectionRange(at, at + word);
    const from = Math.max(0, column - 60);
    return `${lines[line].slice(from, column + 60)}\n${" ".repeat(column - from)}^`;
  }

  /** @param {boolean} asChart */
  as(asChart) {
    this.views.forEach((button, at) => mark(button, "aria-pressed", String((at === 1) === asChart)));
    this.result.as(asChart);
  }

  /** @param {string} form */
  async save(form) {
    const sql = this.text.value.trim();
    if (sql === "" || this.running !== null) return;
    const id = identifier();
    this.begin(id);
    try {
      const stamp = new Date().toISOString().slice(0, 19).replaceAll(":", "");
      await download("/api/sql/export", { id, target: this.target.value, sql, format: form }, `headrace-${stamp}.${form}`);
      put(this.status, "Downloaded");
      this.remember(sql);
    } catch (error) {
      this.fail(/** @type {ApiError} */ (error));
    } finally {
      this.end();
    }
  }

  /** @param {string} sql */
  remember(sql) {
    if (sql.length > HISTORY_CHARACTERS_MAX) return;
    const kept = [sql, ...this.history().filter((each) => each !== sql)].slice(0, HISTORY_MAX);
    store(HISTORY_KEY, JSON.stringify(kept));
    this.showHistory();
  }

  /** @returns {string[]} */
  history() {
    try {
      const kept = JSON.parse(load(HISTORY_KEY) ?? "[]");
      return Array.isArray(kept) ? kept.filter((each) => typeof each === "string") : [];
    } catch {
      return [];
    }
  }

  showHistory() {
    const kept = this.history();
    this.past.replaceChildren(el("option", { value: "" }, kept.length === 0 ? "none yet" : "choose …"),
      ...kept.map((sql, at) => el("option", { value: at }, sql.replace(/\s+/g, " ").slice(0, 80))));
    this.past.disabled = kept.length === 0;
  }

  recall() {
    const sql = this.past.value === "" ? undefined : this.history()[Number(this.past.value)];
    if (sql !== undefined) this.text.value = sql;
    this.past.value = "";
    this.text.focus();
  }
}

/** A UUID of version 4, also where the page is not served securely and randomUUID is missing. */
function identifier() {
  const data = crypto.getRandomValues(new Uint8Array(16));
  data[6] = (data[6] & 0x0f) | 0x40;
  data[8] = (data[8] & 0x3f) | 0x80;
  const hex = [...data].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

/** @param {string} key */
function load(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

/** @param {string} key @param {string} text */
function store(key, text) {
  try {
    localStorage.setItem(key, text);
  } catch {
    // Storage that is full or switched off: the history is a comfort, no more.
  }
}
