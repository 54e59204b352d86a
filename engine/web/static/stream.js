// The stream of the engine's events: connects, notices that it has gone silent, and connects again. A hidden page has none.

/** Without an event for so long a connection counts as dead: the engine sends a status about once a second. */
const SILENT_MS_MAX = 10_000;
const BACKOFF_MS_MIN = 500;
const BACKOFF_MS_MAX = 10_000;

/** @typedef {"connecting" | "live" | "waiting" | "paused" | "locked"} StreamState */

export class Stream {
  /**
   * @param {string} path
   * @param {Record<string, (data: any, id: string) => void>} listeners by the event's name
   * @param {(state: StreamState, nextTryMs: number | null) => void} onState
   * @param {() => Promise<boolean>} mayConnect asks whether a login is needed; false leaves the stream closed
   */
  constructor(path, listeners, onState, mayConnect) {
    this.path = path;
    this.listeners = listeners;
    this.onState = onState;
    this.mayConnect = mayConnect;
    /** @type {EventSource | null} */
    this.source = null;
    this.backoffMs = BACKOFF_MS_MIN;
    this.retryTimer = 0;
    this.silenceTimer = 0;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.pause() : this.open()));
    window.addEventListener("online", () => this.open());
  }

  /** Connect now, whatever was waited for. Does nothing while connected. */
  open() {
    if (this.source !== null || document.hidden) return;
    clearTimeout(this.retryTimer);
    this.onState("connecting", null);
    const source = new EventSource(this.path);
    this.source = source;
    for (const [name, listener] of Object.entries(this.listeners)) {
      source.addEventListener(name, (event) => {
        if (this.source !== source) return;
        this.heard();
        listener(JSON.parse(event.data), event.lastEventId);
      });
    }
    source.addEventListener("open", () => this.heard());
    source.addEventListener("error", () => this.source === source && this.failed());
    this.watch();
  }

  heard() {
    this.backoffMs = BACKOFF_MS_MIN;
    this.onState("live", null);
    this.watch();
  }

  watch() {
    clearTimeout(this.silenceTimer);
    this.silenceTimer = setTimeout(() => this.failed(), SILENT_MS_MAX);
  }

  close() {
    clearTimeout(this.retryTimer);
    clearTimeout(this.silenceTimer);
    this.source?.close();
    this.source = null;
  }

  pause() {
    this.close();
    this.onState("paused", null);
  }

  /** Try again later, each time twice as late, but for a part by chance so that many pages do not come at once. */
  async failed() {
    this.close();
    if (document.hidden) return;
    const waitMs = this.backoffMs * (0.75 + Math.random() / 2);
    this.backoffMs = Math.min(BACKOFF_MS_MAX, this.backoffMs * 2);
    this.onState("waiting", waitMs);
    this.retryTimer = setTimeout(async () => {
      if (await this.mayConnect()) this.open();
      else this.onState("locked", null);
    }, waitMs);
  }
}
