// The words of the page, English and Chinese side by side, so that neither can lack one.

const WORDS = {
  "app.name": ["Chat", "对话"],
  "app.skip": ["Skip to the message box", "跳到输入框"],
  "app.starting": ["Starting…", "正在启动…"],
  "app.unreachable": ["The server can't be reached.", "无法连接到服务器。"],
  "app.retry": ["Try again", "重试"],
  "app.language": ["切换到中文", "Switch to English"],
  "app.language.short": ["中文", "EN"],
  "app.close": ["Close", "关闭"],
  "app.cancel": ["Cancel", "取消"],
  "app.save": ["Save", "保存"],
  "app.more": ["Show more", "显示更多"],

  "auth.signin": ["Sign in", "登录"],
  "auth.signup": ["Create account", "注册"],
  "auth.welcome": ["Welcome back", "欢迎回来"],
  "auth.welcome.text": ["Sign in to go on with your conversations.", "登录后继续你的对话。"],
  "auth.create": ["Create your account", "创建账号"],
  "auth.create.text": ["A name, an e-mail address and a password are all it takes.", "只需用户名、邮箱和密码。"],
  "auth.username": ["User name", "用户名"],
  "auth.login": ["User name or e-mail", "用户名或邮箱"],
  "auth.email": ["E-mail", "邮箱"],
  "auth.password": ["Password", "密码"],
  "auth.password.show": ["Show password", "显示密码"],
  "auth.password.hint": ["At least 8 characters, of more than one kind.", "至少 8 个字符，不能只有一种字符。"],
  "auth.otp": ["Code from your authenticator app", "验证器应用中的验证码"],
  "auth.otp.needed": ["Enter the code from your authenticator app.", "请输入验证器应用中的验证码。"],
  "auth.invite": ["Invitation code", "邀请码"],
  "auth.have": ["Already have an account?", "已有账号？"],
  "auth.none": ["New here?", "还没有账号？"],
  "auth.busy": ["One moment…", "请稍候…"],
  "auth.ended": ["Your session has ended. Please sign in again.", "登录已失效，请重新登录。"],
  "auth.disabled": ["This account is disabled. Ask an administrator.", "该账号已被停用，请联系管理员。"],
  "auth.signout": ["Sign out", "退出登录"],
  "auth.required": ["Please fill this in.", "请填写此项。"],

  "list.title": ["Conversations", "对话列表"],
  "list.new": ["New chat", "新对话"],
  "list.open": ["Open the list of conversations", "打开对话列表"],
  "list.hide": ["Close the list of conversations", "关闭对话列表"],
  "list.empty": ["Nothing here yet. Your conversations will be listed here.", "暂无对话，发起后会显示在这里。"],
  "list.untitled": ["New conversation", "新的对话"],
  "list.actions": ["Options for “{title}”", "“{title}”的选项"],
  "list.writing": ["a reply is being written", "正在回复"],
  "list.rename": ["Rename", "重命名"],
  "list.rename.label": ["Title", "标题"],
  "list.delete": ["Delete", "删除"],
  "list.delete.title": ["Delete this conversation?", "删除这个对话？"],
  "list.delete.text": ["“{title}” and all its messages will be gone for good.", "“{title}”及其全部消息将被永久删除。"],
  "list.pinned": ["Pinned", "置顶"],
  "list.today": ["Today", "今天"],
  "list.yesterday": ["Yesterday", "昨天"],
  "list.week": ["Previous 7 days", "最近 7 天"],
  "list.older": ["Older", "更早"],

  "chat.hello": ["What can I help with?", "有什么可以帮你？"],
  "chat.hello.text": ["Ask anything. Replies stream in as they are written.", "随便问，回复会边写边显示。"],
  "chat.idea.1": ["Explain recursion with a small example", "用一个小例子解释递归"],
  "chat.idea.2": ["Draft a friendly reminder e-mail", "写一封友好的提醒邮件"],
  "chat.idea.3": ["Plan a weekend in Kyoto", "规划一个京都周末行程"],
  "chat.messages": ["Messages", "消息"],
  "chat.loading": ["Loading messages…", "正在加载消息…"],
  "chat.load.failed": ["The messages could not be loaded.", "消息加载失败。"],
  "chat.gone": ["This conversation does not exist (any more).", "该对话不存在或已被删除。"],
  "chat.earlier": ["Show earlier messages ({count})", "显示更早的消息（{count}）"],
  "chat.you": ["You", "你"],
  "chat.system": ["System", "系统"],
  "chat.assistant": ["Assistant", "助手"],
  "chat.writing": ["The reply is being written.", "正在生成回复。"],
  "chat.latest": ["Jump to the latest message", "跳到最新消息"],
  "chat.message": ["Message", "消息"],
  "chat.placeholder": ["Write a message…", "输入消息…"],
  "chat.keys": ["Enter sends, Shift+Enter starts a new line", "Enter 发送，Shift+Enter 换行"],
  "chat.send": ["Send", "发送"],
  "chat.stop": ["Stop", "停止"],
  "chat.model": ["Model", "模型"],
  "chat.model.default": ["Default model", "默认模型"],
  "chat.model.unavailable": ["{model} (not available)", "{model}（不可用）"],
  "chat.copy": ["Copy", "复制"],
  "chat.copied": ["Copied", "已复制"],
  "chat.reasoning": ["Reasoning", "思考过程"],
  "chat.offline": ["offline model", "离线模型"],
  "chat.tokens": ["{count} tokens", "{count} 个 token"],
  "chat.tokens.estimated": ["about {count} tokens", "约 {count} 个 token"],
  "chat.again": ["Edit and resend", "编辑后重发"],

  "status.stopped": ["You stopped this reply.", "已停止生成。"],
  "status.interrupted": ["The server went away while this was being written. What was written so far is kept.", "服务器在生成时中断，已保留写好的部分。"],
  "status.failed": ["The reply failed.", "回复失败。"],
  "status.length": ["The reply reached its maximum length.", "回复已达到长度上限。"],

  "hint.upstream_timeout": ["The model did not answer in time. Try again in a moment.", "模型未能及时响应，请稍后重试。"],
  "hint.upstream_rate_limited": ["The model is busy. Wait a minute, then try again.", "模型繁忙，请等一分钟后重试。"],
  "hint.upstream_auth": ["The server's key for the model was refused. Its administrator has to look at it.", "服务器的模型密钥被拒绝，需要管理员处理。"],
  "hint.upstream_rejected": ["The model refused this request. Try other words or another model.", "模型拒绝了该请求，请换个说法或换个模型。"],
  "hint.upstream_unavailable": ["The model can't be reached right now. Try again, or pick another model.", "暂时无法连接模型，请重试或换个模型。"],
  "hint.context_length_exceeded": ["The message is too long for this model. Shorten it, or pick a model with a larger window.", "消息超出该模型的长度，请缩短或换用窗口更大的模型。"],
  "hint.quota_exceeded": ["Your quota is used up.", "配额已用完。"],
  "hint.rate_limited": ["That was a little fast.", "请求过于频繁。"],
  "hint.wait": ["You can go on in {time}.", "{time}后可以继续。"],
  "hint.model_not_found": ["This model is not offered any more. Pick another.", "该模型已不可用，请换一个。"],
  "hint.network": ["The server can't be reached. Your message is still in the box.", "无法连接到服务器，消息仍保留在输入框中。"],
  "hint.failed": ["Something went wrong. Try again.", "出错了，请重试。"],

  "net.reconnecting": ["Reconnecting…", "正在重新连接…"],
  "net.offline": ["You are offline", "网络已断开"],
  "net.closed": ["Disconnected here", "此处连接已断开"],
  "net.reconnect": ["Reconnect", "重新连接"],

  "quota.title": ["Quota", "配额"],
  "quota.plan": ["{plan} plan", "{plan}套餐"],
  "plan.free": ["Free", "免费"],
  "plan.vip": ["VIP", "VIP "],
  "quota.unlimited": ["No limits", "无限制"],
  "quota.line": ["{used} of {limit} {name}", "{name} {used} / {limit}"],
  "quota.resets": ["resets {time}", "{time}重置"],
  "quota.requests_per_minute": ["requests a minute", "每分钟请求"],
  "quota.requests_per_day": ["requests today", "今日请求"],
  "quota.tokens_per_day": ["tokens today", "今日 token"],
  "quota.tokens_per_month": ["tokens this month", "本月 token"],
  "quota.cost_per_day": ["dollars today", "今日费用（美元）"],
  "quota.cost_per_month": ["dollars this month", "本月费用（美元）"],
  "quota.concurrent_generations": ["replies at once", "同时回复"],
  "quota.storage_bytes": ["bytes stored", "存储（字节）"],
};

