// Asking the engine over HTTP: one way for all requests, errors as sentences, and what happens when a login is needed.
// Not here: the stream of events (stream.js).

/** An answer that is no success. `hint` says what to do, where the engine knows. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {number} status 0 where no answer came
   * @param {string | null} hint
   */
  constructor(message, status, hint = null) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.hint = hint;
  }
}

/** @type {() => void} */
let onLoginNeeded = () => {};

/** @param {() => void} listener called whenever an answer says that the user has to log in */
export function whenLoginNeeded(listener) {
  onLoginNeeded = listener;
}

/**
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 */
async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", cache: "no-store", redirect: "error", ...options });
  } catch (error) {
    if (/** @type {Error} */ (error).name === "AbortError") throw error;
    throw new ApiError("The engine does not answer.", 0, "The page tries again by itself.");
  }
  if (response.ok) return response;
  if (response.status === 401 && path !== "/api/login") onLoginNeeded();
  throw await failure(response);
}

/**
 * @param {Response} response
 * @returns {Promise<ApiError>}
 */
async function failure(response) {
  let message = `The engine answered ${response.status}.`;
  let hint = null;
  try {
    const body = await response.json();
    message = String(body.error ?? message);
    hint = body.hint ?? null;
  } catch {
    // No JSON: the status has to do.
  }
  return new ApiError(message, response.status, hint === null ? null : String(hint));
}

/**
 * @param {string} path
 * @param {Record<string, string | number | null | undefined>} [query]
 */
export async function get(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const search = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  return (await ask(search ? `${path}?${search}` : path)).json();
}

/**
 * @param {string} path
 * @param {object} body
 * @param {AbortSignal} [signal]
 */
async function send(path, body, signal) {
  return ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Headrace": "1" },
    body: JSON.stringify(body),
    signal,
  });
}

/**
 * @param {string} path
 * @param {object} body
 */
export async function post(path, body) {
  const response = await send(path, body);
  return response.status === 204 ? {} : response.json();
}

/**
 * The answer as a file in the browser's downloads.
 * @param {string} path
 * @param {object} body
 * @param {string} name
 */
export async function download(path, body, name) {
  const blob = await (await send(path, body)).blob();
  const url = URL.createObjectURL(blob);
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
  return blob.size;
}

/**
 * /healthz answers 503 with its reasons: that is an answer, not an error.
 * @returns {Promise<any>}
 */
export async function health() {
  const response = await fetch("/healthz", { credentials: "same-origin", cache: "no-store" });
  return response.json();
}
