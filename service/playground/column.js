// One model's side of a panel: its facts, its answer, where the time went, and the call.

import { ask } from "./api.js";
import { Calls } from "./calls.js";
import { details, h, replace } from "./dom.js";
import { facts } from "./facts.js";
import { readable } from "./json.js";
import { size } from "./numbers.js";
import { timingBar } from "./timing.js";
import { viewFor } from "./views/index.js";

export class Column {
  constructor(panel, choice) {
    this.panel = panel;
    this.memory = {}; // what the input remembers of this model, such as the state of a stream
    this.carried = null; // a state to go on from, chosen by the user
    this.asked = 0;
    this.status = h("p", { class: "status", role: "status" });
    this.body = h("div", { class: "view" });
    this.times = h("div", {});
    this.calls = new Calls();
    this.json = h("pre", { tabindex: 0, "aria-label": "Answer as JSON" });
    const json = details("Answer as JSON", this.json);
    json.addEventListener("toggle", () => this.#writeJson());
    this.jsonSection = json;
    this.callSection = h("details", { open: true }, h("summary", {}, "Call it from your own code"), this.calls.element);
    this.element = h("article", { class: "column", "aria-label": "Answer" });
    this.choose(choice);
  }

  choose(choice) {
    this.choice = choice;
    this.memory = {};
    this.carried = null;
    this.view = null;
    this.asked++;
    this.facts = facts(choice);
    this.element.setAttribute("aria-label", `Answer of ${choice.value}`);
    this.status.textContent = "";
    replace(this.element);
  }

  async ask(request) {
    const turn = ++this.asked;
    this.request = request;
    this.element.setAttribute("aria-busy", "true");
    try {
      const got = await ask(request);
      if (turn !== this.asked) return;
      this.panel.input.answered?.(this, request, got.answer);
      this.got = got;
      await this.#show(request, got);
    } catch (problem) {
      if (turn === this.asked) this.refuse(problem);
    } finally {
      if (turn === this.asked) this.element.setAttribute("aria-busy", "false");
    }
  }

  async #show(request, got) {
    const View = viewFor(got);
    if (!(this.view instanceof View)) {
      this.view?.leave?.();
      this.view = new View();
      replace(this.body, this.view.element);
    }
    await this.view.show(got.answer ?? got.blob, { request, got, column: this, ...this.panel.input.context?.(this) });
    const { name, version } = got.answer?.model ?? {};
    const who = name ? `${name}@${version}` : (got.model ?? "");
    const says = `${who} answered in ${got.total_ms.toFixed(0)} ms${this.view.say ? `: ${this.view.say(got.answer ?? got.blob)}` : "."}`;
    this.status.setAttribute("aria-live", this.panel.input.streaming ? "off" : "polite");
    if (this.status.textContent !== says) this.status.textContent = says;
    replace(this.times, timingBar(got));
    this.calls.show(request);
    this.#writeJson();
    const parts = [this.status, this.body, this.#carry(got.answer), this.times, this.callSection, got.answer ? this.jsonSection : null].filter(Boolean);
    if (parts.length !== this.element.children.length || parts.some((part, index) => part !== this.element.children[index])) {
      replace(this.element, parts);
    }
  }

  #writeJson() {
    if (this.jsonSection.open && this.got?.answer) this.json.textContent = readable(this.got.answer);
  }

  // A state that the input does not carry by itself: the user may go on from it.
  #carry(answer) {
    const { input, task } = this.panel;
    if (!answer?.state || input.carriesState || !task.fields.some(({ name }) => name === "state")) return null;
    const onwards = h("button", { type: "button", class: "small" }, "Go on from here");
    onwards.addEventListener("click", () => {
      this.carried = answer.state;
      this.panel.ask();
    });
    const anew = h("button", { type: "button", class: "small" }, "Begin anew");
    anew.addEventListener("click", () => {
      this.carried = null;
      anew.remove();
    });
    return h("p", { class: "row carry" }, `The model's memory came with the answer: ${size(answer.state.length)}. `, onwards, this.carried ? anew : null);
  }

  // Show an error as the service's own sentence.
  refuse(problem) {
    this.view?.leave?.();
    this.view = null;
    this.status.textContent = "";
    if (this.request) this.calls.show(this.request);
    replace(
      this.element,
      h(
        "div",
        { class: "problem", role: "alert" },
        h("h3", {}, problem.title ?? "Not asked"),
        h("p", {}, problem.message),
        problem.places?.length ? h("ul", {}, problem.places.map((place) => h("li", {}, place))) : null,
        problem.requestId ? h("p", { class: "hint" }, `Request ${problem.requestId}`) : null,
      ),
      this.request ? this.callSection : null,
    );
  }

  leave() {
    this.view?.leave?.();
  }
}
