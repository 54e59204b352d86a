// A distribution as bars: how many values fell into each class, with shares as text. Light enough for every update.

import { el, mark, put } from "./dom.js";
import { exact } from "./format.js";
import { quantile } from "./model.js";

/** @typedef {import("./model.js").Distribution} Distribution */

export class Bars {
  /**
   * @param {string} label
   * @param {(bound: number) => string} format writes a class's bound
   */
  constructor(label, format) {
    this.label = label;
    this.format = format;
    /** @type {{bar: HTMLElement, name: HTMLElement, root: HTMLElement}[]} */
    this.classes = [];
    this.summary = el("span", { class: "chart-now" });
    this.list = el("ol", { class: "bars", "aria-label": label });
    this.root = el("figure", { class: "chart" }, el("figcaption", {}, el("span", {}, label), this.summary), this.list);
  }

  /** @param {Distribution} distribution */
  update(distribution) {
    const { bounds, counts } = distribution;
    while (this.classes.length < counts.length) this.grow();
    const most = counts.reduce((a, b) => Math.max(a, b), 1);
    const all = counts.reduce((a, b) => a + b, 0);
    counts.forEach((n, at) => {
      const { bar, name, root } = this.classes[at];
      const text = at < bounds.length ? this.format(bounds[at]) : `over ${this.format(bounds[bounds.length - 1])}`;
      const height = `${n === 0 ? 0 : Math.max(2, Math.round((n / most) * 100))}%`;
      if (bar.style.height !== height) bar.style.height = height;
      put(name, text);
      const share = all === 0 ? 0 : (n / all) * 100;
      const told = `${at < bounds.length ? "up to " : ""}${text}: ${exact(n)} (${share.toFixed(share < 10 ? 1 : 0)}%)`;
      mark(root, "title", told);
      mark(root, "aria-label", told);
    });
    const mean = all === 0 ? null : distribution.total / all;
    const half = quantile(distribution, 0.5);
    const nearly = quantile(distribution, 0.99);
    put(this.summary, mean === null || half === null || nearly === null ? "none yet"
      : `mean ${this.format(mean)} · p50 ≤ ${this.bound(half, bounds)} · p99 ≤ ${this.bound(nearly, bounds)}`);
  }

  /** @param {number} value @param {number[]} bounds */
  bound(value, bounds) {
    return Number.isFinite(value) ? this.format(value) : `over ${this.format(bounds[bounds.length - 1])}`;
  }

  grow() {
    const bar = el("span");
    const name = el("small", { "aria-hidden": "true" });
    const root = el("li", {}, el("div", { "aria-hidden": "true" }, bar), name);
    this.classes.push({ bar, name, root });
    this.list.append(root);
  }
}
