// Sends messages and follows the replies that are being written, over the socket where there is one and over
// server-sent events where there is none. A reply belongs to no connection: whatever breaks, we come back to it with
// the cursor of the last piece we have.

import * as api from "./api.js";

const ENDED = new Set(["message.completed", "message.stopped", "message.failed", "message.interrupted"]);
const LARGEST_FRAME = 900_000; // the server takes 1 MiB
const PATIENCE = 20_000; // for the server's word that it has our message
const SOCKET_PATIENCE = 3000; // for a socket to come back before a reply is read by other means
const HOPELESS = 2; // failed tries after which a socket is not waited for

/** The socket went away, or stayed silent, before the server said that it has the message. */
class Lost extends Error {}

export function randomKey() {
  // crypto.randomUUID is for secure contexts only; people run this on plain http in a LAN.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/**
 * `onCreated(event, own)` comes with a new message and its empty reply, `onText(reply)` when a reply has grown,
 * `onEnded(event)` when one is done, `onGone(conversationId)` when one can no longer be followed. `wanted(id)` tells
 * whether a reply that another device asked for in conversation `id` is of interest.
 */
export class Replies {
  constructor({ socket, onCreated, onText, onEnded, onGone, wanted }) {
    Object.assign(this, { socket, onCreated, onText, onEnded, onGone, wanted });
    this.live = new Map(); // message id → {id, conversationId, text, reasoning, cursor, source, restart}
    this.waiting = new Map(); // request id → {content, conversationId, resolve, reject}
    this.streams = new Set();
  }

  /** Forget everything (the user signed out). */
  clear() {
    for (const stream of this.streams) stream.abort();
    for (const { reject } of this.waiting.values()) reject(new DOMException("signed out", "AbortError"));
    this.streams.clear();
    this.live.clear();
  }

  inConversation(conversationId) {
    return [...this.live.values()].find((reply) => reply.conversationId === conversationId);
  }

  /** Send a user's message. Resolves when the server has it; throws ApiError or NetworkError when it has not. */
  async send({ conversationId, content, model, lastId }) {
    const key = randomKey();
    const message = { conversation_id: conversationId, content };
    if (model) message.model = model;
    const frame = { type: "chat_message", id: key, idempotency_key: key, ...message };
    const fits = new TextEncoder().encode(JSON.stringify(frame)).length < LARGEST_FRAME;
    if (fits && (await this.socket.whenReady(1500)) && this.socket.send(frame)) {
      try {
        await this.acknowledged(key, message);
        return;
      } catch (error) {
        if (!(error instanceof Lost)) throw error;
        if (await this.arrived(conversationId, content, lastId)) return;
      }
    }
    await this.sendByStream(message, key);
  }

  acknowledged(key, { conversation_id: conversationId, content }) {
    let timer;
    return new Promise((resolve, reject) => {
      timer = setTimeout(() => reject(new Lost()), PATIENCE);
      this.waiting.set(key, { conversationId, content, resolve, reject });
    }).finally(() => {
      clearTimeout(timer);
      this.waiting.delete(key);
    });
  }

  /** Tell whether a message whose fate is unknown did arrive, and if so follow its reply. */
  async arrived(conversationId, content, lastId) {
    let path = `/conversations/${conversationId}/messages?page_size=100`;
    while (path) {
      const page = await api.get(path);
      const message = page.results.find((item) => item.id > lastId && item.role === "user" && item.content === content);
      if (message) {
        const reply = page.results.find((item) => item.parent_id === message.id) || null;
        if (reply?.status === "streaming") this.follow(reply);
        this.onCreated({ conversation_id: conversationId, message, reply }, true);
        return true;
      }
      path = page.next && api.pagePath(page.next);
    }
    return false;
  }

  async sendByStream(message, key) {
    const controller = this.newStream();
    let events, first;
    try {
      const response = await api.send("POST", "/messages", {
        body: { ...message, stream: true },
        headers: { Accept: "text/event-stream", "Idempotency-Key": key },
        signal: controller.signal,
      });
      events = api.readEvents(response);
      first = await events.next();
      if (first.done) throw new api.NetworkError("the stream ended before it began");
    } catch (error) {
      this.streams.delete(controller);
      throw error;
    }
    this.take(first.value, "stream", true);
    const reply = this.live.get(first.value.data.reply?.id);
    // The message is stored: the caller may go on while the rest is read.
    this.readOn(events, controller, reply);
  }

  async readOn(events, controller, reply) {
    try {
      for await (const event of events) this.take(event, "stream");
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof api.NetworkError)) throw error;
    } finally {
      this.streams.delete(controller);
    }
    if (reply && this.live.get(reply.id) === reply) this.attach(reply);
  }

  newStream() {
    const controller = new AbortController();
    this.streams.add(controller);
    return controller;
  }

  take(event, source, own = false) {
    this.handle({ ...event.data, type: event.type, cursor: event.data.cursor ?? event.id }, source, own);
  }

  /** Follow a reply that is running already: after a reload, or when another device asked for it. */
  follow(message) {
    if (this.live.has(message.id)) return;
    const reply = {
      id: message.id, conversationId: message.conversation_id, text: message.content || "",
      reasoning: message.reasoning || "", cursor: null, source: null, restart: true,
    };
    this.live.set(reply.id, reply);
    this.attach(reply);
  }

  async attach(reply) {
    reply.source = "waiting";
    // A socket that comes back meanwhile takes over at once (`socketChanged`).
    if (!this.socket.ready && this.socket.failures < HOPELESS) await pause(SOCKET_PATIENCE);
    if (this.live.get(reply.id) !== reply || reply.source !== "waiting") return;
    if (this.subscribe(reply)) return;
    await this.readByStream(reply);
  }

  subscribe(reply) {
    const message = { type: "subscribe", id: `follow-${reply.id}`, message_id: reply.id };
    if (reply.cursor) message.cursor = reply.cursor;
    reply.restart = !reply.cursor;
    if (!this.socket.send(message)) return false;
    reply.source = "socket";
    return true;
  }

  async readByStream(reply) {
    reply.source = "stream";
    for (let delay = 500; this.live.get(reply.id) === reply; delay = Math.min(delay * 2, 15_000)) {
      const controller = this.newStream();
      const query = reply.cursor ? `?cursor=${encodeURIComponent(reply.cursor)}` : "";
      reply.restart = !reply.cursor;
      try {
        const response = await api.send("GET", `/messages/${reply.id}/stream${query}`, { signal: controller.signal });
        for await (const event of api.readEvents(response)) {
          delay = 500;
          this.take(event, "stream");
        }
      } catch (error) {
        if (error.name === "AbortError") return;
        if (error instanceof api.ApiError && error.status < 500 && error.status !== 429) {
          this.lose(reply);
          return;
        }
        if (!(error instanceof api.ApiError || error instanceof api.NetworkError)) throw error;
      } finally {
        this.streams.delete(controller);
      }
      if (this.live.get(reply.id) !== reply) return;
      await pause(delay);
      if (this.socket.ready && this.live.get(reply.id) === reply && this.subscribe(reply)) return;
    }
  }

  lose(reply) {
    this.live.delete(reply.id);
    this.onGone(reply.conversationId);
  }

  /** The socket came, or went. */
  socketChanged(ready) {
    if (ready) {
      for (const reply of this.live.values()) if (reply.source === "waiting") this.subscribe(reply);
      return;
    }
    for (const { reject } of this.waiting.values()) reject(new Lost());
    for (const reply of this.live.values()) if (reply.source === "socket") this.attach(reply);
  }

  /** Take one event of a reply's life from either transport; others are none of ours. */
  handle(event, source = "socket", own = false) {
    if (event.type === "message.created") this.created(event, source, own);
    else if (event.type === "message.delta") this.grown(event);
    else if (ENDED.has(event.type)) {
      this.live.delete(event.message_id ?? event.message.id);
      this.onEnded(event);
    } else if (event.type === "error") this.refused(event);
  }

  created(event, source, own) {
    const asked = this.waiting.get(event.request_id);
    const mine = own || Boolean(asked);
    const { reply } = event;
    const known = reply && this.live.has(reply.id);
    if (mine && reply?.status === "streaming" && !known) {
      this.live.set(reply.id, {
        id: reply.id, conversationId: event.conversation_id, text: "", reasoning: "", cursor: null, source, restart: false,
      });
    }
    // Told of our own message before its acknowledgement: the deltas come without our asking.
    const coming = [...this.waiting.values()].some(
      (other) => other.conversationId === event.conversation_id && other.content === event.message?.content,
    );
    if (!mine && !coming && reply?.status === "streaming" && this.wanted(event.conversation_id)) this.follow(reply);
    this.onCreated(event, mine);
    asked?.resolve();
  }

  grown(event) {
    const reply = this.live.get(event.message_id);
    if (!reply) return;
    if (reply.restart) Object.assign(reply, { text: "", reasoning: "", restart: false });
    reply.text += event.delta || "";
    reply.reasoning += event.reasoning || "";
    if (event.cursor) reply.cursor = event.cursor;
    this.onText(reply);
  }

  refused(event) {
    const asked = this.waiting.get(event.request_id);
    if (asked) {
      asked.reject(new api.ApiError(400, [{ code: event.code, detail: event.detail, attr: null }]));
      return;
    }
    const followed = /^follow-(\d+)$/.exec(event.request_id || "");
    const reply = followed && this.live.get(Number(followed[1]));
    if (reply) this.lose(reply);
  }
}
