// Numbers with the interval in which the truth lies.

import { h, replace } from "../dom.js";
import { short } from "../numbers.js";
import { BesidePicture, heatButton } from "./picture.js";

export class NumbersView extends BesidePicture {
  static fits = (answer, result) => Array.isArray(result.values) && "lower" in (result.values[0] ?? {});

  show({ results: [result] }, context) {
    this.picture.show(result, context);
    replace(this.side, result.values.map((value) => this.#value(value, context.request.query?.coverage ?? 0.9)));
  }

  #value({ name, unit, value, lower, upper, heatmap }, coverage) {
    const end = Math.max(upper, 0) * 1.15 || 1;
    const start = Math.min(lower, 0);
    const place = (number) => `${(100 * (number - start)) / (end - start)}%`;
    const width = `${(100 * (upper - lower)) / (end - start)}%`;
    return h(
      "div",
      { class: "estimate" },
      h("p", {}, h("strong", {}, `${short(value)} ${unit}`), ` ${name.replaceAll("_", " ")}`),
      h("div", { class: "interval", "aria-hidden": "true" }, h("span", { class: "reach", style: { left: place(lower), width } }), h("span", { class: "median", style: { left: place(value) } })),
      h("p", { class: "hint" }, `from ${short(lower)} to ${short(upper)}, with a probability of ${Math.round(100 * coverage)} %`),
      heatmap ? heatButton(this.picture, heatmap.values, "Where it comes from") : null,
    );
  }

  say({ results: [{ values }] }) {
    return `${values.map(({ name, value, unit }) => `${name.replaceAll("_", " ")} ${short(value)} ${unit}`).join(", ")}.`;
  }
}
