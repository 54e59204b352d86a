// The answer to a query: a table of at most a thousand rows, or a chart of two of its columns. Not here: asking.

import { el, field, put } from "./dom.js";
import { exact, plural } from "./format.js";
import { Figure } from "./plot.js";

const NUMERIC = /^(U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|DECIMAL|NUMERIC|DOUBLE|FLOAT|REAL)\b/i;
const TEMPORAL = /^(TIMESTAMP|DATE)\b/i;

/** @typedef {{id: string, columns: {name: string, type: string}[], rows: (string | null)[][], truncated: boolean,
 *   cut?: number, seconds: number}} Answer */

export class ResultView {
  constructor() {
    /** @type {Answer | null} */
    this.answer = null;
    this.x = this.select("chart-x");
    this.y = this.select("chart-y");
    this.kind = this.select("chart-kind");
    this.kind.append(el("option", { value: "line" }, "line"), el("option", { value: "bar" }, "bars"));
    this.plot = el("div", { class: "plot tall", role: "img", "aria-label": "Chart of the answer" });
    this.figure = new Figure(this.plot);
    this.note = el("p", { class: "about" });
    this.table = el("div", { class: "scroll answer", tabindex: 0, role: "region", "aria-label": "Answer" });
    this.chart = el("div", { hidden: true },
      el("div", { class: "tools" }, field("x", this.x), field("y", this.y), field("as", this.kind)),
      this.plot);
    this.root = el("div", {}, this.note, this.table, this.chart);
  }

  /** @param {string} id */
  select(id) {
    return el("select", { id, on: { change: () => this.draw() } });
  }

  /** @param {boolean} asChart */
  as(asChart) {
    this.chart.hidden = !asChart;
    this.table.hidden = asChart;
    if (asChart) void this.draw();
  }

  /** @param {Answer | null} answer null clears it */
  show(answer) {
    this.answer = answer;
    this.table.replaceChildren();
    put(this.note, "");
    if (answer === null) return;
    const numeric = answer.columns.map((column) => NUMERIC.test(column.type));
    const head = el("thead", {}, el("tr", {}, answer.columns.map((column, at) =>
      el("th", { scope: "col", class: numeric[at] ? "n" : null }, column.name, el("small", {}, column.type.toLowerCase())))));
    const body = el("tbody", {}, answer.rows.map((row) => el("tr", {}, row.map((cell, at) => shown(cell, numeric[at])))));
    this.table.append(el("table", { class: "lines rows" }, head, body));
    if (answer.rows.length === 0) this.table.append(el("p", { class: "empty" }, "No rows."));
    put(this.note, told(answer));
    this.choices(answer, numeric);
    if (!this.chart.hidden) void this.draw();
  }

  /** @param {Answer} answer @param {boolean[]} numeric */
  choices(answer, numeric) {
    const temporal = answer.columns.findIndex((column) => TEMPORAL.test(column.type));
    const words = numeric.findIndex((each) => !each);
    const x = temporal >= 0 ? temporal : words >= 0 ? words : 0;
    const y = numeric.findIndex((each, at) => each && at !== x);
    for (const [select, chosen, only] of /** @type {const} */ ([[this.x, x, false], [this.y, y, true]])) {
      const options = answer.columns.map((column, at) => ({ column, at })).filter(({ at }) => !only || numeric[at]);
      select.replaceChildren(...options.map(({ column, at }) => el("option", { value: at }, column.name)));
      select.value = String(chosen);
    }
    this.kind.value = temporal === x ? "line" : "bar";
  }

  async draw() {
    const { answer } = this;
    if (answer === null || this.y.value === "") {
      this.plot.setAttribute("aria-label", "No chart: the answer has no column of numbers");
      if (!this.figure.drawn) this.plot.replaceChildren(el("p", { class: "empty" }, "A chart needs a column of numbers."));
      return;
    }
    const [x, y] = [Number(this.x.value), Number(this.y.value)];
    const { type, name } = answer.columns[x];
    const axis = TEMPORAL.test(type) ? "date" : NUMERIC.test(type) ? "linear" : "category";
    const trace = {
      name: answer.columns[y].name,
      x: answer.rows.map((row) => (axis === "linear" && row[x] !== null ? Number(row[x]) : (row[x] ?? "NULL"))),
      y: answer.rows.map((row) => (row[y] === null ? null : Number(row[y]))),
    };
    this.plot.setAttribute("aria-label", `${answer.columns[y].name} by ${name}, ${plural(answer.rows.length, "point")}; the same figures are in the table`);
    try {
      await this.figure.draw([trace], { x: axis, suffix: "", bars: this.kind.value === "bar" });
    } catch (error) {
      this.plot.replaceChildren(el("p", { class: "empty" }, /** @type {Error} */ (error).message));
    }
  }
}

/** @param {string | null} cell @param {boolean} numeric */
function shown(cell, numeric) {
  if (cell === null) return el("td", { class: numeric ? "n null" : "null" }, "null");
  return el("td", { class: numeric ? "n" : null, title: cell.length > 60 ? cell.slice(0, 1000) : null }, cell);
}

/** @param {Answer} answer */
function told(answer) {
  const rows = answer.truncated ? `The first ${exact(answer.rows.length)} rows; a download has all of them` : plural(answer.rows.length, "row");
  const cut = answer.cut ? `; ${plural(answer.cut, "long cell")} cut` : "";
  return `${rows}${cut} · ${answer.seconds < 10 ? answer.seconds.toFixed(3) : answer.seconds.toFixed(1)} s`;
}
