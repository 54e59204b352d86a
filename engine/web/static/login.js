// The form for the token, where the engine wants one. The token goes to the engine once, which answers with a cookie
// that scripts cannot read; nothing of it stays here.

import { post } from "./api.js";
import { el, put } from "./dom.js";

/** @type {HTMLDialogElement | null} */
let dialog = null;

/** @param {() => void} done called after a login that succeeded */
export function askForToken(done) {
  if (dialog !== null) return;
  const field = el("input", { id: "token", type: "password", autocomplete: "current-password", required: true, autofocus: true, "aria-describedby": "login-error" });
  const error = el("p", { id: "login-error", class: "form-error", role: "alert" });
  const button = el("button", { type: "submit", class: "primary" }, "Log in");
  const form = el("form", { method: "dialog", "aria-labelledby": "login-title" },
    el("h1", { id: "login-title" }, "headrace"),
    el("p", { class: "about" }, "This engine wants its token: web.token of the configuration, or HEADRACE_WEB_TOKEN."),
    el("label", { for: "token" }, "Token"), field, error, button);
  const made = el("dialog", { class: "login", "aria-labelledby": "login-title" }, form);
  dialog = made;
  // Without the token there is nothing to go back to.
  made.addEventListener("cancel", (/** @type {Event} */ event) => event.preventDefault());
  made.addEventListener("close", () => dialog === made && made.showModal());
  form.addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    button.disabled = true;
    put(error, "");
    try {
      await post("/api/login", { token: field.value });
      field.value = "";
      dialog = null;
      made.close();
      made.remove();
      done();
    } catch (failure) {
      const { status, message } = /** @type {import("./api.js").ApiError} */ (failure);
      put(error, status === 401 || status === 403 ? "That is not the token." : message);
      field.select();
    }
    button.disabled = false;
  });
  document.body.append(made);
  made.showModal();
  field.focus();
}
