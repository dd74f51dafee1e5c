// The list of conversations.

import * as api from "./api.js";
import { byId, el, icon } from "./dom.js";
import { t } from "./i18n.js";

const PAGE = 50;
const DAY = 86_400_000;

export const titleOf = (conversation) => conversation?.title || t("list.untitled");

/**
 * Shows the conversations. `onOpen(id)` comes when one is chosen, `onChanged(conversation)` when the current one was
 * renamed, `onRemoved(id)` when one was deleted, `onError(error)` when something failed; `writing(id)` tells whether a
 * reply is being written in it.
 */
export class Sidebar {
  constructor({ onOpen, onChanged, onRemoved, onError, writing }) {
    Object.assign(this, { onOpen, onChanged, onRemoved, onError, writing });
    this.list = byId("conversations");
    this.menu = byId("conversation-menu");
    this.moreButton = byId("more-conversations");
    this.clear();
    this.moreButton.addEventListener("click", () => this.loadMore());
    byId("menu-rename").addEventListener("click", () => this.choose("rename"));
    byId("menu-delete").addEventListener("click", () => this.choose("delete"));
    this.menu.addEventListener("keydown", (event) => this.moveInMenu(event));
    this.menu.addEventListener("toggle", ({ newState }) => {
      if (newState === "closed") this.opener?.setAttribute("aria-expanded", "false");
    });
  }

  clear() {
    this.conversations = new Map();
    this.next = null;
    this.current = null;
    this.list.replaceChildren();
  }

  get(id) {
    return this.conversations.get(id);
  }

  put(conversation) {
    this.conversations.set(conversation.id, conversation);
    this.render();
  }

  setCurrent(id) {
    this.current = id;
    this.render();
  }

  /** Fetch the newest conversations again; what was loaded below them stays. */
  async reload() {
    const page = await api.get(`/conversations?page_size=${PAGE}`);
    const below = this.conversations.size > PAGE && page.next;
    if (!below) {
      this.conversations.clear();
      this.next = page.next;
    }
    for (const conversation of page.results) this.conversations.set(conversation.id, conversation);
    this.loaded = true;
    this.render();
  }

  async loadMore() {
    this.moreButton.disabled = true;
    try {
      const page = await api.get(api.pagePath(this.next));
      for (const conversation of page.results) this.conversations.set(conversation.id, conversation);
      this.next = page.next;
      this.render();
    } catch (error) {
      this.onError(error);
    } finally {
      this.moreButton.disabled = false;
    }
  }

  render() {
    const focused = document.activeElement?.closest?.("[data-conversation]")?.dataset.conversation;
    const focusedClass = document.activeElement?.classList?.contains("more") ? ".more" : "a";
    const sorted = [...this.conversations.values()].sort(
      (a, b) => Number(b.pinned) - Number(a.pinned) || b.updated_at.localeCompare(a.updated_at) || b.id - a.id,
    );
    const nodes = [];
    let group = null;
    for (const conversation of sorted) {
      const its = groupOf(conversation);
      if (its !== group) nodes.push(el("li", { class: "group", text: t((group = its)) }));
      nodes.push(this.item(conversation));
    }
    this.list.replaceChildren(...nodes);
    byId("no-conversations").hidden = sorted.length > 0 || !this.loaded;
    this.moreButton.hidden = !this.next;
    if (focused) this.list.querySelector(`[data-conversation="${focused}"] ${focusedClass}`)?.focus();
  }

  item(conversation) {
    const { id } = conversation;
    const title = titleOf(conversation);
    const link = el("a", { href: `#/c/${id}`, "aria-current": id === this.current ? "page" : null, title }, el("span", { class: "title", text: title }));
    if (this.writing(id)) link.append(el("span", { class: "pulse", role: "img", "aria-label": t("list.writing") }));
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.onOpen(id);
    });
    const more = el(
      "button",
      { type: "button", class: "ghost icon-only more", "aria-haspopup": "menu", "aria-expanded": "false", "aria-label": t("list.actions", { title }) },
      icon("more"),
    );
    more.addEventListener("click", () => this.openMenu(id, more));
    return el("li", { class: "conversation", data: { conversation: id } }, link, more);
  }

  openMenu(id, button) {
    this.chosen = id;
    this.opener = button;
    button.setAttribute("aria-expanded", "true");
    this.menu.showPopover();
    const at = button.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.menu;
    this.menu.style.left = `${Math.max(8, Math.min(at.right - width, innerWidth - width - 8))}px`;
    this.menu.style.top = `${at.bottom + height + 8 > innerHeight ? at.top - height - 4 : at.bottom + 4}px`;
    this.menu.querySelector("button").focus();
  }

  moveInMenu(event) {
    const buttons = [...this.menu.querySelectorAll("button")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length].focus();
  }

  choose(action) {
    this.menu.hidePopover();
    const conversation = this.get(this.chosen);
    if (!conversation) return;
    if (action === "rename") this.rename(conversation);
    else this.delete(conversation);
  }

  async rename(conversation) {
    const input = byId("rename-title");
    input.value = conversation.title || "";
    const dialog = byId("rename-dialog");
    const answer = ask(dialog);
    input.select();
    const title = (await answer) === "ok" ? input.value.trim() : "";
    if (!title || title === conversation.title) return;
    try {
      const changed = await api.patch(`/conversations/${conversation.id}`, { title });
      this.put(changed);
      this.onChanged(changed);
    } catch (error) {
      this.onError(error);
    }
  }

  async delete(conversation) {
    byId("delete-text").textContent = t("list.delete.text", { title: titleOf(conversation) });
    if ((await ask(byId("delete-dialog"))) !== "ok") return;
    try {
      await api.remove(`/conversations/${conversation.id}`);
    } catch (error) {
      // Gone already, by another device: as wished.
      if (!(error instanceof api.ApiError && error.status === 404)) {
        this.onError(error);
        return;
      }
    }
    this.drop(conversation.id);
  }

  drop(id) {
    this.conversations.delete(id);
    this.render();
    this.onRemoved(id);
  }
}

function groupOf({ pinned, updated_at: updatedAt }) {
  if (pinned) return "list.pinned";
  const midnight = new Date().setHours(0, 0, 0, 0);
  const age = midnight - new Date(updatedAt);
  if (age <= 0) return "list.today";
  if (age <= DAY) return "list.yesterday";
  return age <= 7 * DAY ? "list.week" : "list.older";
}

/** Show `dialog` and resolve to the value of the button that closed it; Escape is "". */
function ask(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}
