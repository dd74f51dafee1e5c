// The REST API. The access token lives in this module's memory alone; the refresh token is in an HttpOnly cookie
// that no script can read, so that a reload signs in again and nothing worth stealing lies in any storage.

import { language } from "./i18n.js";

const ROOT = "/api/v1";

let access = null;
let refreshing = null;
let sessionEnded = () => {};

/** What the server refused, as its error object says it. */
export class ApiError extends Error {
  constructor(status, errors, retryAfter = null) {
    super(errors[0]?.detail || `HTTP ${status}`);
    this.status = status;
    this.errors = errors;
    this.code = errors[0]?.code || "failed";
    this.retryAfter = retryAfter;
  }
}

/** The server could not be reached, or broke off. */
export class NetworkError extends Error {}

/** Call `listener` when the session turns out to be over. */
export function onSessionEnded(listener) {
  sessionEnded = listener;
}

export const forgetSession = () => {
  access = null;
};

function claims(token) {
  const payload = token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/");
  return JSON.parse(atob(payload));
}

async function errorOf(response) {
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  const text = await response.text();
  let errors = [];
  try {
    errors = JSON.parse(text).errors || [];
  } catch (error) {
    // A proxy's page in place of our error object: the status has to do.
    if (!(error instanceof SyntaxError)) throw error;
  }
  return new ApiError(response.status, errors, retryAfter);
}

async function fetchOnce(method, path, { body, headers = {}, signal, signedIn }) {
  const all = { "Accept-Language": language(), ...headers };
  if (body !== undefined) all["Content-Type"] = "application/json";
  if (signedIn && access) all.Authorization = `Bearer ${access}`;
  try {
    return await fetch(ROOT + path, {
      method,
      headers: all,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      credentials: "same-origin",
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new NetworkError(error.message);
  }
}

/**
 * Get a new access token by the cookie. Calls at the same time share one request.
 * Throws ApiError when there is no session (any more), NetworkError when that could not be found out.
 */
export function refresh() {
  refreshing ??= (async () => {
    const response = await fetchOnce("POST", "/auth/refresh", { body: {} });
    if (response.status >= 500 || response.status === 429) throw new NetworkError(`HTTP ${response.status}`);
    if (!response.ok) throw await errorOf(response);
    const fresh = (await response.json()).access;
    // Another tab may have signed in as somebody else: this one must not go on in that name.
    if (access && claims(access).sub !== claims(fresh).sub) location.reload();
    access = fresh;
  })().finally(() => {
    refreshing = null;
  });
  return refreshing;
}

async function refreshOrEnd() {
  try {
    await refresh();
  } catch (error) {
    if (error instanceof ApiError) sessionEnded("auth.ended");
    throw error;
  }
}

/** Return an access token that is good for at least half a minute; `renew` asks for another in any case. */
export async function freshToken({ renew = false } = {}) {
  if (renew || !access || claims(access).exp * 1000 < Date.now() + 30_000) await refreshOrEnd();
  return access;
}

/** Send a request and return its Response; a stale access token is renewed once. Throws ApiError, NetworkError. */
export async function send(method, path, options = {}) {
  const signedIn = options.signedIn ?? true;
  let response = await fetchOnce(method, path, { ...options, signedIn });
  if (response.status === 401 && signedIn) {
    await refreshOrEnd();
    response = await fetchOnce(method, path, { ...options, signedIn });
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function json(method, path, options) {
  const response = await send(method, path, options);
  return response.status === 204 ? null : response.json();
}

export const get = (path, options = {}) => json("GET", path, options);
export const post = (path, body = {}, options = {}) => json("POST", path, { ...options, body });
export const patch = (path, body, options = {}) => json("PATCH", path, { ...options, body });
export const remove = (path) => json("DELETE", path);

/** Return the path of a page's `next` link below the API's root: only the path counts, whatever host it names. */
export function pagePath(link) {
  const url = new URL(link, location.href);
  return url.pathname.slice(ROOT.length) + url.search;
}

export async function signIn({ username, password, otp }) {
  const body = { username, password, cookie: true };
  if (otp) body.otp = otp;
  const answer = await post("/auth/login", body, { signedIn: false });
  access = answer.access;
  return answer.user;
}

/** Register, then sign in by cookie. The session that registering opened hands its token to scripts: it is ended. */
export async function signUp({ username, email, password, invite }) {
  const body = { username, email, password };
  if (invite) body.invite = invite;
  const { refresh: token } = await post("/auth/register", body, { signedIn: false });
  await post("/auth/logout", { refresh: token }, { signedIn: false }).catch((error) => {
    if (!(error instanceof ApiError)) throw error; // it lapses by itself; the account is made
  });
  return signIn({ username, password });
}

export async function signOut() {
  await post("/auth/logout", {});
  access = null;
}

/** Read the server-sent events of a Response as `{type, id, data}`, `data` parsed. Throws NetworkError on a break. */
export async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { type: "message", id: null, data: [] };
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line === "") {
          if (event.data.length) yield { ...event, data: JSON.parse(event.data.join("\n")) };
          event = { type: "message", id: null, data: [] };
          continue;
        }
        const colon = line.indexOf(":");
        if (colon === 0) continue;
        const field = colon < 0 ? line : line.slice(0, colon);
        const text = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
        if (field === "event") event.type = text;
        else if (field === "id") event.id = text;
        else if (field === "data") event.data.push(text);
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error instanceof TypeError) throw new NetworkError(error.message);
    throw error;
  } finally {
    reader.cancel().catch(() => {}); // already broken: there is nothing left to close
  }
}
