// What the engine last said, and what follows from a few statuses in a row: rates, and quantiles of the last minute.
// Not here: showing any of it.

/** Rates are over so many statuses, about seconds: fewer jump, more lag behind. */
const RATE_STATUSES = 6;

/** Durations are those of the last minute: of so many snapshots, so many milliseconds apart. */
const SNAPSHOTS = 12;
const SNAPSHOT_SECONDS = 5;

/**
 * @typedef {{bounds: number[], counts: number[], total: number}} Distribution
 * @typedef {{handled: number, filtered: number, dropped: number, failed: number, absent: number}} Counts
 * @typedef {{partition: number, state: string, position: number | null, read: number | null, end: number | null,
 *   iterator_age_seconds: number, stalled_seconds: number, records: number, batches: number, rows: number,
 *   commits: number, counts: Counts, held_bytes: number, undelivered: boolean, error: string | null,
 *   offset_lag: number}} Shard
 * @typedef {{name: string, kind: string | null, invocations: number, errors: number, throttles: number,
 *   retries: number, splits: number, billed_ms: number, billed_gb_seconds: number, estimated_usd: number,
 *   duration: Distribution, batch_records: Distribution}} Fn
 * @typedef {{name: string, topic: string, sink: string, target: string | null, state: string,
 *   error: string | null, shards: Shard[], function: Fn, records: number, rows: number, commits: number,
 *   counts: Counts, commit: Distribution, partitions: number, offset_lag: number,
 *   iterator_age_seconds?: number}} Pipeline
 * @typedef {{at: number, started_at: number, pid: number, version: string, cpu_seconds: number,
 *   resident_bytes: number, budget_bytes: number, budget_bytes_max: number, loop_blocked_seconds_max: number,
 *   loop_blocked_count: number, pipelines: Pipeline[]}} Status
 * @typedef {{records: number, rows: number, failed: number, errors: number, shards: Map<number, number>}} Totals
 */

export class Model {
  constructor() {
    /** @type {Status | null} */
    this.status = null;
    /** @type {{at: number, cpu: number, pipelines: Map<string, Totals>}[]} */
    this.recent = [];
    /** @type {{at: number, pipelines: Map<string, Distribution>}[]} */
    this.snapshots = [];
  }

  /**
   * Take a status. Returns whether it is of another run of the engine than the last one.
   * @param {Status} status
   */
  accept(status) {
    const restarted = this.status !== null && this.status.started_at !== status.started_at;
    if (restarted) {
      this.recent = [];
      this.snapshots = [];
    }
    if (this.status?.at === status.at && !restarted) return false;
    this.status = status;
    this.recent.push({ at: status.at, cpu: status.cpu_seconds, pipelines: new Map(status.pipelines.map((p) => [p.name, totals(p)])) });
    if (this.recent.length > RATE_STATUSES) this.recent.shift();
    const last = this.snapshots.at(-1);
    if (last === undefined || status.at - last.at >= SNAPSHOT_SECONDS) {
      this.snapshots.push({ at: status.at, pipelines: new Map(status.pipelines.map((p) => [p.name, p.function.duration])) });
      if (this.snapshots.length > SNAPSHOTS) this.snapshots.shift();
    }
    return restarted;
  }

  /** @param {string} name @returns {Pipeline | null} */
  pipeline(name) {
    return this.status?.pipelines.find((each) => each.name === name) ?? null;
  }

  /** Seconds between the oldest and the newest of the recent statuses; 0 with one alone. */
  span() {
    return this.recent.length < 2 ? 0 : this.recent[this.recent.length - 1].at - this.recent[0].at;
  }

  /**
   * Per second, of one of a pipeline's counts; null while unknown.
   * @param {string} name
   * @param {"records" | "rows" | "failed" | "errors"} what
   */
  rate(name, what) {
    const span = this.span();
    const first = this.recent[0]?.pipelines.get(name);
    const last = this.recent.at(-1)?.pipelines.get(name);
    if (!(span > 0) || first === undefined || last === undefined || last[what] < first[what]) return null;
    return (last[what] - first[what]) / span;
  }

  /**
   * Records per second of each shard of a pipeline, by partition.
   * @param {string} name
   * @returns {(shard: Shard) => number | null}
   */
  shardRates(name) {
    const span = this.span();
    const first = this.recent[0]?.pipelines.get(name)?.shards;
    return (shard) => {
      const before = first?.get(shard.partition);
      // A shard that has come back from another member counts from nothing again.
      if (!(span > 0) || before === undefined || shard.records < before) return null;
      return (shard.records - before) / span;
    };
  }

  /** Cores in use; null while unknown. */
  cores() {
    const span = this.span();
    return span > 0 ? (this.recent[this.recent.length - 1].cpu - this.recent[0].cpu) / span : null;
  }

  /**
   * A pipeline's durations of about the last minute; those of the whole run where there were none since.
   * @param {Pipeline} pipeline
   * @returns {Distribution}
   */
  durations(pipeline) {
    const now = pipeline.function.duration;
    const before = this.snapshots[0]?.pipelines.get(pipeline.name);
    if (before === undefined || before.counts.length !== now.counts.length) return now;
    const counts = now.counts.map((n, at) => n - before.counts[at]);
    if (counts.some((n) => n < 0) || counts.every((n) => n === 0)) return now;
    return { bounds: now.bounds, counts, total: now.total - before.total };
  }
}

/** @param {Pipeline} pipeline @returns {Totals} */
function totals(pipeline) {
  return {
    records: pipeline.records,
    rows: pipeline.rows,
    failed: pipeline.counts.failed,
    errors: pipeline.function.errors,
    shards: new Map(pipeline.shards.map((shard) => [shard.partition, shard.records])),
  };
}

/**
 * The bound within which `share` of the values are: null for none, Infinity beyond the last.
 * @param {Distribution} distribution
 * @param {number} share
 */
export function quantile({ bounds, counts }, share) {
  const all = counts.reduce((sum, n) => sum + n, 0);
  if (all === 0) return null;
  let cumulative = 0;
  const at = counts.findIndex((n) => (cumulative += n) >= share * all && cumulative > 0);
  return at < bounds.length ? bounds[at] : Infinity;
}

/** @param {Pipeline} pipeline */
export function iteratorAge(pipeline) {
  return pipeline.shards.reduce((oldest, shard) => Math.max(oldest, shard.iterator_age_seconds), 0);
}

/** @param {Pipeline} pipeline */
export function offsetLag(pipeline) {
  return pipeline.offset_lag ?? pipeline.shards.reduce((sum, shard) => sum + shard.offset_lag, 0);
}
