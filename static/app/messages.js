// The messages of one conversation as they stand on the page.

import { copyText, el, icon } from "./dom.js";
import { formatNumber, formatTime, knows, t } from "./i18n.js";
import { MarkdownView } from "./markdown.js";

const SHOWN_AT_ONCE = 100;
const NEAR_THE_END = 80;

/** Shows messages in `list`, which `scroller` scrolls; `spoken` is the live region that screen readers follow. */
export class MessageList {
  constructor({ list, scroller, spoken, jump, onAgain }) {
    Object.assign(this, { list, scroller, spoken, jump, onAgain });
    this.clear();
    this.following = true;
    scroller.addEventListener("scroll", () => {
      this.following = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_THE_END;
      this.jump.hidden = this.following;
    });
    jump.addEventListener("click", () => this.toEnd());
    // Heights change without our doing (fonts, opened details, the message box growing): stay at the end.
    const resized = new ResizeObserver(() => this.following && this.toEnd());
    resized.observe(list);
    resized.observe(scroller);
  }

  clear() {
    this.entries = new Map(); // message id (or "pending") → {node, message, …}
    this.hidden = [];
    this.list.replaceChildren();
    this.spoken.replaceChildren();
    this.jump.hidden = true;
    this.following = true;
  }

  get empty() {
    return this.entries.size === 0;
  }

  get lastId() {
    return Math.max(0, ...[...this.entries.keys()].filter(Number.isInteger));
  }

  /** Show a whole conversation, its newest messages first to be seen; what is above is built when asked for. */
  showAll(messages) {
    this.clear();
    this.hidden = messages.slice(0, -SHOWN_AT_ONCE);
    this.offerEarlier();
    for (const message of messages.slice(-SHOWN_AT_ONCE)) this.put(message);
    this.toEnd();
  }

  offerEarlier() {
    this.earlier?.remove();
    this.earlier = null;
    if (!this.hidden.length) return;
    const button = el("button", { type: "button", class: "ghost", text: t("chat.earlier", { count: this.hidden.length }) });
    button.addEventListener("click", () => this.showEarlier());
    this.earlier = el("li", { class: "earlier" }, button);
    this.list.prepend(this.earlier);
  }

  showEarlier() {
    const more = this.hidden.splice(-SHOWN_AT_ONCE);
    const before = this.scroller.scrollHeight - this.scroller.scrollTop;
    this.following = false;
    const nodes = more.map((message) => this.build(message).node);
    this.earlier.after(...nodes);
    this.offerEarlier();
    this.scroller.scrollTop = this.scroller.scrollHeight - before;
  }

  /** Show `message`, new or changed. */
  put(message, id = message.id) {
    const known = this.entries.get(id);
    if (known) {
      known.message = message;
      this.fill(known);
    } else this.list.append(this.build(message, id).node);
  }

  remove(id) {
    this.entries.get(id)?.node.remove();
    this.entries.delete(id);
  }

  /** Show how far a reply has grown; at most once a frame, however fast it comes. */
  grow(reply) {
    const entry = this.entries.get(reply.id);
    if (!entry) return;
    entry.growing = reply;
    entry.frame ??= requestAnimationFrame(() => {
      entry.frame = null;
      if (!entry.growing) return;
      entry.message = { ...entry.message, content: entry.growing.text, reasoning: entry.growing.reasoning };
      this.fill(entry);
    });
  }

