// Keys: one letter each, never inside a field, and they can be switched off for those whose tools type letters.

import { el } from "./dom.js";

const STORED = "headrace.shortcuts";

/** @typedef {{key: string, does: string, run: () => void}} Shortcut */

/** @type {Shortcut[]} */
let shortcuts = [];

/** @type {HTMLDialogElement | null} */
let dialog = null;

function enabled() {
  try {
    return localStorage.getItem(STORED) !== "off";
  } catch {
    return true;
  }
}

/** @param {boolean} on */
function enable(on) {
  try {
    localStorage.setItem(STORED, on ? "on" : "off");
  } catch {
    // Without storage they stay on.
  }
}

/** @param {Shortcut[]} all */
export function install(all) {
  shortcuts = all;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || !enabled()) return;
    const target = /** @type {HTMLElement} */ (event.target);
    const typing = target.closest("input, textarea, select, dialog") !== null;
    if (typing && event.key !== "Escape") return;
    const found = shortcuts.find((each) => each.key === event.key);
    if (found === undefined || (typing && target.closest("dialog") !== null)) return;
    if (event.key !== "Escape") event.preventDefault();
    found.run();
  });
}

/** The list of all keys. */
export function showHelp() {
  if (dialog !== null) return;
  const fixed = [["Ctrl + Enter", "run the query (in the SQL box)"], ["↑ ↓", "the next failed record (in the list)"], ["Tab", "the next control"]];
  const toggle = el("input", { id: "keys-on", type: "checkbox", checked: enabled(), on: { change: () => enable(toggle.checked) } });
  const close = el("button", { type: "button", class: "primary", on: { click: () => made.close() } }, "Close");
  const made = el("dialog", { class: "help", "aria-labelledby": "help-title" },
    el("h1", { id: "help-title" }, "Keyboard"),
    el("dl", {}, [...shortcuts.map(({ key, does }) => [key, does]), ...fixed].map(([key, does]) =>
      el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, does)))),
    el("p", { class: "check" }, toggle, el("label", { for: "keys-on" }, "Single keys do this (when off, ? is in the bar)")),
    close);
  made.addEventListener("close", () => {
    made.remove();
    dialog = null;
  });
  dialog = made;
  document.body.append(made);
  made.showModal();
}
