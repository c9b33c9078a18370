// One model's side of a panel: its facts, its answer, where the time went, and the call.

import { ask } from "./api.js";
import { Calls } from "./calls.js";
import { details, h, replace } from "./dom.js";
import { facts } from "./facts.js";
import { readable } from "./json.js";
import { plural, size } from "./numbers.js";
import { timingBar } from "./timing.js";
import { viewFor, viewForPart } from "./views/index.js";

export class Column {
  constructor(panel, choice) {
    this.panel = panel;
    this.memory = {}; // what the input remembers of this model, such as the state of a stream
    this.carried = null; // a state to go on from, chosen by the user
    this.asked = 0;
    this.parts = []; // of the answer that is coming: [{ name, data }]
    this.status = h("p", { class: "status", role: "status" });
    this.body = h("div", { class: "view" });
    this.times = h("div", {});
    this.stop = h("p", { class: "row" }, h("button", { type: "button", onclick: () => this.controller.abort() }, "Stop here"));
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
    this.#begin();
    this.facts = facts(choice);
    this.element.setAttribute("aria-label", `Answer of ${choice.value}`);
    this.status.textContent = "";
    this.element.setAttribute("aria-busy", "false");
    replace(this.element);
  }

  // A new turn: what is still on its way is no longer wanted.
  #begin() {
    this.controller?.abort();
    this.controller = new AbortController();
    this.parts = [];
    return ++this.asked;
  }

  // comes: a promise of the answer, where another call than the request's own brings it: `call`.
  async ask(request, { comes, call } = {}) {
    const { input, task } = this.panel;
    const events = !comes && task.comesInParts && (input.inParts?.(request) ?? true);
    const turn = this.#begin();
    const { signal } = this.controller;
    this.request = { ...request, events };
    this.call = call ?? this.request;
    this.element.setAttribute("aria-busy", "true");
    try {
      const got = await (comes ?? ask(this.request, { signal, onpart: (name, data) => this.#take(turn, { name, data }) }));
      if (turn !== this.asked) return;
      this.parts = [];
      input.answered?.(this, request, got.answer);
      this.got = got;
      await this.#show(request, got);
    } catch (problem) {
      if (turn !== this.asked) return;
      const { length } = this.parts;
      this.parts = []; // the last of them, if it is not drawn yet, comes too late
      if (signal.aborted) this.#stopped(length);
      else this.refuse(problem);
    } finally {
      if (turn === this.asked) this.element.setAttribute("aria-busy", "false");
    }
  }

  // Parts are drawn as often as the screen is, however quickly they come.
  #take(turn, part) {
    if (turn !== this.asked) return;
    this.parts.push(part);
    const count = this.parts.length;
    requestAnimationFrame(() => turn === this.asked && count === this.parts.length && this.#showParts());
  }

  #showParts() {
    const View = viewForPart(this.parts[0]);
    if (!View) return;
    this.#use(View);
    const says = `${this.choice.value} is answering, part by part.`;
    if (this.status.textContent !== says) this.status.textContent = says;
    this.view.showParts(this.parts, this.#context(this.request, null));
    this.#arrange(this.status, this.stop, this.body);
  }

  #stopped(count) {
    this.status.textContent = `Stopped after ${plural(count, "part")}.`;
    this.calls.show(this.call);
    this.#arrange(this.status, this.body, this.callSection);
  }

  #use(View) {
    if (this.view instanceof View) return;
    this.view?.leave?.();
    this.view = new View();
    replace(this.body, this.view.element);
  }

  #context(request, got) {
    return { request, got, column: this, ...this.panel.input.context?.(this) };
  }

  // Puts only what has changed in its place: what has the focus keeps it.
  #arrange(...parts) {
    const shown = parts.filter(Boolean);
    if (shown.length !== this.element.children.length || shown.some((part, index) => part !== this.element.children[index])) {
      replace(this.element, shown);
    }
  }

  async #show(request, got) {
    this.#use(viewFor(got));
    await this.view.show(got.answer ?? got.blob, this.#context(request, got));
    const { name, version } = got.answer?.model ?? {};
    const who = name ? `${name}@${version}` : (got.model ?? "");
    const says = `${who} answered in ${got.total_ms.toFixed(0)} ms${this.view.say ? `: ${this.view.say(got.answer ?? got.blob)}` : "."}`;
    this.status.setAttribute("aria-live", this.panel.input.streaming ? "off" : "polite");
    if (this.status.textContent !== says) this.status.textContent = says;
    replace(this.times, timingBar(got));
    this.calls.show({ ...this.call, events: got.inParts });
    this.#writeJson();
    this.#arrange(this.status, this.body, this.#carry(got.answer), this.times, this.callSection, got.answer ? this.jsonSection : null);
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
    if (this.call) this.calls.show(this.call);
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
      this.call ? this.callSection : null,
    );
  }

  leave() {
    this.view?.leave?.();
  }
}
