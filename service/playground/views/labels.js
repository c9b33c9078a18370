// Labels as bars, with the doubt that the model states.

import { h, replace } from "../dom.js";
import { percent } from "../numbers.js";
import { BesidePicture, heatButton } from "./picture.js";

export class LabelsView extends BesidePicture {
  static fits = (answer, result) => Array.isArray(result.predictions) && (result.predictions.length === 0 || "score" in result.predictions[0]);

  show({ results: [result] }, context) {
    this.picture.show(result, context);
    const { predictions, prediction_set: set, abstain, heatmap } = result;
    replace(
      this.side,
      abstain ? h("p", { class: "warning" }, "This is like nothing that the model was trained on: do not rely on its labels.") : null,
      bars(predictions.map(({ label, score }) => [label, score])),
      set ? h("p", { class: "hint" }, set.labels.length ? `In ${Math.round(100 * set.coverage)} of 100 pictures, the truth is among: ${set.labels.join(", ")}.` : "It fits none of the labels.") : null,
      heatmap ? heatButton(this.picture, heatmap.values, `What speaks for “${heatmap.label}”`, true) : null,
    );
  }

  say({ results: [result] }) {
    const [best] = result.predictions;
    return best ? `${best.label}, ${percent(best.score)}.` : "no label.";
  }
}

// [["cat", 0.9], …] as a list whose bars are as long as the scores; a third entry says it in other words than percent.
export function bars(rows) {
  return h(
    "ol",
    { class: "bars" },
    rows.map(([name, score, words = percent(score)]) => h("li", {}, h("span", { class: "fill", "aria-hidden": "true", style: { width: `${100 * score}%` } }), h("span", {}, name), h("span", { class: "number" }, words))),
  );
}
