// One pipeline: its figures, its shards, distributions of batches and durations, and its charts.

import { Bars } from "./bars.js";
import { ChartGroup } from "./charts.js";
import { el, field, mark, put } from "./dom.js";
import { count, exact, milliseconds, rate, seconds, UNKNOWN, usd } from "./format.js";
import { Grid } from "./grid.js";
import { iteratorAge, offsetLag, quantile } from "./model.js";
import { Figures } from "./overview.js";

/** @typedef {import("./model.js").Model} Model */
/** @typedef {import("./model.js").Shard} Shard */

/** @type {Record<string, (shard: Shard) => boolean>} */
const FILTERS = {
  "all shards": () => true,
  "with lag": (shard) => shard.offset_lag > 0,
  "with failures": (shard) => shard.counts.failed > 0 || shard.error !== null,
  "not running": (shard) => shard.state !== "running",
};

export class PipelineView {
  /**
   * @param {Model} model
   * @param {string} name
   */
  constructor(model, name) {
    this.model = model;
    this.name = name;
    this.title = name;
    /** @type {(shard: Shard) => number | null} */
    this.rates = () => null;
    this.flow = el("p", { class: "about" });
    this.error = el("p", { class: "error-line", role: "status", hidden: true });
    this.state = el("span", { class: "state" });
    this.figures = new Figures([
      ["records/s", "Polled from the topic, per second"],
      ["rows/s", "Written to the sink, per second"],
      ["lag", "Records in the topic that are not committed yet"],
      ["iterator age", "How old the last record read is while more wait behind it; the oldest shard's"],
      ["p50", "Half of the invocations of the last minute took at most so long"],
      ["p99", "99% of the invocations of the last minute took at most so long"],
      ["billed", "Milliseconds that AWS Lambda would have billed in this run"],
      ["on AWS", "What AWS Lambda would have charged for this run"],
    ]);
    this.accounts = new Figures([
      ["read", "Records polled from the topic in this run"],
      ["handled", "Given to the function, which took them"],
      ["filtered", "Matched no filter"],
      ["dropped", "Let go on purpose, by configuration or by the function"],
      ["failed", "Reported on failure"],
      ["absent", "Offsets without a record: compacted, control records, aborted transactions"],
      ["rows", "Rows written to the sink"],
      ["commits", "Commits of rows with their position"],
    ]);
    this.invocations = new Figures([
      ["invocations", "Attempts of the function"],
      ["errors", "Attempts that failed"],
      ["retries", "Attempts after a batch's first"],
      ["splits", "Batches that were bisected after an error"],
      ["throttles", "Refusals for want of an environment"],
    ]);
    this.durations = new Bars("Duration of invocations", seconds);
    this.sizes = new Bars("Records of a batch", count);
    this.commits = new Bars("Duration of commits", seconds);
    this.charts = new ChartGroup([
      { key: "", label: "Records and rows per second", unit: "/s", lines: [{ key: "records_per_second", name: "records" }, { key: "rows_per_second", name: "rows" }] },
      { key: "", label: "Lag in records", unit: "", lines: [{ key: "offset_lag", name: "lag" }] },
      { key: "", label: "Iterator age", unit: "s", lines: [{ key: "iterator_age_seconds", name: "iterator age" }] },
      { key: "", label: "Errors and failed records per second", unit: "/s", lines: [{ key: "errors_per_second", name: "errors" }, { key: "failed_per_second", name: "failed" }] },
      { key: "", label: "Duration of invocations", unit: "s", lines: [{ key: "duration_p50_seconds", name: "p50" }, { key: "duration_p99_seconds", name: "p99" }] },
      { key: "", label: "Invocations per second", unit: "/s", lines: [{ key: "invocations_per_second", name: "invocations" }] },
    ]);
    this.grid = this.shards();
    this.filter = el("select", { id: "shard-filter", on: { change: () => this.update() } },
      Object.keys(FILTERS).map((each) => el("option", {}, each)));
    this.owned = el("span", { class: "about" });
    this.root = this.layout();
  }

  layout() {
    const failures = `#/failures/${encodeURIComponent(this.name)}`;
    const logs = `#/logs/${encodeURIComponent(this.name)}`;
    return el("div", { class: "view" },
      el("div", { class: "view-head" }, el("h1", {}, this.name), this.state, this.flow,
        el("span", { class: "view-links" }, el("a", { href: failures }, "Failed records"), el("a", { href: logs }, "Logs"))),
      this.error,
      this.figures.root,
      el("section", { class: "panel", "aria-labelledby": "shards-title" },
        el("div", { class: "panel-head" }, el("h2", { id: "shards-title" }, "Shards"), this.owned,
          field("Show", this.filter)),
        this.grid.root),
      this.charts.root,
      el("section", { class: "panel", "aria-labelledby": "batches-title" },
        el("h2", { id: "batches-title" }, "Batches and invocations of this run"),
        this.invocations.root,
        el("div", { class: "charts" }, this.durations.root, this.sizes.root, this.commits.root)),
      el("section", { class: "panel", "aria-labelledby": "accounts-title" },
        el("h2", { id: "accounts-title" }, "Where the records of this run went"), this.accounts.root));
  }

