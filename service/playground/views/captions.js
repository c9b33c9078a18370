// Sentences, each word a button that lights up where the model looked for it.

import { h, replace } from "../dom.js";
import { percent } from "../numbers.js";
import { BesidePicture } from "./picture.js";

export class CaptionsView extends BesidePicture {
  static fits = (answer, result) => Array.isArray(result.captions);
  static fitsPart = ({ data }) => "image" in data && "word" in data;

  show({ results: [result] }, context) {
    this.picture.show(result, context);
    replace(
      this.side,
      h("ol", { class: "captions" }, result.captions.map((caption) => h("li", {}, this.#sentence(caption), h("small", {}, ` ${percent(caption.score)} a word`)))),
      result.captions.some((caption) => caption.words) ? h("p", { class: "hint" }, "Point at a word, or press it, to see where the model looked. The fainter a word, the less sure it was.") : null,
    );
    const words = [...this.side.querySelectorAll("button")];
    this.#light(words.find((button) => button.dataset.peak === "1"));
  }

  showParts(parts, { file }) {
    this.picture.open(file);
    const words = parts.map(({ data }) => data);
    const caption = { text: words.map(({ word }) => word).join(" "), words: words.every(({ heatmap }) => heatmap) ? words : null };
    replace(this.side, h("ol", { class: "captions" }, h("li", {}, this.#sentence(caption))));
    this.#light([...this.side.querySelectorAll("button")].at(-1));
  }

  #sentence({ text, words }) {
    if (!words) return h("p", {}, text);
    const spread = words.map(({ heatmap }) => mean(heatmap.values.flat()));
    const narrowest = spread.indexOf(Math.min(...spread));
    return h(
      "p",
      {},
      words.map(({ word, probability, heatmap }, index) => {
        const button = h("button", { type: "button", class: "word", "aria-pressed": "false", title: `probability ${percent(probability)}`, style: { "--sure": String(probability) } }, word);
        button.dataset.peak = index === narrowest ? "1" : "0";
        button.rows = heatmap.values;
        for (const event of ["mouseenter", "focus", "click"]) button.addEventListener(event, () => this.#light(button));
        return [button, " "];
      }),
    );
  }

  #light(button) {
    if (!button) return;
    for (const other of this.side.querySelectorAll("[aria-pressed]")) other.setAttribute("aria-pressed", String(other === button));
    this.picture.heat(button.rows);
  }

  say({ results: [{ captions }] }) {
    return captions[0] ? `“${captions[0].text}”` : "nothing.";
  }
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
