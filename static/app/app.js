// The page: who is signed in, which conversation is open, and what connects the parts.

import { AccountForm } from "./account.js";
import * as api from "./api.js";
import { byId, el } from "./dom.js";
import { formatDuration, knows, language, switchLanguage, t, translate } from "./i18n.js";
import { MessageList } from "./messages.js";
import { showQuota } from "./quota.js";
import { Replies } from "./replies.js";
import { Sidebar, titleOf } from "./sidebar.js";
import { Socket } from "./socket.js";

const LAST_MODEL = "model";
const LEFT = "left"; // why the page was left for the form
const UNTITLED_FOR = 8000; // so long the server has for a title of its own
const LONGEST_TITLE = 60;

const narrow = matchMedia("(max-width: 760px)");
const composer = byId("composer-text");

const state = { user: null, current: null, opening: null, sending: false, stopping: false, models: [], quota: null, drafts: new Map(), tail: null, seenReady: false };

const socket = new Socket({ token: api.freshToken, onEvent: socketEvent, onState: socketState, onDisabled: () => leave("auth.disabled") });
const replies = new Replies({ socket, onCreated, onText, onEnded, onGone, wanted: (id) => id === state.current });
const account = new AccountForm({ onSignedIn: enter });
const sidebar = new Sidebar({
  onOpen: (id) => go(id),
  onChanged: (conversation) => conversation.id === state.current && renderHead(),
  onRemoved: (id) => {
    state.drafts.delete(id);
    if (id === state.current) go(null);
  },
  onError: showError,
  writing: (id) => Boolean(replies.inConversation(id)),
});
const messages = new MessageList({
  list: byId("messages"), scroller: byId("scroller"), spoken: byId("spoken"), jump: byId("jump"),
  onAgain: (reply) => {
    composer.value = messages.questionOf(reply) || composer.value;
    fitComposer();
    composer.focus();
  },
});

// --- Who is signed in ---

function showView(name) {
  for (const view of ["splash", "account", "app"]) byId(view).hidden = view !== name;
}

async function boot() {
  const left = sessionStorage.getItem(LEFT);
  sessionStorage.removeItem(LEFT);
  if (left !== null) {
    showView("account");
    account.show(left);
    return;
  }
  showView("splash");
  byId("splash-retry").hidden = true;
  byId("splash-text").textContent = t("app.starting");
  try {
    await api.refresh();
    enter(await api.get("/users/me"));
  } catch (error) {
    if (error instanceof api.ApiError) {
      showView("account");
      account.show();
    } else if (error instanceof api.NetworkError) {
      byId("splash-text").textContent = t("app.unreachable");
      byId("splash-retry").hidden = false;
    } else throw error;
  }
}

function enter(user) {
  state.user = user;
  showView("app");
  byId("user-name").textContent = user.username;
  byId("user-initial").textContent = [...user.username][0].toUpperCase();
  socket.start();
  loadModels();
  loadQuota();
  reloadList();
  openFromAddress();
}

/** Back to the form by a fresh page: nothing of the user stays in memory, and nothing on its way arrives in it. */
function leave(reason = "") {
  if (!state.user) return;
  state.user = null;
  api.forgetSession();
  socket.stop();
  replies.clear();
  sessionStorage.setItem(LEFT, reason);
  history.replaceState(null, "", location.pathname);
  location.reload();
}

async function signOut() {
  try {
    await api.signOut();
  } catch (error) {
    if (error instanceof api.NetworkError) {
      showError(error); // the cookie is still good: better to stay than to pretend
      return;
    }
    if (!(error instanceof api.ApiError)) throw error;
  }
  leave();
}

// --- What is loaded ---

/** Run `load` and show what fails; a session that ended meanwhile shows itself. */
async function trying(load) {
  try {
    return await load();
  } catch (error) {
    showError(error);
    return null;
  }
}

const reloadList = debounced(() => trying(async () => {
  await sidebar.reload();
  renderHead();
}), 150);

async function loadModels() {
  state.models = (await trying(() => api.get("/models"))) || [];
  renderModels();
}

const loadQuota = debounced(async () => {
  try {
    state.quota = await api.get("/quota");
  } catch (error) {
    // Without the line one can chat as well: it is left out, and nobody is told.
    if (!(error instanceof api.ApiError || error instanceof api.NetworkError)) throw error;
    state.quota = null;
  }
  showQuota(state.quota);
}, 150);

