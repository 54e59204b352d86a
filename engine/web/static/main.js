// Where the page's parts meet: the stream feeds the model, the address picks the view, a frame draws it.

import { ApiError, get, whenLoginNeeded } from "./api.js";
import { Connection } from "./connection.js";
import { el, note, put } from "./dom.js";
import { FailuresView } from "./failures.js";
import { clock } from "./format.js";
import { Health } from "./health.js";
import { askForToken } from "./login.js";
import { LogsView } from "./logs.js";
import { Model } from "./model.js";
import { Overview } from "./overview.js";
import { PipelineView } from "./pipeline.js";
import { themeChanged } from "./plot.js";
import { install, showHelp } from "./shortcuts.js";
import { SqlView } from "./sql.js";
import { Stream } from "./stream.js";

const HISTORY_EVERY_MS = 10_000;

const model = new Model();
const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const connection = new Connection(/** @type {HTMLElement} */ (document.getElementById("connection")));
const health = new Health(/** @type {HTMLElement} */ (document.getElementById("health")));

/**
 * @typedef {object} View
 * @property {string} title
 * @property {HTMLElement} root
 * @property {() => void} [update] called for each status, at most once a frame
 * @property {(history: any) => void} [chart] called for each new history
 * @property {() => void} [enter] called when it is put on the page, and when the engine has restarted
 * @property {() => void} [back] called when the stream has come back: what came meanwhile was missed
 * @property {(failure: any) => void} [failed]
 * @property {(line: any) => void} [log]
 * @property {() => void} [escape]
 */

/** @type {Record<string, (rest: string) => View>} */
const VIEWS = {
  "": () => new Overview(model),
  pipeline: (name) => new PipelineView(model, name),
  failures: (pipeline) => new FailuresView(model, pipeline),
  sql: () => new SqlView(),
  logs: (pipeline) => new LogsView(model, pipeline),
};

/** @type {View} */
let view;
/** @type {string | null} */
let shownAddress = null;
let drawing = 0;
let wasAway = false;
let historyTimer = 0;

function draw() {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    view.update?.();
  });
}

/** Show the view that the address names. */
function route() {
  const address = location.hash.replace(/^#\/?/, "");
  if (address === shownAddress) return;
  const first = shownAddress === null;
  shownAddress = address;
  const [name, ...rest] = address.split("/");
  const make = VIEWS[name] ?? VIEWS[""];
  view = make(decode(rest.join("/")));
  main.replaceChildren(view.root);
  document.title = view.title === "Overview" ? "headrace" : `${view.title} · headrace`;
  for (const link of document.querySelectorAll(".tabs a")) {
    const on = (/** @type {HTMLElement} */ (link).dataset.view === (name === "" || name === "pipeline" ? "overview" : name));
    if (on) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  health.fold(true);
  scrollTo(0, 0);
  if (!first) main.focus({ preventScroll: true });
  view.update?.();
  if (model.status !== null) view.enter?.();
  void past();
}

/** @param {string} text */
function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Ask for the last hour, now and every few seconds, while there is somebody who sees a chart. */
async function past() {
  clearTimeout(historyTimer);
  historyTimer = setTimeout(past, HISTORY_EVERY_MS);
  const asking = view;
  if (document.hidden || asking.chart === undefined || model.status === null) return;
  try {
    const history = await get("/api/history");
    if (asking === view) asking.chart?.(history);
  } catch {
    // The stream says that the engine is away; the charts come back with it.
  }
}

/** @param {any} status */
function take(status) {
  const first = model.status === null;
  const restarted = model.accept(status);
  connection.heard();
  draw();
  if (restarted) {
    note(`The engine has restarted, at ${clock(status.started_at)}. Counts begin anew.`);
    health.ask();
  }
  if (first || restarted) {
    view.enter?.();
    void past();
  }
}

/** Whether the stream may be opened: true also where nobody answers, so that it is tried again. */
async function mayConnect() {
  try {
    take(await get("/api/status"));
    return true;
  } catch (error) {
    return !(error instanceof ApiError && error.status === 401);
  }
}

const stream = new Stream("/api/events", {
  status: take,
  failure: (failure) => view.failed?.(failure),
  log: (line) => view.log?.(line),
}, changed, mayConnect);

/** @param {import("./stream.js").StreamState} state @param {number | null} nextTryMs */
function changed(state, nextTryMs) {
  connection.to(state, nextTryMs);
  if (state === "waiting" || state === "paused" || state === "locked") wasAway = true;
  if (state !== "live" || !wasAway) return;
  wasAway = false;
  view.back?.();
  health.ask();
  void past();
}

function login() {
  stream.close();
  connection.to("locked", null);
  askForToken(() => void start());
}

async function start() {
  health.ask();
  if (await mayConnect()) stream.open();
}

const themes = ["system", "light", "dark"];
const themeButton = /** @type {HTMLButtonElement} */ (document.getElementById("theme"));

function showTheme() {
  const now = document.documentElement.dataset.theme ?? "system";
  put(themeButton, { system: "◐", light: "☀", dark: "☾" }[now] ?? "◐");
  themeButton.setAttribute("aria-label", `Theme: ${now}`);
  themeButton.title = `Theme: ${now}`;
}

function nextTheme() {
  const now = document.documentElement.dataset.theme ?? "system";
  const next = themes[(themes.indexOf(now) + 1) % themes.length];
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("headrace.theme", next);
  } catch {
    // Without storage the choice lasts as long as the page.
  }
  showTheme();
  themeChanged();
}

function escape() {
  health.fold(true);
  view.escape?.();
}

const go = (/** @type {string} */ hash) => () => {
  location.hash = hash;
  route(); // at once, for the next key may be meant for the new view
};

install([
  { key: "o", does: "overview", run: go("#/") },
  { key: "f", does: "failed records", run: go("#/failures") },
  { key: "s", does: "SQL", run: go("#/sql") },
  { key: "l", does: "logs", run: go("#/logs") },
  { key: "/", does: "to the search or SQL field", run: () => /** @type {HTMLElement | null} */ (main.querySelector("[data-search]"))?.focus() },
  { key: "t", does: "the next theme: system, light, dark", run: nextTheme },
  { key: "?", does: "this list", run: showHelp },
  { key: "Escape", does: "cancel the query under way, fold the reasons", run: escape },
]);

themeButton.addEventListener("click", nextTheme);
/** @type {HTMLElement} */ (document.getElementById("help")).addEventListener("click", showHelp);
whenLoginNeeded(login);
window.addEventListener("hashchange", route);
main.append(el("p", { class: "empty" }, "Connecting …"));
showTheme();
route();
void start();
