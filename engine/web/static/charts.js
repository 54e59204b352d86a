// Charts over the last hour, side by side, with the same figures as a table for those who do not see charts.

import { el, mark, put } from "./dom.js";
import { clock, rate, seconds, count, UNKNOWN } from "./format.js";
import { Figure } from "./plot.js";

const SERIES_MAX = 6;
const TABLE_ROWS_MAX = 60;

/**
 * @typedef {{key: string, label: string, unit: string, lines?: {key: string, name: string}[]}} Spec
 *   `key` is a field of a moment; with `lines` several fields of one source share the chart
 * @typedef {{name: string, moments: any[]}} Source
 * @typedef {{name: string, x: Date[], y: (number | null)[]}} Series
 */

export class ChartGroup {
  /** @param {Spec[]} specs */
  constructor(specs) {
    this.specs = specs;
    /** @type {Source[]} */
    this.sources = [];
    this.asTable = false;
    this.boxes = specs.map((spec) => new Chart(spec));
    this.toggle = el("button", {
      type: "button", class: "small", "aria-pressed": "false", on: { click: () => this.flip() },
    }, "As a table");
    this.grid = el("div", { class: "charts" }, this.boxes.map((box) => box.root));
    this.table = el("div", { class: "scroll chart-table", hidden: true, tabindex: 0, role: "region", "aria-label": "Figures of the charts" });
    this.root = el("section", { class: "panel", "aria-label": "The last hour" },
      el("div", { class: "panel-head" }, el("h2", {}, "The last hour"), this.toggle), this.grid, this.table);
  }

  flip() {
    this.asTable = !this.asTable;
    mark(this.toggle, "aria-pressed", String(this.asTable));
    this.table.hidden = !this.asTable;
    this.grid.hidden = this.asTable;
    void this.update(this.sources);
  }

  /**
   * Draw, one chart after the other with the browser's turn in between, so that none delays an event for long.
   * @param {Source[]} sources
   */
  async update(sources) {
    this.sources = sources;
    if (this.asTable) return this.tabulate();
    for (const box of this.boxes) {
      await box.update(sources);
      await new Promise((resolve) => setTimeout(resolve, 0));
    }
  }

  tabulate() {
    const columns = this.boxes.flatMap((box) => box.series(this.sources).map((series) => ({ box, series })));
    const at = this.sources[0]?.moments.map((moment) => moment.at) ?? [];
    const step = Math.max(1, Math.ceil(at.length / TABLE_ROWS_MAX));
    const picked = at.map((_, index) => index).filter((index) => (at.length - 1 - index) % step === 0).reverse();
    this.table.replaceChildren(el("table", { class: "lines" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Time"),
        columns.map(({ box, series }) => el("th", { scope: "col", class: "n" }, columnName(box.spec, series.name))))),
      el("tbody", {}, picked.map((index) => el("tr", {},
        el("th", { scope: "row" }, clock(at[index])),
        columns.map(({ box, series }) => el("td", { class: "n" }, figure(box.spec, series.y[series.y.length - at.length + index]))))))));
  }
}

class Chart {
  /** @param {Spec} spec */
  constructor(spec) {
    this.spec = spec;
    this.plot = el("div", { class: "plot", role: "img", "aria-label": `${spec.label}: no figures yet` }, el("p", { class: "empty" }, "No figures yet"));
    this.now = el("span", { class: "chart-now" });
    this.root = el("figure", { class: "chart" }, el("figcaption", {}, el("span", {}, spec.label), this.now), this.plot);
    this.figure = new Figure(this.plot);
  }

  /** @param {Source[]} sources @returns {Series[]} */
  series(sources) {
    const { key, lines } = this.spec;
    const wanted = lines === undefined
      ? sources.map(({ name, moments }) => ({ name, moments, key }))
      : sources.slice(0, 1).flatMap(({ moments }) => lines.map((line) => ({ name: line.name, moments, key: line.key })));
    const all = wanted.map((each) => ({
      name: each.name,
      x: each.moments.map((moment) => new Date(moment.at * 1000)),
      y: each.moments.map((moment) => plain(moment[each.key])),
    }));
    if (all.length <= SERIES_MAX) return all;
    const highest = new Map(all.map((each) => [each, each.y.reduce((/** @type {number} */ most, n) => Math.max(most, n ?? 0), 0)]));
    const kept = new Set([...all].sort((a, b) => Number(highest.get(b)) - Number(highest.get(a))).slice(0, SERIES_MAX));
    return all.filter((each) => kept.has(each));
  }

  /** @param {Source[]} sources */
  async update(sources) {
    const series = this.series(sources);
    const left = (this.spec.lines === undefined ? sources.length : series.length) - series.length;
    const summary = series.map((each) => describe(this.spec, each)).join("; ");
    mark(this.plot, "aria-label", `${this.spec.label}: ${summary || "no figures yet"}`);
    put(this.now, left > 0 ? `the ${SERIES_MAX} highest of ${sources.length}` : latest(this.spec, series));
    if (!series.some((each) => each.x.length > 0)) return;
    try {
      await this.figure.draw(series.map((each) => ({ ...each, connectgaps: false })), { x: "date", suffix: this.spec.unit === "s" ? " s" : "", bars: false });
    } catch (error) {
      if (!this.figure.drawn) this.plot.replaceChildren(el("p", { class: "empty" }, /** @type {Error} */ (error).message));
    }
  }
}

/** What is no number (beyond the last class, none) leaves a gap. @param {any} n */
function plain(n) {
  return typeof n === "number" && Number.isFinite(n) ? n : null;
}

/** @param {Spec} spec @param {number | null | undefined} n */
function figure(spec, n) {
  if (n === null || n === undefined) return UNKNOWN;
  if (spec.unit === "s") return seconds(n);
  return spec.unit === "/s" ? rate(n) : count(n);
}

/** @param {Spec} spec @param {Series} series */
function describe(spec, series) {
  const known = series.y.filter((n) => n !== null);
  if (known.length === 0) return `${series.name} unknown`;
  const least = known.reduce((a, b) => Math.min(a, b));
  const most = known.reduce((a, b) => Math.max(a, b));
  return `${series.name} now ${figure(spec, series.y.at(-1))}, between ${figure(spec, least)} and ${figure(spec, most)}`;
}

/** @param {Spec} spec @param {Series[]} series */
function latest(spec, series) {
  return series.length > 3 ? "" : series.map((each) => figure(spec, each.y.at(-1))).join(" / ");
}

/** @param {Spec} spec @param {string} name */
function columnName(spec, name) {
  return spec.lines !== undefined && spec.lines.length === 1 ? spec.label : `${spec.label}, ${name}`;
}
