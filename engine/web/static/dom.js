// Making and changing elements. Whatever comes from the server goes through here, and becomes text nodes, never markup.

/** @typedef {Node | string | null | undefined | false} Child */

/**
 * Make an element. `props` are attributes, but for `class`, `on` ({event: listener}) and `data`.
 * @param {string} tag
 * @param {Record<string, any>} [props]
 * @param {...(Child | Child[])} children
 * @returns {any} the element, of the class that belongs to its tag
 */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    } else if (name === "data") {
      Object.assign(made.dataset, value);
    } else {
      made.setAttribute(name, value === true ? "" : String(value));
    }
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/**
 * Show `text` in `node`, whose only child is a text node. Nothing is touched when it shows it already.
 * @param {Element} node
 * @param {string} text
 */
export function put(node, text) {
  const held = /** @type {Text | null} */ (node.firstChild);
  // A new text node, for a longer text in the old one would count as one that has moved, where it ends at the right.
  if ((held === null ? "" : held.data) !== text) node.textContent = text;
}

/**
 * Set an attribute only where it changes, because each change costs a recalculation of styles.
 * @param {Element} node
 * @param {string} name
 * @param {string | null} value null takes it away
 */
export function mark(node, name, value) {
  if (node.getAttribute(name) === value) return;
  if (value === null) node.removeAttribute(name);
  else node.setAttribute(name, value);
}

/**
 * Keep `parent`'s children the same as `keys`, in their order, making and dropping only what differs.
 * @template T
 * @param {Element} parent
 * @param {Map<string, T & {root: Element}>} held what is there, by key; changed in place
 * @param {string[]} keys
 * @param {(key: string) => T & {root: Element}} make
 */
export function keyed(parent, held, keys, make) {
  const wanted = new Set(keys);
  for (const [key, each] of held) {
    if (wanted.has(key)) continue;
    each.root.remove();
    held.delete(key);
  }
  keys.forEach((key, at) => {
    let each = held.get(key);
    if (each === undefined) held.set(key, (each = make(key)));
    if (parent.children[at] !== each.root) parent.insertBefore(each.root, parent.children[at] ?? null);
  });
}

/**
 * A control with its label before it.
 * @param {string} label
 * @param {HTMLElement} control which has an id
 */
export function field(label, control) {
  return el("span", { class: "field" }, el("label", { for: control.id }, label), control);
}

/**
 * Copy text; whether it could. Browsers give the clipboard to HTTPS and loopback alone, other pages use the old way.
 * @param {string} text
 * @returns {Promise<boolean>}
 */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", { class: "unseen", "aria-hidden": "true" });
    const focused = /** @type {HTMLElement | null} */ (document.activeElement);
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return done;
  }
}

/**
 * A button that copies what `text()` gives, and says for a moment whether it could.
 * @param {string} label
 * @param {() => string} text
 */
export function copyButton(label, text) {
  const button = el("button", { type: "button", class: "small", "aria-label": `Copy ${label}` }, "Copy");
  button.addEventListener("click", async () => {
    const done = await copy(text());
    put(button, done ? "Copied" : "Cannot");
    setTimeout(() => put(button, "Copy"), 1500);
  });
  return button;
}

/**
 * A short message at the edge of the page, which pushes nothing aside and goes by itself.
 * @param {string} text
 * @param {{kind?: "info" | "bad", seconds?: number}} [options]
 */
export function note(text, { kind = "info", seconds = 8 } = {}) {
  const place = /** @type {HTMLElement} */ (document.getElementById("notes"));
  const close = el("button", { type: "button", class: "quiet small", "aria-label": "Dismiss" }, "×");
  const made = el("div", { class: "note", data: { kind } }, el("span", {}, text), close);
  close.addEventListener("click", () => made.remove());
  place.append(made);
  while (place.children.length > 4) place.firstElementChild?.remove();
  setTimeout(() => made.remove(), seconds * 1000);
}
