// Markdown of model cards as elements: headings, paragraphs, lists, tables, code, emphasis, links to the web.
// What it does not know stays text, so nothing in a card can become a script.

import { h } from "./dom.js";

export function markdown(text) {
  const lines = text.replace(/<!--[\s\S]*?-->/g, "").split(/\r?\n/);
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    if (!line.trim()) {
      at++;
    } else if (/^(```|~~~)/.test(line)) {
      const fence = line.slice(0, 3);
      let end = at + 1;
      while (end < lines.length && !lines[end].startsWith(fence)) end++;
      blocks.push(h("pre", { tabindex: 0 }, lines.slice(at + 1, end).join("\n")));
      at = end + 1;
    } else if (/^#{1,6} /.test(line)) {
      const [, marks, title] = line.match(/^(#+) +(.*?)#*$/);
      blocks.push(h(`h${Math.min(6, marks.length + 1)}`, {}, inline(title)));
      at++;
    } else if (/^\s*\|/.test(line) && /^\s*\|?[\s:|-]+$/.test(lines[at + 1] ?? "")) {
      let end = at + 2;
      while (end < lines.length && /^\s*\|/.test(lines[end])) end++;
      blocks.push(table(lines.slice(at, end)));
      at = end;
    } else if (/^\s*([*+-]|\d+[.)]) /.test(line)) {
      let end = at + 1;
      while (end < lines.length && (/^\s*([*+-]|\d+[.)]) /.test(lines[end]) || /^\s+\S/.test(lines[end]))) end++;
      blocks.push(list(lines.slice(at, end)));
      at = end;
    } else if (/^> ?/.test(line)) {
      let end = at + 1;
      while (end < lines.length && /^> ?/.test(lines[end])) end++;
      blocks.push(h("blockquote", {}, inline(lines.slice(at, end).map((text) => text.replace(/^> ?/, "")).join(" "))));
      at = end;
    } else {
      let end = at + 1;
      while (end < lines.length && lines[end].trim() && !/^(#{1,6} |```|~~~|\s*\||\s*[*+-] |> )/.test(lines[end])) end++;
      blocks.push(h("p", {}, inline(lines.slice(at, end).join(" "))));
      at = end;
    }
  }
  return h("div", { class: "markdown" }, blocks);
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => inline(cell.trim().replaceAll("\\|", "|")));
}

function table([head, , ...rows]) {
  const body = rows.map((row) => h("tr", {}, cells(row).map((cell) => h("td", {}, cell))));
  const first = h("tr", {}, cells(head).map((cell) => h("th", { scope: "col" }, cell)));
  return h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Table" }, h("table", {}, h("thead", {}, first), h("tbody", {}, body)));
}

function list(lines) {
  const items = [];
  for (const line of lines) {
    const item = line.match(/^\s*(?:[*+-]|\d+[.)]) (.*)$/);
    if (item) items.push([item[1]]);
    else items.at(-1).push(line.trim());
  }
  return h(/^\s*\d/.test(lines[0]) ? "ol" : "ul", {}, items.map((words) => h("li", {}, inline(words.join(" ")))));
}

const MARKS = /(`+)(.+?)\1|\*\*(.+?)\*\*|\*([^*\s][^*]*?)\*|!\[([^\]]*)\]\([^)]*\)|\[([^\]]+)\]\(([^)\s]+)[^)]*\)|<(https?:\/\/[^>\s]+)>/;

export function inline(text) {
  const parts = [];
  for (let match; (match = MARKS.exec(text)); text = text.slice(match.index + match[0].length)) {
    parts.push(text.slice(0, match.index));
    const [, , code, strong, emphasis, picture, words, target, address] = match;
    if (code !== undefined) parts.push(h("code", {}, code));
    else if (strong) parts.push(h("strong", {}, inline(strong)));
    else if (emphasis) parts.push(h("em", {}, inline(emphasis)));
    else if (picture !== undefined) parts.push(picture ? `[picture: ${picture}]` : "");
    else if (address) parts.push(link(address, [address]));
    else parts.push(/^https?:\/\//.test(target) ? link(target, inline(words)) : h("span", {}, inline(words)));
  }
  return [...parts, text];
}

const link = (target, words) => h("a", { href: target, rel: "noreferrer noopener", target: "_blank" }, words);
