// Light or dark: as the system says, or as chosen here.

import { fresh, h } from "./dom.js";

const CHOICE = "gridloop-theme";
const root = document.documentElement;
const listeners = new Set();

apply(localStorage.getItem(CHOICE) ?? "");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);

function apply(theme) {
  if (theme) root.dataset.theme = theme;
  else delete root.dataset.theme;
}

function tell() {
  for (const listener of listeners) listener();
}

// Calls back whenever colours have changed: canvases have to be drawn again.
export function onTheme(listener) {
  listeners.add(listener);
}

export const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

export function themeSwitch() {
  const id = fresh("theme");
  const choices = [["", "as the system"], ["light", "light"], ["dark", "dark"]];
  const select = h("select", { id }, choices.map(([value, words]) => h("option", { value }, words)));
  select.value = root.dataset.theme ?? "";
  select.addEventListener("change", () => {
    if (select.value) localStorage.setItem(CHOICE, select.value);
    else localStorage.removeItem(CHOICE);
    apply(select.value);
    tell();
  });
  return h("div", { class: "theme" }, h("label", { for: id }, "Colours"), select);
}
