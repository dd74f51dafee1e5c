// A small Markdown for replies: paragraphs, headings, lists, quotes, tables, code, bold, italic, links.
//
// Everything is built as DOM nodes and text, never parsed as HTML, so that nothing a model writes can run. While a
// reply grows, only the blocks that changed are built anew.

import { el, icon, copyText } from "./dom.js";
import { t } from "./i18n.js";

const DEEPEST = 6;
const FENCE = /^ {0,3}(`{3,}(?!.*`)|~{3,})\s*([^`\s]*)/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*))?$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)/;
const INTERRUPTING_ITEM = /^ *([-*+]|1[.)]) +\S/; // "2024. …" at the start of a line is still the paragraph
const TABLE_RULE_CELL = /^:?-+:?$/;

/** Split `text` into blocks `{type, raw, …}`; equal `type` and `raw` mean an equal block. */
export function parse(text) {
  const lines = text.split("\n");
  const blocks = [];
  let at = 0;
  const take = (type, end, rest = {}) => {
    blocks.push({ type, raw: lines.slice(at, end).join("\n"), lines: lines.slice(at, end), ...rest });
    at = end;
  };
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    if (line.trim() === "") at += 1;
    else if (fence) {
      let end = at + 1;
      const closing = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},} *$`);
      while (end < lines.length && !closing.test(lines[end])) end += 1;
      const code = lines.slice(at + 1, end).join("\n");
      take("code", Math.min(end + 1, lines.length), { code, language: fence[2] });
    } else if (heading) take("heading", at + 1, { level: heading[1].length, text: withoutClosing(heading[2] || "") });
    else if (RULE.test(line)) take("rule", at + 1);
    else if (QUOTE.test(line)) {
      let end = at;
      while (end < lines.length && QUOTE.test(lines[end])) end += 1;
      take("quote", end);
    } else if (ITEM.test(line)) take("list", endOfList(lines, at));
    else if (line.includes("|") && isTableRule(lines[at + 1] || "")) {
      let end = at + 2;
      while (end < lines.length && lines[end].includes("|")) end += 1;
      take("table", end);
    } else {
      let end = at + 1;
      while (end < lines.length && !startsBlock(lines[end])) end += 1;
      take("paragraph", end);
    }
  }
  return blocks;
}

function startsBlock(line) {
  return line.trim() === "" || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || INTERRUPTING_ITEM.test(line);
}

function withoutClosing(heading) {
  let end = heading.length;
  while (end > 0 && (heading[end - 1] === "#" || heading[end - 1] === " ")) end -= 1;
  const closing = heading.slice(end);
  return (closing.startsWith(" ") ? heading.slice(0, end) : heading).trim();
}

const isTableRule = (line) => line.includes("|") && cells(line).every((cell) => TABLE_RULE_CELL.test(cell));

function endOfList(lines, start) {
  const ordered = /\d/.test(ITEM.exec(lines[start])[2]);
  const margin = ITEM.exec(lines[start])[1].length;
  let end = start + 1;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    if (line.trim() === "") {
      const next = lines[end + 1] ?? "";
      const item = ITEM.exec(next);
      if (/^ {2,}\S/.test(next) || (item && /\d/.test(item[2]) === ordered && item[1].length >= margin)) continue;
      break;
    }
    const item = ITEM.exec(line);
    if (item && item[1].length <= margin && /\d/.test(item[2]) !== ordered) break;
    if (!item && !/^ {2,}/.test(line) && startsBlock(line)) break;
  }
  return end;
}

const BUILD = {
  paragraph: (block) => withInline(el("p"), block.raw),
  heading: (block) => withInline(el(`h${Math.min(block.level + 2, 6)}`), block.text),
  rule: () => el("hr"),
  code: codeBlock,
  quote: (block, depth) => fill(el("blockquote"), block.lines.map((line) => line.replace(QUOTE, "")).join("\n"), depth + 1),
  list: listBlock,
  table: tableBlock,
};

function fill(node, text, depth) {
  if (depth > DEEPEST) node.append(text);
  else for (const block of parse(text)) node.append(BUILD[block.type](block, depth));
  return node;
}

function codeBlock(block) {
  const code = el("code", { text: block.code });
  const copy = el("button", { type: "button", class: "ghost small" }, icon("copy"), el("span", { text: t("chat.copy") }));
  copy.addEventListener("click", async () => {
    await copyText(code.textContent);
    copy.lastChild.textContent = t("chat.copied");
    setTimeout(() => (copy.lastChild.textContent = t("chat.copy")), 1500);
  });
  return el("div", { class: "code" }, el("div", { class: "code-head" }, el("span", { text: block.language }), copy), el("pre", { tabindex: "0" }, code));
}

