// Any answer: its fields, one below the other.

import { h, replace } from "../dom.js";
import { readable } from "../json.js";

export class FieldsView {
  constructor() {
    this.element = h("div", {});
  }

  show(answer) {
    const { model, ...fields } = answer;
    const rows = Object.entries(fields).map(([name, value]) => {
      const text = readable(value);
      return h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, text.includes("\n") ? h("pre", { tabindex: 0, "aria-label": name }, text) : text));
    });
    replace(this.element, h("table", { class: "plain" }, h("tbody", {}, rows)));
  }
}
