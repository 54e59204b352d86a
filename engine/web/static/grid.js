// A sortable table of any number of rows, of which only those in view exist: scrolling and updating reuse the same
// elements, so that a thousand shards cost as much as twenty. Rows have one height. Not here: what the columns mean.

import { el, mark, put } from "./dom.js";

const ROW_PX = 30;
const ROWS_BEYOND = 4;

/**
 * @template Row
 * @typedef {object} Column
 * @property {string} key
 * @property {string} label
 * @property {number} width in pixels
 * @property {string} [title] what the figure means
 * @property {boolean} [numeric] aligned to the right, sorted from the largest first
 * @property {(row: Row) => number | string | null} value what to sort by; null goes last
 * @property {(row: Row) => string} text what to show
 * @property {(row: Row) => string | null} [tone] a data-tone for the cell: good, warn, bad
 * @property {boolean} [whole] whether what is cut off is to be seen under the pointer
 * @property {boolean} [state] a state's word, shown with its dot
 */

/** @template Row */
export class Grid {
  /**
   * @param {{label: string, columns: Column<Row>[], rowsVisible?: number, sort: string, descending?: boolean,
   *   empty?: string}} options
   */
  constructor({ label, columns, rowsVisible = 14, sort, descending = false, empty = "Nothing here." }) {
    this.columns = columns;
    this.sortKey = sort;
    this.descending = descending;
    /** @type {Row[]} */
    this.rows = [];
    /** @type {{row: HTMLTableRowElement, cells: HTMLTableCellElement[]}[]} */
    this.pool = [];
    /** @type {Map<string, HTMLTableCellElement>} */
    this.heads = new Map();

    const headRow = el("tr", { "aria-rowindex": 1 }, columns.map((column) => this.head(column)));
    this.before = el("td", { colspan: columns.length });
    this.after = el("td", { colspan: columns.length });
    this.beforeRow = el("tr", { class: "spacer", "aria-hidden": "true" }, this.before);
    this.afterRow = el("tr", { class: "spacer", "aria-hidden": "true" }, this.after);
    this.body = el("tbody", {}, this.beforeRow, this.afterRow);
    const width = columns.reduce((sum, column) => sum + column.width, 0);
    this.table = el("table", { class: "grid", "aria-label": label },
      el("colgroup", {}, columns.map((column) => sized(el("col"), "width", column.width))),
      el("thead", {}, headRow), this.body);
    sized(this.table, "min-width", width);
    this.empty = el("p", { class: "empty" }, empty);
    this.root = el("div", { class: "grid-box", role: "region", "aria-label": label, tabindex: 0 }, this.table, this.empty);
    sized(this.root, "max-height", ROW_PX * (rowsVisible + 1) + 2);
    this.rowsVisible = rowsVisible;
    this.root.addEventListener("scroll", () => this.paint(), { passive: true });
    this.showSort();
  }

  /** @param {Column<Row>} column */
  head(column) {
    const button = el("button", { type: "button", class: "head", title: column.title }, column.label);
    button.addEventListener("click", () => this.sortBy(column.key));
    const cell = el("th", { scope: "col", class: column.numeric ? "n" : null }, button);
    this.heads.set(column.key, cell);
    return cell;
  }

  /** @param {string} key */
  sortBy(key) {
    const column = this.column(key);
    this.descending = key === this.sortKey ? !this.descending : Boolean(column.numeric);
    this.sortKey = key;
    this.showSort();
    this.update(this.rows);
  }

  /** @param {string} key @returns {Column<Row>} */
  column(key) {
    return /** @type {Column<Row>} */ (this.columns.find((each) => each.key === key));
  }

  showSort() {
    for (const [key, cell] of this.heads) {
      mark(cell, "aria-sort", key === this.sortKey ? (this.descending ? "descending" : "ascending") : null);
    }
  }

  /** @param {Row[]} rows kept, in an order of its own */
  update(rows) {
    const { value } = this.column(this.sortKey);
    const way = this.descending ? -1 : 1;
    const keyed = rows.map((row) => ({ row, by: value(row) }));
    keyed.sort((a, b) => compare(a.by, b.by, way));
    this.rows = keyed.map((each) => each.row);
    this.empty.hidden = rows.length > 0;
    mark(this.table, "aria-rowcount", String(rows.length + 1));
    this.paint();
  }

  /** Show the rows that are in view. */
  paint() {
    const needed = Math.min(this.rows.length, this.rowsVisible + 2 * ROWS_BEYOND);
    while (this.pool.length < needed) this.grow();
    const firstMax = Math.max(0, this.rows.length - this.pool.length);
    const first = Math.min(firstMax, Math.max(0, Math.floor(this.root.scrollTop / ROW_PX) - ROWS_BEYOND));
    sized(this.before, "height", first * ROW_PX);
    sized(this.after, "height", Math.max(0, this.rows.length - first - this.pool.length) * ROW_PX);
    this.pool.forEach(({ row, cells }, at) => {
      const data = this.rows[first + at];
      if (row.hidden !== (data === undefined)) row.hidden = data === undefined;
      if (data === undefined) return;
      mark(row, "aria-rowindex", String(first + at + 2));
      this.columns.forEach((column, index) => {
        const text = column.text(data);
        put(cells[index], text);
        if (column.state) mark(cells[index], "data-state", text);
        if (column.whole) mark(cells[index], "title", text || null);
        if (column.tone) mark(cells[index], "data-tone", column.tone(data));
      });
    });
  }

  grow() {
    const cells = this.columns.map((column) =>
      el("td", { class: column.numeric ? "n" : column.state ? "state" : null }));
    const row = el("tr", {}, cells);
    this.pool.push({ row, cells });
    this.body.insertBefore(row, this.afterRow);
  }
}

/**
 * @param {number | string | null} a
 * @param {number | string | null} b
 * @param {number} way
 */
function compare(a, b, way) {
  if (a === b) return 0;
  if (a === null) return 1;
  if (b === null) return -1;
  return a < b ? -way : way;
}

/**
 * @param {any} node
 * @param {"width" | "height" | "min-width" | "max-height"} property
 * @param {number} px
 */
function sized(node, property, px) {
  const text = `${px}px`;
  if (node.style.getPropertyValue(property) !== text) node.style.setProperty(property, text);
  return node;
}
