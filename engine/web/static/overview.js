// The first view: the whole process in a strip of figures, each pipeline in a row, and two charts over all of them.

import { ChartGroup } from "./charts.js";
import { el, keyed, mark, put } from "./dom.js";
import { bytes, clock, count, exact, milliseconds, rate, seconds, UNKNOWN, usd } from "./format.js";
import { iteratorAge, offsetLag, quantile } from "./model.js";

/** @typedef {import("./model.js").Model} Model */
/** @typedef {import("./model.js").Pipeline} Pipeline */

const COLUMNS = [
  ["records/s", "Records polled from the topic, per second"],
  ["lag", "Records in the topic that are not committed yet"],
  ["iterator age", "How old the last record read is while more wait behind it; the oldest shard's"],
  ["failed", "Records that failed for good in this run"],
  ["errors", "Invocations that failed in this run, retried ones included"],
  ["p50 / p99", "Duration of an invocation in the last minute: at most so long, for half of them and for 99%"],
  ["billed", "Milliseconds that AWS Lambda would have billed in this run"],
  ["on AWS", "What AWS Lambda would have charged for this run"],
];

export class Overview {
  /** @param {Model} model */
  constructor(model) {
    this.model = model;
    this.title = "Overview";
    /** @type {Map<string, {root: Element, show: (p: Pipeline) => void}>} */
    this.lines = new Map();
    this.figures = new Figures([
      ["records/s", "Polled from all topics, per second"],
      ["lag", "Records not committed yet, of all pipelines"],
      ["iterator age", "The oldest of all shards"],
      ["failed", "Records that failed for good in this run"],
      ["cores", "Processor cores that the engine's process uses"],
      ["memory", "Resident memory of the engine's process"],
      ["buffer", "Bytes of records in flight, of the most that memory_bytes_max allows"],
      ["on AWS", "What AWS Lambda would have charged for this run"],
    ]);
    this.body = el("tbody");
    this.about = el("p", { class: "about" });
    this.charts = new ChartGroup([
      { key: "records_per_second", label: "Records per second", unit: "/s" },
      { key: "offset_lag", label: "Lag in records", unit: "" },
    ]);
    this.root = el("div", { class: "view" },
      el("div", { class: "view-head" }, el("h1", {}, "Overview"), this.about),
      this.figures.root,
      el("section", { class: "panel", "aria-labelledby": "pipelines-title" },
        el("h2", { id: "pipelines-title" }, "Pipelines"),
        el("div", { class: "scroll" }, el("table", { class: "lines pipelines" },
          el("caption", { class: "unseen" }, "Pipelines with their rates, lag, failures and cost"),
          el("thead", {}, el("tr", {},
            el("th", { scope: "col" }, "Pipeline"),
            el("th", { scope: "col" }, "State"),
            COLUMNS.map(([label, title]) => el("th", { scope: "col", class: "n", title }, label)))),
          this.body))),
      this.charts.root);
  }

  update() {
    const { status } = this.model;
    if (status === null) return;
    const names = status.pipelines.map((each) => each.name);
    keyed(this.body, this.lines, names, line);
    for (const pipeline of status.pipelines) {
      const shown = /** @type {ReturnType<typeof line>} */ (this.lines.get(pipeline.name));
      shown.show(pipeline, this.model);
    }
    const sum = (/** @type {(p: Pipeline) => number | null} */ of) =>
      status.pipelines.reduce((/** @type {number | null} */ all, each) => {
        const n = of(each);
        return n === null || all === null ? null : all + n;
      }, 0);
    this.figures.show([
      rate(sum((each) => this.model.rate(each.name, "records"))),
      count(sum(offsetLag)),
      seconds(status.pipelines.reduce((oldest, each) => Math.max(oldest, iteratorAge(each)), 0)),
      count(sum((each) => each.counts.failed)),
      this.model.cores()?.toFixed(2) ?? UNKNOWN,
      bytes(status.resident_bytes),
      share(status.budget_bytes, status.budget_bytes_max),
      usd(sum((each) => (each.function.billed_ms > 0 ? each.function.estimated_usd : 0))),
    ]);
    put(this.about, `headrace ${status.version} · process ${status.pid} · since ${clock(status.started_at)}`);
  }

  /** @param {any} history */
  chart(history) {
    const names = this.model.status?.pipelines.map((each) => each.name) ?? Object.keys(history.moments);
    this.charts.update(names.map((name) => ({ name, moments: history.moments[name] ?? [] })), (name) => name);
  }
}

/** Figures in a row, each with its name. */
export class Figures {
  /** @param {string[][]} names each with what it means */
  constructor(names) {
    this.values = names.map(() => el("dd"));
    this.root = el("dl", { class: "figures" },
      names.map(([name, title], at) => el("div", { title }, el("dt", {}, name), this.values[at])));
  }

  /** @param {string[]} texts */
  show(texts) {
    texts.forEach((text, at) => put(this.values[at], text));
  }
}

/** @param {number} part @param {number} whole */
function share(part, whole) {
  return whole > 0 ? `${Math.round((part / whole) * 100)}%` : UNKNOWN;
}

/** @param {string} name */
function line(name) {
  const link = el("a", { href: `#/pipeline/${encodeURIComponent(name)}` }, name);
  const flow = [el("span"), el("span"), el("span")];
  const state = el("td", { class: "state", data: { label: "State" } });
  const cells = COLUMNS.map(([label, title]) => el("td", { class: "n", title, data: { label } }));
  const arrow = () => el("span", { class: "arrow", "aria-label": "to" }, "→");
  const root = el("tr", {},
    el("th", { scope: "row" }, link, el("div", { class: "flow" }, flow[0], arrow(), flow[1], arrow(), flow[2])),
    state, cells);
  return {
    root,
    /** @param {Pipeline} pipeline @param {Model} [model] */
    show(pipeline, model) {
      const fn = pipeline.function;
      const durations = model?.durations(pipeline) ?? fn.duration;
      const lag = offsetLag(pipeline);
      const age = iteratorAge(pipeline);
      const owns = pipeline.shards.length > 0;
      put(flow[0], pipeline.topic);
      put(flow[1], fn.kind === null ? "as it is" : `${fn.name} (${fn.kind})`);
      put(flow[2], pipeline.target === null ? pipeline.sink : `${pipeline.sink} ${pipeline.target}`);
      put(state, pipeline.state);
      mark(state, "data-state", pipeline.error === null ? pipeline.state : "stopped");
      mark(state, "title", pipeline.error);
      const known = quantile(durations, 0.5);
      const texts = [
        rate(model?.rate(name, "records")), owns ? count(lag) : UNKNOWN, owns ? seconds(age) : UNKNOWN, count(pipeline.counts.failed), count(fn.errors),
        known === null ? UNKNOWN : `${seconds(known)} / ${seconds(quantile(durations, 0.99))}`,
        fn.billed_ms > 0 ? milliseconds(fn.billed_ms) : UNKNOWN,
        fn.billed_ms > 0 ? usd(fn.estimated_usd) : UNKNOWN,
      ];
      texts.forEach((text, at) => put(cells[at], text));
      mark(cells[1], "title", owns ? `${exact(lag)} records` : "No partition is with this process");
      mark(cells[3], "data-tone", pipeline.counts.failed > 0 ? "bad" : null);
      mark(cells[4], "data-tone", fn.errors > 0 ? "warn" : null);
    },
  };
}
