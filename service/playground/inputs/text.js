// A text that is being typed: asked after every letter, the likeliest continuation in grey, taken with Tab.
//
// Each answer's state is kept with the text that it stands for. What is typed next is sent with the longest kept text that
// it begins with, so a request holds some letters and a state, however long the text is.

import { fresh, h, replace } from "../dom.js";
import { size } from "../numbers.js";

const KEPT = 300; // states for each model; deleting further back sends the text anew

export class TextInput {
  handles = new Set(["text", "state"]);
  live = true;
  carriesState = true;

  constructor(task, panel) {
    this.task = task;
    this.panel = panel;
    const id = fresh("text");
    this.area = h("textarea", { id, rows: 4, spellcheck: "false", autocomplete: "off", autocapitalize: "none", "aria-describedby": `${id}-hint` });
    this.ghost = h("div", { class: "ghost", "aria-hidden": "true" });
    this.area.addEventListener("input", () => this.#typed());
    this.area.addEventListener("scroll", () => (this.ghost.scrollTop = this.area.scrollTop));
    this.area.addEventListener("keydown", (event) => this.#pressed(event));
    this.element = h(
      "div",
      {},
      h("label", { for: id }, "Type here"),
      h("div", { class: "typing" }, this.ghost, this.area),
      h("p", { class: "hint", id: `${id}-hint` }, "Tab takes the grey words; Escape puts them away, and Tab then leaves the field."),
    );
  }

  #typed() {
    this.#suggest("");
    this.#ask();
  }

  // One request at a time: letters that are typed meanwhile are asked about together.
  async #ask() {
    this.again = true;
    if (this.asking) return;
    this.asking = true;
    while (this.again) {
      this.again = false;
      await this.panel.ask();
    }
    this.asking = false;
  }

  #pressed(event) {
    if (event.key === "Tab" && !event.shiftKey && this.suggestion) {
      event.preventDefault();
      this.accept(this.suggestion);
    } else if (event.key === "Escape") {
      this.#suggest("");
    }
  }

  // Add the rest of a continuation to the text.
  accept(rest) {
    this.area.value += rest;
    this.area.focus();
    this.area.setSelectionRange(this.area.value.length, this.area.value.length);
    this.#typed();
  }

  #suggest(rest) {
    this.suggestion = rest;
    replace(this.ghost, h("span", { class: "typed" }, this.area.value), rest);
    this.ghost.scrollTop = this.area.scrollTop;
  }

  async useSample({ fields = {} }) {
    this.area.value = fields.text ?? "";
    this.#suggest("");
    this.area.focus({ preventScroll: true });
  }

  request(column, fields) {
    const text = this.area.value;
    const kept = (column.memory.kept ??= []);
    if (this.panel.columns.length > 1) kept.length = 0; // models are compared by the whole text: a state is one model's alone
    while (kept.length && !text.startsWith(kept.at(-1).text)) kept.pop();
    const last = kept.at(-1);
    if (!last && !text) return null;
    const json = { model: column.choice.value, text: last ? text.slice(last.text.length) : text, ...fields };
    if (last) json.state = last.state;
    column.memory.whole = text;
    return { path: this.task.path, json };
  }

  // One word is there as soon as the answer is.
  inParts = ({ json }) => json.words > 1;

  answered(column, request, answer) {
    const { kept, whole } = column.memory;
    const before = request.json.state ? kept.find(({ state }) => state === request.json.state) : null;
    const tokens = [...(before?.tokens ?? []), ...(answer.tokens ?? [])];
    column.memory.tokens = tokens;
    if (kept.at(-1)?.text !== whole) kept.push({ text: whole, state: answer.state, tokens });
    if (kept.length > KEPT) kept.shift();
    if (column === this.panel.columns[0] && whole === this.area.value) {
      const [best] = answer.predictions;
      this.#suggest(best ? rest(best.text, answer.completing, whole) : "");
    }
  }

  context(column) {
    const { text, state } = column.request.json;
    const sent = state ? `Sent just now: “${text}” and ${size(state.length)} of state, which stands for the ${(column.memory.whole.length - text.length).toLocaleString("en")} letters before.` : `Sent just now: “${text}”. The answer's state stands for it from now on.`;
    return { input: this, tokens: column.memory.tokens, whole: column.memory.whole, sent };
  }
}

// What has to be added to the text as typed, for a continuation to stand there.
export function rest(word, completing, text) {
  if (completing !== null) return word.slice(completing.length);
  return (text === "" || /\s$/.test(text) ? "" : " ") + word;
}
