// One WebSocket to the server that comes back by itself.

import { ApiError, NetworkError } from "./api.js";

const PATH = "/api/v1/ws";
const FIRST_DELAY = 500;
const LONGEST_DELAY = 30_000;
const CLOSED = { UNAUTHENTICATED: 4401, DISABLED: 4403, BY_OWNER: 4410, TOO_MANY: 4429, GOING_AWAY: 4503 };

/**
 * States: "idle", "connecting", "ready" (the server greeted us), "waiting" (for the next try) and "closed" (its owner
 * closed it from elsewhere: only `retry` opens it again).
 *
 * `token({renew})` gives an access token; `onEvent` gets each parsed event, `onState` each change, `onDisabled` comes
 * when the account is no longer allowed in.
 */
export class Socket {
  constructor({ token, onEvent, onState, onDisabled }) {
    Object.assign(this, { token, onEvent, onState, onDisabled });
    this.state = "idle";
    this.failures = 0;
    this.renew = false;
    this.silence = 65_000;
    this.waiters = new Set();
    addEventListener("online", () => this.retry());
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible" && this.state === "waiting") this.retry();
    });
  }

  get ready() {
    return this.state === "ready";
  }

  start() {
    if (this.state === "idle") this.connect();
  }

  stop() {
    this.drop();
    this.failures = 0;
    this.setState("idle");
  }

  /** Try again now instead of when the delay is over. */
  retry() {
    if (this.state === "waiting" || this.state === "closed") this.connect();
  }

  /** Send `message`; false when there is no socket to send it on. */
  send(message) {
    if (!this.ready || this.socket.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  /** Wait for a socket that is being opened, at most `milliseconds`; tells whether it is ready. */
  whenReady(milliseconds) {
    if (this.state !== "connecting") return Promise.resolve(this.ready);
    return new Promise((resolve) => {
      const settle = () => {
        clearTimeout(timer);
        this.waiters.delete(settle);
        resolve(this.ready);
      };
      const timer = setTimeout(settle, milliseconds);
      this.waiters.add(settle);
    });
  }

  setState(state) {
    if (state === this.state) return;
    this.state = state;
    if (state !== "connecting") for (const settle of this.waiters) settle();
    this.onState(state);
  }

  async connect() {
    this.drop();
    this.setState("connecting");
    const attempt = (this.attempt = Symbol("attempt"));
    let token;
    try {
      token = await this.token({ renew: this.renew });
    } catch (error) {
      if (!(error instanceof NetworkError || error instanceof ApiError)) throw error;
      // Where the session is over, `stop` has been called and this attempt with it.
      if (this.attempt === attempt) this.comeBack();
      return;
    }
    if (this.attempt !== attempt) return;
    this.renew = false;
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = (this.socket = new WebSocket(`${scheme}//${location.host}${PATH}`, ["bearer", token]));
    this.listen();
    socket.addEventListener("message", (message) => {
      if (this.socket !== socket) return;
      this.listen();
      const event = JSON.parse(message.data);
      if (event.type === "connection.ready") {
        this.failures = 0;
        if (event.heartbeat_interval) this.silence = event.heartbeat_interval * 2000 + 5000;
        this.setState("ready");
      }
      this.onEvent(event);
    });
    socket.addEventListener("close", (close) => {
      if (this.socket === socket) this.closed(close.code);
    });
  }

  /** A line that has been silent for two heartbeats is dead, whatever the browser still believes. */
  listen() {
    clearTimeout(this.listening);
    this.listening = setTimeout(() => this.closed(null), this.silence);
  }

  drop() {
    clearTimeout(this.listening);
    clearTimeout(this.timer);
    this.attempt = null;
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  }

  closed(code) {
    this.drop();
    if (code === CLOSED.DISABLED) {
      this.setState("idle");
      this.onDisabled();
    } else if (code === CLOSED.BY_OWNER) {
      this.setState("closed");
    } else {
      this.renew = code === CLOSED.UNAUTHENTICATED;
      this.comeBack(code === CLOSED.TOO_MANY ? 60_000 : 0);
    }
  }

  comeBack(least = 0) {
    const delay = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** this.failures);
    this.failures += 1;
    this.setState("waiting");
    // Jitter: after a restart not every browser should knock at the same moment.
    this.timer = setTimeout(() => this.connect(), Math.max(least, delay * (0.5 + Math.random() / 2)));
  }
}
