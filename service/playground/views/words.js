// Continuations of a text, and how surprising each of its words was to the model.

import { rest } from "../inputs/text.js";
import { h, replace } from "../dom.js";
import { percent } from "../numbers.js";

const MOST_BITS = 16; // as surprising as one word of 65,536

export class WordsView {
  static fits = (answer) => Array.isArray(answer.predictions) && "state" in answer && "completing" in answer;
  static fitsPart = ({ data }) => "word" in data && Object.keys(data).every((name) => name === "word" || name === "place");

  constructor() {
    this.words = h("ol", { class: "bars next", "aria-label": "Next words" });
    this.surprise = h("ol", { class: "surprise", "aria-label": "Surprise of each word, in bits" });
    this.sent = h("p", { class: "hint sent" });
    this.element = h("div", {}, this.words, h("h3", {}, "How surprising each word was"), this.surprise, h("p", { class: "hint" }, "In bits: 1 is as likely as a coin's side, 10 one in a thousand. The darker, the more surprising."), h("h3", {}, "The state travels along"), this.sent);
  }

  show({ predictions, completing }, { input, tokens, whole, sent }) {
    replace(
      this.words,
      predictions.map(({ text, score }) =>
        h(
          "li",
          {},
          h("span", { class: "fill", "aria-hidden": "true", style: { width: `${100 * score}%` } }),
          h("button", { type: "button", class: "word", onclick: () => input.accept(rest(text, completing, whole)) }, text),
          h("span", { class: "number" }, percent(score)),
        ),
      ),
    );
    replace(
      this.surprise,
      tokens.map(({ token, surprisal }) => h("li", { style: { "--bits": `${Math.min(100, (100 * surprisal) / MOST_BITS)}%` } }, h("span", {}, token), h("small", {}, surprisal.toFixed(1)))),
    );
    this.sent.textContent = sent;
  }

  showParts(parts) {
    replace(this.words, h("li", {}, h("span", {}, parts.map(({ data }) => data.word).join(" "))));
  }

  say({ predictions, completing }) {
    const words = predictions.slice(0, 3).map(({ text }) => text);
    return `${completing === null ? "next" : `“${completing}” may become`} ${words.join(", ") || "nothing"}.`;
  }
}
