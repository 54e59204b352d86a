// A failed record's key, value or header: bytes, to be read by people as text or in hexadecimal, and to be copied.

import { copyButton, el, mark, put } from "./dom.js";
import { bytes } from "./format.js";

const HEX_COLUMNS = 16;

/** @typedef {{text: string | null, base64: string | null, bytes: number, truncated: boolean}} Payload */

/** @param {Payload} payload @returns {Uint8Array} */
function raw(payload) {
  if (payload.base64 === null) return new TextEncoder().encode(payload.text ?? "");
  return Uint8Array.from(atob(payload.base64), (character) => character.charCodeAt(0));
}

/**
 * Offset, bytes, and what of them can be printed.
 * @param {Uint8Array} data
 */
export function hex(data) {
  const lines = [];
  for (let at = 0; at < data.length; at += HEX_COLUMNS) {
    const part = [...data.subarray(at, at + HEX_COLUMNS)];
    const digits = part.map((byte) => byte.toString(16).padStart(2, "0")).join(" ").padEnd(HEX_COLUMNS * 3 - 1);
    const shown = part.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${at.toString(16).padStart(6, "0")}  ${digits}  ${shown}`);
  }
  return lines.join("\n");
}

/** @param {string} text @returns {string | null} the same JSON over several lines; null for what is none */
function indented(text) {
  if (!/^\s*[[{]/.test(text)) return null;
  try {
    JSON.parse(text);
  } catch {
    return null;
  }
  return spread(text);
}

/** Put line ends into valid JSON and leave every token as it is, for JSON.parse would round long numbers. @param {string} text */
function spread(text) {
  let out = "";
  let depth = 0;
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g)) {
    if (token === "{" || token === "[") out += token + `\n${"  ".repeat(++depth)}`;
    else if (token === "}" || token === "]") out = out.trimEnd() + (/[{[]$/.test(out.trimEnd()) ? "" : `\n${"  ".repeat(depth - 1)}`) + token, depth--;
    else if (token === ",") out += `,\n${"  ".repeat(depth)}`;
    else out += token === ":" ? ": " : token;
  }
  return out;
}

/**
 * @param {string} name what it is: key, value
 * @param {Payload | null} payload null for a record that has none
 */
export function payloadBox(name, payload) {
  if (payload === null) {
    return el("section", { class: "payload", "aria-label": name },
      el("div", { class: "payload-head" }, el("h3", {}, name), el("span", { class: "null" }, "null")));
  }
  const json = payload.text === null || payload.truncated ? null : indented(payload.text);
  /** @type {Record<string, () => string>} */
  const forms = {};
  if (json !== null) forms.JSON = () => json;
  if (payload.text !== null) forms.Text = () => String(payload.text);
  forms.Hex = () => hex(raw(payload));
  const shown = el("pre", { tabindex: 0, "aria-label": `${name} as shown` });
  const names = Object.keys(forms);
  const buttons = names.map((form) => el("button", { type: "button", class: "small", on: { click: () => show(form) } }, form));
  let current = names[0];
  const show = (/** @type {string} */ form) => {
    current = form;
    put(shown, forms[form]());
    names.forEach((each, at) => mark(buttons[at], "aria-pressed", String(each === form)));
  };
  show(current);
  const size = `${bytes(payload.bytes)}${payload.truncated ? ", the beginning of it" : ""}${payload.text === null ? ", not UTF-8" : ""}`;
  return el("section", { class: "payload", "aria-label": name },
    el("div", { class: "payload-head" }, el("h3", {}, name), el("span", { class: "about" }, size),
      el("span", { class: "buttons", role: "group", "aria-label": `Form of the ${name}` }, buttons),
      copyButton(name, () => (current === "JSON" ? String(payload.text) : forms[current]()))),
    shown);
}