const LANGUAGES = ["en", "zh-Hans"];
const KEPT = "language";

let index = startingLanguage();

function startingLanguage() {
  const kept = LANGUAGES.indexOf(localStorage.getItem(KEPT));
  if (kept >= 0) return kept;
  const wanted = (navigator.languages || [navigator.language]).find((tag) => /^(en|zh)\b/i.test(tag));
  return wanted && /^zh\b/i.test(wanted) ? 1 : 0;
}

/** The language in force, as a tag for `lang`, `Intl` and Accept-Language. */
export const language = () => LANGUAGES[index];

/** Change to the other language and keep the choice. */
export function switchLanguage() {
  index = 1 - index;
  localStorage.setItem(KEPT, LANGUAGES[index]);
}

export const knows = (key) => key in WORDS;

/** Return the words of `key`, `{name}`s filled in. An unknown key is returned as it is. */
export function t(key, values = {}) {
  const words = WORDS[key];
  return words ? words[index].replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all) : key;
}

/** Put the words of the language in force on everything under `root` that names a key. */
export function translate(root = document) {
  document.documentElement.lang = language();
  document.title = t("app.name");
  for (const node of root.querySelectorAll("[data-i18n]")) node.textContent = t(node.dataset.i18n);
  for (const node of root.querySelectorAll("[data-i18n-label]")) {
    node.setAttribute("aria-label", t(node.dataset.i18nLabel));
    if (node.matches("button")) node.title = t(node.dataset.i18nLabel);
  }
  for (const node of root.querySelectorAll("[data-i18n-placeholder]")) node.placeholder = t(node.dataset.i18nPlaceholder);
}

export const formatNumber = (value) => new Intl.NumberFormat(language(), { maximumFractionDigits: 2 }).format(value);

export const formatTime = (iso) =>
  new Intl.DateTimeFormat(language(), { dateStyle: "medium", timeStyle: "short" }).format(new Date(iso));

/** Say how far `seconds` are, in one unit: "5 minutes". */
export function formatDuration(seconds) {
  const [unit, size] = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]].find(([, size]) => seconds >= size) || ["second", 1];
  return new Intl.NumberFormat(language(), { style: "unit", unit, unitDisplay: "long" }).format(Math.ceil(seconds / size));
}

/** Say when `iso` is, seen from now: "in 5 hours". */
export function formatRelative(iso) {
  const seconds = Math.max(1, (new Date(iso) - Date.now()) / 1000);
  const [unit, size] = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]].find(([, size]) => seconds >= size);
  return new Intl.RelativeTimeFormat(language()).format(Math.ceil(seconds / size), unit);
}
