// Boxes with labels on the picture.

import { h, replace, svg } from "../dom.js";
import { percent, plural } from "../numbers.js";
import { BesidePicture } from "./picture.js";

// Told apart on light and on dark pictures; a label keeps its colour.
const COLOURS = ["#e6194b", "#2a7fff", "#1f9d3a", "#f58231", "#a12ae0", "#00a3a3", "#d4b000", "#f032e6"];

export class BoxesView extends BesidePicture {
  static fits = (answer, result) => Array.isArray(result.detections);

  show({ results: [result] }, context) {
    this.picture.show(result, context);
    const { width, height, detections } = result;
    const unit = Math.max(width, height) / 100;
    this.shapes = detections.map(({ label, index, box }) => {
      const colour = COLOURS[index % COLOURS.length];
      const [x, y, w, t] = [box.xmin, box.ymin, box.xmax - box.xmin, box.ymax - box.ymin];
      const under = y < 4 * unit;
      return svg(
        "g",
        {},
        svg("rect", { x, y, width: w, height: t, fill: "none", stroke: colour, "stroke-width": unit * 0.6 }),
        svg("rect", { x, y: under ? y : y - 4 * unit, width: label.length * unit * 2 + unit, height: 4 * unit, fill: colour }),
        svg("text", { x: x + unit * 0.5, y: (under ? y + 4 * unit : y) - unit, fill: "#fff", "font-size": unit * 3.3 }, label),
      );
    });
    this.picture.draw(width, height, this.shapes);
    replace(this.side, detections.length ? this.#list(detections) : h("p", {}, "Nothing was found. Try a lower threshold in the options."));
  }

  #list(detections) {
    const light = (index) => this.shapes.forEach((shape, other) => shape.classList.toggle("dim", index !== null && index !== other));
    return h(
      "ol",
      { class: "found" },
      detections.map(({ label, score, index, box }, place) =>
        h(
          "li",
          {},
          h(
            "button",
            { type: "button", class: "small", onmouseenter: () => light(place), onmouseleave: () => light(null), onfocus: () => light(place), onblur: () => light(null) },
            h("i", { class: "dot", "aria-hidden": "true", style: { background: COLOURS[index % COLOURS.length] } }),
            `${label} ${percent(score)}`,
          ),
          h("small", {}, ` ${Math.round(box.xmin)}, ${Math.round(box.ymin)} to ${Math.round(box.xmax)}, ${Math.round(box.ymax)}`),
        ),
      ),
    );
  }

  say({ results: [{ detections }] }) {
    const counts = new Map();
    for (const { label } of detections) counts.set(label, (counts.get(label) ?? 0) + 1);
    return `${plural(detections.length, "thing")} found${counts.size ? `: ${[...counts].map(([label, count]) => `${count} × ${label}`).join(", ")}` : ""}.`;
  }
}
