// How figures are written: short, of steady width, the same everywhere. Unknown is "–", never 0.

export const UNKNOWN = "–";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const one = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const two = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const clockFormat = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });

/** @typedef {number | null | undefined} Figure */

/**
 * A count to the unit: 1,234,567.
 * @param {Figure} n
 */
export function exact(n) {
  return n === null || n === undefined ? UNKNOWN : whole.format(n);
}

/**
 * A count in four digits or so: 987, 12,345, 1.23 M.
 * @param {Figure} n
 */
export function count(n) {
  if (n === null || n === undefined) return UNKNOWN;
  if (n < 100_000) return whole.format(n);
  if (n < 1e6) return `${one.format(n / 1e3)} k`;
  if (n < 1e9) return `${two.format(n / 1e6)} M`;
  return `${two.format(n / 1e9)} G`;
}

/**
 * Something per second.
 * @param {Figure} n
 */
export function rate(n) {
  if (n === null || n === undefined || Number.isNaN(n)) return UNKNOWN;
  if (n === 0) return "0";
  if (n < 0.1) return "<0.1";
  return n < 10 ? one.format(n) : count(n);
}

/**
 * A duration in seconds, in the two units that matter.
 * @param {Figure} s
 */
export function seconds(s) {
  if (s === null || s === undefined || Number.isNaN(s)) return UNKNOWN;
  if (s === 0) return "0 s";
  if (s === Infinity) return "over 15 m";
  if (s < 0.001) return "<1 ms";
  if (s < 0.01) return `${+(s * 1e3).toFixed(1)} ms`;
  if (s < 1) return `${Math.round(s * 1e3)} ms`;
  if (s < 60) return `${one.format(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} m ${pad(Math.floor(s % 60))} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${pad(Math.floor((s % 3600) / 60))} m`;
  return `${Math.floor(s / 86_400)} d ${pad(Math.floor((s % 86_400) / 3600))} h`;
}

/** @param {number} n */
function pad(n) {
  return String(n).padStart(2, "0");
}

/**
 * Milliseconds that add up, as billed ones do.
 * @param {Figure} ms
 */
export function milliseconds(ms) {
  if (ms === null || ms === undefined) return UNKNOWN;
  return ms < 10_000 ? `${whole.format(ms)} ms` : seconds(ms / 1e3);
}

/** @param {Figure} n */
export function bytes(n) {
  if (n === null || n === undefined) return UNKNOWN;
  if (n < 1024) return `${whole.format(n)} B`;
  if (n < 1024 ** 2) return `${one.format(n / 1024)} KB`;
  if (n < 1024 ** 3) return `${one.format(n / 1024 ** 2)} MB`;
  return `${two.format(n / 1024 ** 3)} GB`;
}

/** @param {Figure} n */
export function usd(n) {
  if (n === null || n === undefined) return UNKNOWN;
  if (n === 0) return "$0.00";
  if (n < 0.0001) return "<$0.0001";
  return n < 1 ? `$${n.toFixed(4)}` : `$${two.format(n)}`;
}

/**
 * The time of day, for seconds since the epoch.
 * @param {Figure} at
 */
export function clock(at) {
  return at === null || at === undefined ? UNKNOWN : clockFormat.format(at * 1000);
}

/**
 * Date and time in the reader's zone, to the millisecond, for milliseconds since the epoch.
 * @param {Figure} at
 */
export function moment(at) {
  if (at === null || at === undefined || at < 0) return UNKNOWN;
  const date = new Date(at);
  const day = `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}`;
  return `${day} ${clockFormat.format(date)}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

/**
 * A count with its noun: "1 record", "2 records".
 * @param {number} n
 * @param {string} noun
 */
export function plural(n, noun) {
  return `${whole.format(n)} ${noun}${n === 1 ? "" : "s"}`;
}