function debounced(work, milliseconds) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(() => state.user && work(), milliseconds);
  };
}

// --- Which conversation is open ---

const addressed = () => Number(/^#\/c\/(\d+)$/.exec(location.hash)?.[1]) || null;

function openFromAddress() {
  state.current = undefined;
  open(addressed());
}

function go(id) {
  if (id === addressed() && id === state.current) {
    closeDrawer();
    return;
  }
  history.pushState(null, "", id ? `#/c/${id}` : location.pathname);
  open(id);
}

async function open(id) {
  closeDrawer();
  if (id === state.current) return;
  state.drafts.set(state.current, composer.value);
  state.current = id;
  const opening = (state.opening = Symbol("opening"));
  composer.value = state.drafts.get(id) || "";
  showError(null);
  sidebar.setCurrent(id);
  messages.clear();
  render();
  if (!narrow.matches) composer.focus();
  if (!id) return;
  byId("loading").hidden = false;
  try {
    const [conversation, all] = await Promise.all([api.get(`/conversations/${id}`), loadMessages(id, opening)]);
    if (state.opening !== opening) return;
    sidebar.put(conversation);
    messages.showAll(all);
    for (const message of all) pickUp(message);
    render();
    if (!conversation.title && all.length) setTimeout(() => nameConversation(id), UNTITLED_FOR);
  } catch (error) {
    if (state.opening !== opening) return;
    if (error instanceof api.ApiError && error.status === 404) {
      history.replaceState(null, "", location.pathname);
      open(null);
      showNotice([t("chat.gone")]);
    } else showError(error, t("chat.load.failed"));
  } finally {
    if (state.opening === opening) byId("loading").hidden = true;
  }
}

/** All messages of the active branch. The page that the newest are on is remembered: later ones follow there. */
async function loadMessages(id, opening, from = `/conversations/${id}/messages?page_size=100`) {
  const all = [];
  for (let path = from; path && state.opening === opening; ) {
    const page = await api.get(path);
    all.push(...page.results);
    state.tail = path;
    path = page.next && api.pagePath(page.next);
  }
  return all;
}

/** Show how far a reply that is still being written has come, and follow it. */
function pickUp(message) {
  if (message.status !== "streaming") return;
  const known = replies.live.get(message.id);
  if (known) messages.grow(known);
  else replies.follow(message);
}

/** Fetch what came while we were not listening. */
async function catchUp() {
  const { current, opening, tail } = state;
  if (!current || !tail) return;
  const newest = await trying(() => loadMessages(current, opening, tail));
  if (!newest || state.opening !== opening) return;
  for (const message of newest) {
    if (message.status !== "streaming") replies.live.delete(message.id);
    if (!replies.live.has(message.id)) messages.put(message);
    pickUp(message);
  }
  render();
}

// --- Messages and replies ---

async function send() {
  const content = composer.value;
  if (!content.trim() || state.sending || replies.inConversation(state.current)) return;
  const { user } = state;
  let { current: id } = state;
  const model = byId("model").value || undefined;
  state.sending = true;
  composer.value = "";
  showError(null);
  messages.put({ id: "pending", role: "user", content, status: "pending" });
  messages.toEnd();
  render();
  try {
    if (!id) {
      const conversation = await api.post("/conversations", model ? { model } : {});
      id = conversation.id;
      sidebar.put(conversation);
      if (state.current === null) {
        state.current = id;
        state.opening = Symbol("opening");
        state.tail = `/conversations/${id}/messages?page_size=100`;
        history.pushState(null, "", `#/c/${id}`);
        sidebar.setCurrent(id);
      }
    }
    await replies.send({ conversationId: id, content, model, lastId: messages.lastId });
  } catch (error) {
    if (state.user !== user) return;
    if (state.current === id) {
      messages.remove("pending");
      composer.value ||= content;
      showError(error);
    } else state.drafts.set(id, content);
    if (error.code === "quota_exceeded") loadQuota();
  } finally {
    if (state.user === user) {
      state.sending = false;
      render();
    }
  }
}

async function stop() {
  const reply = replies.inConversation(state.current);
  if (!reply || state.stopping) return;
  state.stopping = true;
  render();
  await trying(async () => {
    const message = await api.post(`/messages/${reply.id}/stop`);
    if (message.status !== "streaming") replies.handle({ type: `message.${message.status}`, conversation_id: message.conversation_id, message_id: message.id, message });
  });
  state.stopping = false;
  render();
}

function onCreated({ conversation_id: id, message, reply }, own) {
  const conversation = sidebar.get(id);
  if (conversation && message) sidebar.put({ ...conversation, updated_at: message.created_at });
  else reloadList();
  if (id !== state.current) return;
  if (own) messages.remove("pending");
  if (message) messages.put(message);
  if (reply) messages.put(reply);
  if (own) messages.toEnd();
  render();
}

function onText(reply) {
  if (reply.conversationId === state.current) messages.grow(reply);
}

function onEnded({ conversation_id: id, message }) {
  if (id === state.current) messages.put(message);
  render();
  sidebar.render();
  loadQuota();
  reloadList();
  if (!sidebar.get(id)?.title) setTimeout(() => nameConversation(id), UNTITLED_FOR);
}

function onGone(id) {
  if (id === state.current) catchUp();
  render();
}

/** Where the server wrote no title (it has no model for that, or no quota is left), the question itself is one. */
async function nameConversation(id) {
  if (!state.user) return;
  try {
    const conversation = await api.get(`/conversations/${id}`);
    sidebar.put(conversation);
    if (!conversation.title) {
      const { results } = await api.get(`/conversations/${id}/messages?page_size=1`);
      const title = [...(results[0]?.content || "").trim().split("\n")[0]].slice(0, LONGEST_TITLE).join("");
      if (!title) return;
      const headers = { "If-Match": `"${conversation.version}"` };
      sidebar.put(await api.patch(`/conversations/${id}`, { title }, { headers }));
    }
    renderHead();
  } catch (error) {
    // Deleted or named meanwhile: nothing to do. Any other failure is no loss either, a name is only a comfort.
    if (!(error instanceof api.ApiError || error instanceof api.NetworkError)) throw error;
  }
}

function socketEvent(event) {
  replies.handle(event);
  if (event.type === "quota.updated") loadQuota();
  else if (event.type === "conversation.created" || event.type === "conversation.updated") reloadList();
  else if (event.type === "conversation.deleted") {
    const id = event.conversation_id ?? event.conversation?.id;
    if (sidebar.get(id)) sidebar.drop(id);
  } else if (event.type === "message.deleted" && event.conversation_id === state.current) {
    messages.remove(event.message_id);
  }
}

function socketState(now) {
  replies.socketChanged(now === "ready");
  if (now === "ready") {
    if (state.seenReady) {
      reloadList();
      catchUp();
    }
    state.seenReady = true;
  }
  clearTimeout(state.pillTimer);
  // A short break is nobody's business; a browser that never got a socket talks over HTTP and misses nothing.
  if (now === "ready" || now === "idle") renderConnection();
  else state.pillTimer = setTimeout(renderConnection, 2000);
}

// --- What is shown ---

function render() {
  renderHead();
  const reply = replies.inConversation(state.current);
  byId("hello").hidden = !(messages.empty && !state.current && !state.sending);
  byId("send").hidden = Boolean(reply);
  byId("stop").hidden = !reply;
  byId("stop").disabled = state.stopping;
  byId("writing").textContent = reply ? t("chat.writing") : "";
  fitComposer();
}

function renderHead() {
  const conversation = sidebar.get(state.current);
  const title = state.current ? titleOf(conversation) : t("list.new");
  byId("title").textContent = title;
  document.title = state.current && conversation?.title ? `${title} · ${t("app.name")}` : t("app.name");
  renderModels();
}

function renderModels() {
  const picker = byId("model");
  const conversation = sidebar.get(state.current);
  const preferred = state.user?.preferences?.default_model || localStorage.getItem(LAST_MODEL) || "";
  const offered = state.models.some(({ id, available }) => id === preferred && available !== false);
  const value = state.current ? conversation?.model || "" : offered ? preferred : "";
  const options = [];
  if (!value) options.push(el("option", { value: "", text: t("chat.model.default") }));
  if (value && !state.models.some(({ id }) => id === value)) options.push(el("option", { value, text: value }));
  const groups = Map.groupBy ? Map.groupBy(state.models, ({ provider }) => provider) : new Map([["", state.models]]);
  for (const [provider, models] of groups) {
    const nodes = models.map(({ id, available }) =>
      el("option", { value: id, text: available === false ? t("chat.model.unavailable", { model: id }) : id, disabled: available === false }),
    );
    options.push(...(groups.size > 1 ? [el("optgroup", { label: provider }, ...nodes)] : nodes));
  }
  picker.replaceChildren(...options);
  picker.value = value;
}

async function pickModel() {
  const model = byId("model").value;
  localStorage.setItem(LAST_MODEL, model);
  const { current: id } = state;
  if (!id) return;
  const changed = await trying(() => api.patch(`/conversations/${id}`, { model }));
  if (changed) sidebar.put(changed);
  renderModels();
}

function renderConnection() {
  const pill = byId("connection");
  const closed = socket.state === "closed";
  const broken = state.seenReady && (socket.state === "waiting" || socket.state === "connecting");
  const words = !navigator.onLine ? "net.offline" : closed ? "net.closed" : broken ? "net.reconnecting" : null;
  pill.hidden = !words || !state.user;
  byId("connection-text").textContent = words ? t(words) : "";
  byId("reconnect").hidden = !closed;
}

function showNotice(lines) {
  byId("notice").hidden = lines.length === 0;
  byId("notice-words").replaceChildren(...lines.map((text, place) => el(place ? "span" : "strong", { text })));
}

/** Say above the message box what failed and what to do about it; null takes it away. */
function showError(error, title = null) {
  if (error === null) {
    showNotice([]);
    return;
  }
  if (error.name === "AbortError" || !state.user) return;
  if (error instanceof api.NetworkError) {
    showNotice(title ? [title, t("app.unreachable")] : [t("hint.network")]);
    return;
  }
  if (!(error instanceof api.ApiError)) throw error;
  if (error.status === 401) return; // the form that asks to sign in says it
  const hint = knows(`hint.${error.code}`) ? t(`hint.${error.code}`) : null;
  const details = [...new Set(error.errors.map(({ detail }) => detail))];
  const lines = [title || hint || t("hint.failed"), ...details];
  if (error.retryAfter) lines.push(t("hint.wait", { time: formatDuration(error.retryAfter) }));
  showNotice(lines);
}

function fitComposer() {
  composer.style.height = "auto";
  composer.style.height = `${composer.scrollHeight}px`;
  byId("send").disabled = !composer.value.trim() || state.sending;
}

function renderLanguage() {
  translate();
  account.render();
  sidebar.render();
  messages.retranslate();
  showQuota(state.quota);
  showError(null);
  renderConnection();
  render();
}

// --- The drawer that holds the list on narrow screens ---

function setDrawer(isOpen) {
  byId("sidebar").classList.toggle("open", isOpen);
  byId("sidebar").inert = narrow.matches && !isOpen;
  byId("backdrop").hidden = !(isOpen && narrow.matches);
  byId("drawer-open").setAttribute("aria-expanded", String(isOpen));
}

function closeDrawer() {
  const wasOpen = byId("sidebar").classList.contains("open");
  setDrawer(false);
  if (wasOpen && narrow.matches) byId("drawer-open").focus();
}

// --- Listeners ---

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
composer.addEventListener("input", fitComposer);
composer.addEventListener("keydown", (event) => {
  // Enter that chooses a word in an input method (229 where the browser reports it late) must not send.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  send();
});
byId("stop").addEventListener("click", stop);
byId("model").addEventListener("change", pickModel);
byId("notice-close").addEventListener("click", () => showError(null));
byId("splash-retry").addEventListener("click", boot);
byId("sign-out").addEventListener("click", signOut);
byId("reconnect").addEventListener("click", () => socket.retry());
for (const button of document.querySelectorAll(".new-chat")) button.addEventListener("click", () => go(null));
for (const button of document.querySelectorAll(".language")) {
  button.addEventListener("click", () => {
    switchLanguage();
    renderLanguage();
  });
}
for (const idea of document.querySelectorAll(".idea")) {
  idea.addEventListener("click", () => {
    composer.value = idea.textContent;
    fitComposer();
    composer.focus();
  });
}
byId("drawer-open").addEventListener("click", () => {
  setDrawer(true);
  byId("drawer-close").focus();
});
byId("drawer-close").addEventListener("click", closeDrawer);
byId("backdrop").addEventListener("click", closeDrawer);
narrow.addEventListener("change", () => setDrawer(false));
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && byId("sidebar").classList.contains("open")) closeDrawer();
});
addEventListener("hashchange", () => state.user && open(addressed()));
addEventListener("popstate", () => state.user && open(addressed()));
addEventListener("online", renderConnection);
addEventListener("offline", renderConnection);
api.onSessionEnded(leave);

document.documentElement.lang = language();
translate();
account.render();
setDrawer(false);
boot();