  /** Scroll to the newest message and stay there. */
  toEnd() {
    this.following = true;
    this.jump.hidden = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  /** Say all of it in another language. */
  retranslate() {
    const byNode = new Map([...this.entries.values()].map((entry) => [entry.node, entry.message]));
    const messages = [...this.hidden, ...[...this.list.children].map((node) => byNode.get(node)).filter(Boolean)];
    const { following } = this;
    const top = this.scroller.scrollTop;
    this.showAll(messages);
    if (!following) this.scroller.scrollTop = top;
  }

  build(message, id = message.id) {
    const body = el("div", { class: "body" });
    const entry = { node: null, message, body, id, spokenBlocks: 0 };
    const mine = message.role === "user";
    const who = el("h3", { class: "visually-hidden", text: t(`chat.${mine ? "you" : message.role === "system" ? "system" : "assistant"}`) });
    entry.notice = el("div", { class: "notice", hidden: true });
    entry.foot = el("footer", { class: "foot" });
    if (mine) {
      body.classList.add("plain");
      entry.node = el("li", { class: "message user" }, who, body, entry.foot);
    } else {
      entry.reasoningText = el("div", { class: "plain" });
      entry.reasoning = el("details", { class: "reasoning", hidden: true }, el("summary", { text: t("chat.reasoning") }), entry.reasoningText);
      entry.waiting = el("div", { class: "dots", hidden: true }, el("span"), el("span"), el("span"));
      body.classList.add("markdown");
      entry.markdown = new MarkdownView(body);
      const column = el("div", { class: "column" }, entry.reasoning, body, entry.waiting, entry.notice, entry.foot);
      entry.node = el("li", { class: "message assistant" }, who, el("div", { class: "avatar", "aria-hidden": "true" }, icon("spark")), column);
    }
    this.entries.set(id, entry);
    this.fill(entry);
    return entry;
  }

  fill(entry) {
    const { message, node } = entry;
    node.dataset.status = message.status || "completed";
    if (!entry.markdown) {
      entry.body.textContent = message.content;
      return;
    }
    const streaming = message.status === "streaming";
    if (!streaming) entry.growing = null;
    entry.markdown.show(message.content || "");
    entry.reasoning.hidden = !message.reasoning;
    entry.reasoningText.textContent = message.reasoning || "";
    entry.waiting.hidden = !streaming || Boolean(message.content);
    node.setAttribute("aria-busy", String(streaming));
    this.fillNotice(entry);
    this.fillFoot(entry);
    this.speak(entry, streaming);
  }

  /** Read finished blocks out, one by one: a region that changed with every token would be noise. */
  speak(entry, streaming) {
    if (streaming) entry.speaking = true;
    if (!entry.speaking) return;
    const words = entry.markdown.finished(entry.spokenBlocks, { whole: !streaming });
    entry.spokenBlocks += words.length;
    this.spoken.append(...words.map((text) => el("p", { text })));
    if (!streaming) {
      entry.speaking = false;
      if (!entry.notice.hidden) this.spoken.append(el("p", { text: entry.notice.textContent }));
    }
  }

  fillNotice({ message, notice }) {
    const kind = message.finish_reason === "length" && message.status === "completed" ? "length" : message.status;
    notice.hidden = !["stopped", "interrupted", "failed", "length"].includes(kind);
    if (notice.hidden) return;
    const error = message.error || {};
    const hint = knows(`hint.${error.code}`) ? t(`hint.${error.code}`) : null;
    const lines = [el("strong", { text: t(`status.${kind}`) })];
    if (kind === "failed") {
      if (hint) lines.push(el("span", { text: hint }));
      if (error.detail) lines.push(el("span", { class: "detail", text: error.code ? `${error.detail} (${error.code})` : error.detail }));
    }
    const words = el("div", { class: "words" }, ...lines);
    const again = el("button", { type: "button", class: "ghost small", text: t("chat.again"), on: { click: () => this.onAgain(message) } });
    notice.className = `notice ${kind}`;
    notice.replaceChildren(icon(kind === "failed" || kind === "interrupted" ? "alert" : "info"), words, ...(kind === "failed" || kind === "interrupted" ? [again] : []));
  }

  fillFoot({ message, foot }) {
    if (message.status === "streaming") {
      foot.replaceChildren();
      return;
    }
    const facts = [];
    if (message.model) facts.push(message.provider === "offline" ? `${message.model} · ${t("chat.offline")}` : message.model);
    if (message.usage?.total_tokens) {
      const key = message.usage.source === "estimated" ? "chat.tokens.estimated" : "chat.tokens";
      facts.push(t(key, { count: formatNumber(message.usage.total_tokens) }));
    }
    const line = el("span", { text: facts.join(" · "), title: message.completed_at ? formatTime(message.completed_at) : null });
    const copy = el("button", { type: "button", class: "ghost icon-only small", "aria-label": t("chat.copy"), title: t("chat.copy") }, icon("copy"));
    copy.addEventListener("click", async () => {
      await copyText(message.content);
      copy.replaceChildren(icon("check"));
      setTimeout(() => copy.replaceChildren(icon("copy")), 1500);
    });
    foot.replaceChildren(...(message.content ? [copy] : []), line);
  }

  /** The text of the user's message that `reply` answers. */
  questionOf(reply) {
    const asked = this.entries.get(reply.parent_id)?.message || this.hidden.find((message) => message.id === reply.parent_id);
    return asked?.role === "user" ? asked.content : "";
  }
}
