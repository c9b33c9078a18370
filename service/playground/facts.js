// What a model is, before it is asked: licence, figures, labels, card.

import { getJson } from "./api.js";
import { RESTRICTED } from "./catalogue.js";
import { details, h, replace } from "./dom.js";
import { markdown } from "./markdown.js";
import { plural, short, size } from "./numbers.js";

const FIRST_FIGURES = 4;

export function facts({ model, version }) {
  const licence = version.licence || model.licence || "not stated";
  const restricted = RESTRICTED.test(licence);
  const figures = Object.entries(version.metrics ?? model.metrics ?? {});
  const card = h("div", { class: "card-text" });
  const about = details("Model card", card);
  about.addEventListener("toggle", () => about.open && !card.firstChild && show(model.name, card));
  return h(
    "div",
    { class: "facts" },
    restricted
      ? h("p", { class: "warning", role: "note" }, h("strong", {}, "Restricted use: "), licence)
      : null,
    h("p", {}, model.architecture ? h("span", { class: "tag" }, model.architecture.toUpperCase()) : null, model.description),
    h(
      "dl",
      {},
      restricted ? null : [h("dt", {}, "Licence"), h("dd", {}, licence)],
      version.size_bytes ? [h("dt", {}, "Size"), h("dd", {}, size(version.size_bytes))] : null,
      model.labels ? [h("dt", {}, "Labels"), h("dd", {}, labels(model.labels))] : null,
      model.values ? [h("dt", {}, "Estimates"), h("dd", {}, model.values.map(({ name, unit }) => `${name.replaceAll("_", " ")} (${unit})`).join(", "))] : null,
      figures.length ? [h("dt", {}, "Figures"), h("dd", {}, table(figures))] : null,
    ),
    about,
  );
}

function labels(names) {
  if (names.length <= 12) return names.join(", ");
  return details(`${plural(names.length, "label")}: ${names.slice(0, 6).join(", ")} …`, h("p", {}, names.join(", ")));
}

function table(figures) {
  const rows = (part) => h("table", {}, h("tbody", {}, part.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, short(value))))));
  const rest = figures.slice(FIRST_FIGURES);
  return [rows(figures.slice(0, FIRST_FIGURES)), rest.length ? details(`${plural(rest.length, "more figure")}`, rows(rest)) : null];
}

async function show(name, element) {
  replace(element, h("p", { role: "status" }, "Fetching the card …"));
  try {
    replace(element, markdown((await getJson(`v1/models/${encodeURIComponent(name)}`)).card));
  } catch (problem) {
    replace(element, h("p", { class: "problem", role: "alert" }, problem.message));
  }
}