  shards() {
    return new Grid({
      label: `Shards of ${this.name}`,
      sort: "partition",
      empty: "This process owns no such shard.",
      columns: [
        { key: "partition", label: "partition", width: 84, numeric: true, value: (s) => s.partition, text: (s) => String(s.partition) },
        { key: "state", label: "state", width: 104, state: true, value: (s) => s.state, text: (s) => s.state },
        { key: "rate", label: "records/s", width: 92, numeric: true, value: (s) => this.rates(s), text: (s) => rate(this.rates(s)) },
        { key: "lag", label: "lag", width: 92, numeric: true, title: "Records not committed yet", value: (s) => s.offset_lag, text: (s) => count(s.offset_lag) },
        { key: "age", label: "iterator age", width: 106, numeric: true, title: "How old the last record read is while more wait behind it", value: (s) => s.iterator_age_seconds, text: (s) => seconds(s.iterator_age_seconds) },
        { key: "position", label: "position", width: 124, numeric: true, title: "The offset after the last committed one", value: (s) => s.position, text: (s) => exact(s.position) },
        { key: "records", label: "records", width: 110, numeric: true, title: "Read in this run", value: (s) => s.records, text: (s) => exact(s.records) },
        { key: "batches", label: "batches", width: 92, numeric: true, value: (s) => s.batches, text: (s) => exact(s.batches) },
        { key: "failed", label: "failed", width: 80, numeric: true, value: (s) => s.counts.failed, text: (s) => count(s.counts.failed), tone: (s) => (s.counts.failed > 0 ? "bad" : null) },
        { key: "stalled", label: "stalled", width: 92, numeric: true, title: "For how long the position has not moved although records wait", value: (s) => s.stalled_seconds, text: (s) => (s.stalled_seconds > 0 ? seconds(s.stalled_seconds) : UNKNOWN), tone: (s) => (s.stalled_seconds > 30 ? "warn" : null) },
        { key: "error", label: "error", width: 260, whole: true, value: (s) => s.error, text: (s) => s.error ?? (s.undelivered ? "failed records wait for their destination" : ""), tone: (s) => (s.error !== null ? "bad" : null) },
      ],
    });
  }

  update() {
    const pipeline = this.model.pipeline(this.name);
    if (pipeline === null) {
      if (this.model.status !== null) this.say(`There is no pipeline ${this.name} in this run.`);
      return;
    }
    this.say(pipeline.error);
    const fn = pipeline.function;
    put(this.state, pipeline.state);
    mark(this.state, "data-state", pipeline.state);
    put(this.flow, `${pipeline.topic} → ${fn.kind === null ? "as it is" : `${fn.name} (${fn.kind})`} → ${pipeline.sink} ${pipeline.target ?? ""}`);
    const recent = this.model.durations(pipeline);
    const billed = fn.billed_ms > 0;
    this.figures.show([
      rate(this.model.rate(this.name, "records")), rate(this.model.rate(this.name, "rows")),
      pipeline.shards.length > 0 ? count(offsetLag(pipeline)) : UNKNOWN,
      pipeline.shards.length > 0 ? seconds(iteratorAge(pipeline)) : UNKNOWN,
      atMost(quantile(recent, 0.5)), atMost(quantile(recent, 0.99)),
      billed ? milliseconds(fn.billed_ms) : UNKNOWN, billed ? usd(fn.estimated_usd) : UNKNOWN,
    ]);
    const { counts } = pipeline;
    this.accounts.show([pipeline.records, counts.handled, counts.filtered, counts.dropped, counts.failed, counts.absent, pipeline.rows, pipeline.commits].map(count));
    this.invocations.show([fn.invocations, fn.errors, fn.retries, fn.splits, fn.throttles].map(count));
    this.durations.update(fn.duration);
    this.sizes.update(fn.batch_records);
    this.commits.update(pipeline.commit);
    put(this.owned, `${exact(pipeline.shards.length)} of the topic's ${exact(pipeline.partitions)} partitions are here`);
    this.rates = this.model.shardRates(this.name);
    const filter = FILTERS[this.filter.value];
    this.grid.update(this.filter.selectedIndex === 0 ? pipeline.shards : pipeline.shards.filter(filter));
  }

  /** @param {string | null} text */
  say(text) {
    this.error.hidden = text === null;
    put(this.error, text ?? "");
  }

  /** @param {any} history */
  chart(history) {
    void this.charts.update([{ name: this.name, moments: history.moments[this.name] ?? [] }]);
  }
}

/** @param {number | null} s */
function atMost(s) {
  return s === null ? UNKNOWN : Number.isFinite(s) ? `≤ ${seconds(s)}` : seconds(s);
}