function listBlock(block, depth) {
  const first = ITEM.exec(block.lines[0]);
  const ordered = /\d/.test(first[2]);
  const list = el(ordered ? "ol" : "ul", { start: ordered && parseInt(first[2], 10) !== 1 ? parseInt(first[2], 10) : null });
  const items = [];
  for (const line of block.lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= first[1].length + 1) items.push({ indent: item[0].length, lines: [line.slice(item[0].length)] });
    else {
      const { indent, lines } = items[items.length - 1];
      const spaces = /^ */.exec(line)[0].length;
      lines.push(line.slice(Math.min(spaces, indent)));
    }
  }
  for (const { lines } of items) {
    const item = fill(el("li"), lines.join("\n"), depth + 1);
    // A single paragraph needs no margins of its own.
    if (item.firstElementChild?.tagName === "P") item.firstElementChild.replaceWith(...item.firstElementChild.childNodes);
    list.append(item);
  }
  return list;
}

const cells = (line) =>
  line.trim().replace(/^\|/, "").replace(/\|$/, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));

function tableBlock(block) {
  const [head, , ...rows] = block.lines.map(cells);
  const row = (tag, values) => el("tr", {}, ...head.map((_, column) => withInline(el(tag), values[column] || "")));
  const table = el("table", {}, el("thead", {}, row("th", head)), el("tbody", {}, ...rows.map((values) => row("td", values))));
  return el("div", { class: "table", tabindex: "0" }, table);
}

// Each alternative begins with a fixed character and runs to a closing one on the same stretch: no backtracking to
// speak of, however long the text.
const INLINE = new RegExp(
  [
    "(?<!`)(?<ticks>`+)(?!`)(?<code>[^`]+)\\k<ticks>(?!`)",
    "\\*\\*(?<bold>[^*\\n]+(?:\\*[^*\\n]+)*)\\*\\*",
    "__(?<bold2>[^_\\n]+)__(?![\\w])",
    "~~(?<strike>[^~\\n]+)~~",
    "\\*(?<italic>[^*\\s](?:[^*\\n]*[^*\\s])?)\\*",
    "(?<![\\w])_(?<italic2>[^_\\s](?:[^_\\n]*[^_\\s])?)_(?![\\w])",
    "!?\\[(?<label>[^\\[\\]\\n]+)\\]\\((?<target>[^()\\s]+(?:\\([^()\\s]*\\)[^()\\s]*)*)(?: \"[^\"\\n]*\")?\\)",
    "(?<url>https?://[^\\s<>\"'`]*[^\\s<>\"'`.,:;!?)\\]}*_，。！？；：）】」])",
    "\\\\(?<escaped>[\\\\`*_~\\[\\]()#+\\-.!|>])",
  ].join("|"),
  "gu",
);

function withInline(node, text, depth = 0) {
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    node.append(text.slice(last, match.index));
    node.append(inlineNode(match, depth));
    last = match.index + match[0].length;
  }
  node.append(text.slice(last));
  return node;
}

function inlineNode({ 0: all, groups }, depth) {
  const inside = (tag, text) => (depth < DEEPEST ? withInline(el(tag), text, depth + 1) : text);
  if (groups.code !== undefined) return el("code", { text: groups.code });
  if (groups.bold ?? groups.bold2) return inside("strong", groups.bold ?? groups.bold2);
  if (groups.strike) return inside("s", groups.strike);
  if (groups.italic ?? groups.italic2) return inside("em", groups.italic ?? groups.italic2);
  if (groups.escaped) return groups.escaped;
  const target = groups.url ?? groups.target;
  // Only what cannot run: no javascript:, no data:, nothing relative.
  if (!/^(https?:\/\/|mailto:)/i.test(target)) return all;
  return el("a", { href: target, target: "_blank", rel: "noopener noreferrer nofollow", text: groups.label ?? groups.url });
}

/** Shows a text that may grow in `node`, building only what changed. */
export class MarkdownView {
  constructor(node) {
    this.node = node;
    this.blocks = [];
  }

  show(text) {
    const blocks = parse(text);
    blocks.forEach((block, place) => this.place(block, place));
    while (this.node.children.length > blocks.length) this.node.lastElementChild.remove();
    this.blocks = blocks;
  }

  place(block, place) {
    const before = this.blocks[place];
    const node = this.node.children[place];
    if (node && before.type === block.type && before.raw === block.raw) return;
    if (node && block.type === "code" && before.type === "code" && before.language === block.language) {
      node.querySelector("code").textContent = block.code;
      return;
    }
    const built = BUILD[block.type](block, 0);
    if (node) node.replaceWith(built);
    else this.node.append(built);
  }

  /** The texts of the blocks from `from` on that will change no more: all but the last, unless it is `whole`. */
  finished(from, { whole = false } = {}) {
    const end = whole ? this.blocks.length : this.blocks.length - 1;
    return [...this.node.children].slice(from, Math.max(from, end)).map((node) => node.textContent);
  }
}
