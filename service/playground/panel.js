// The panel of a task: which model, what it is asked, and an answer for each of one or two models side by side.

import { ask, fileOf, getFile, Problem } from "./api.js";
import { choicesOf } from "./catalogue.js";
import { Column } from "./column.js";
import { details, fresh, h, replace } from "./dom.js";
import { Form } from "./form.js";
import { inputFor } from "./inputs/index.js";
import { inline, markdown } from "./markdown.js";

// Switched on here where a task has them: this page is for seeing why.
const SWITCHED_ON = { explain: true, timestamps: true };

export class Panel {
  constructor(task, models, samples) {
    this.task = task;
    this.choices = choicesOf(models, task.name);
    this.input = inputFor(task, this);
    this.columns = this.choices.length ? [new Column(this, this.choices[0])] : [];
    const fields = task.fields.filter(({ name }) => name !== "model" && name !== "state" && !this.input.handles.has(name));
    const initial = Object.fromEntries(fields.filter((field) => field.type === "boolean" && field.name in SWITCHED_ON).map(({ name }) => [name, SWITCHED_ON[name]]));
    const texts = new Set(fields.map(({ name }) => name).filter((name) => task.examples.some((example) => String(example[name] ?? "").includes("\n"))));
    this.form = new Form(fields, { initial, texts, onchange: () => this.input.live && this.ask() });
    this.initial = initial;
    this.agreement = h("p", { class: "agreement", role: "status" });
    this.answers = h("div", { class: "columns" });
    this.element = this.#draw(this.#samples(samples));
    this.#arrange();
  }

  // --- what is drawn

  #draw(samples) {
    const { task } = this;
    const [, opening, more] = task.description.match(/^(.*?[.](?=\s|$))?\s*(.*)$/s);
    const heading = [
      h("h1", {}, task.summary),
      h("p", { class: "lead" }, inline(opening ?? ""), " ", h("code", {}, `POST /${task.path}`)),
      more ? details("More about this task", markdown(more)) : null,
    ];
    if (!this.choices.length) return h("section", { "data-panel": task.name }, heading, h("p", { class: "problem" }, "No model of this task is ready."));
    const first = this.#picker("Model", this.choices[0].value, null, (choice) => this.#choose(0, choice));
    const second = this.#picker("Beside it", "", "no other", (choice) => this.#choose(1, choice));
    [this.firstPicker, this.secondPicker] = [first.select, second.select];
    this.factsOf = h("div", { class: "columns" });
    const button = h("button", { class: "primary", type: "submit" }, "Ask");
    const form = h(
      "form",
      {
        novalidate: true, // the service says what is wrong, also of fields that are folded away
        onsubmit: (event) => {
          event.preventDefault();
          this.ask();
        },
      },
      h("h2", {}, "Ask"),
      samples.length ? h("div", { class: "samples", role: "group", "aria-label": "Samples" }, h("span", {}, "Samples:"), samples.map((sample) => this.#sampleButton(sample))) : null,
      this.input.element,
      this.form.fields.length ? (this.input.isForm ? this.form.element : details("Options", this.form.element)) : null,
      h("div", { class: "row" }, button, this.input.buttons ?? null),
    );
    return h(
      "section",
      { "data-panel": task.name },
      heading,
      h("div", { class: "row pickers" }, first.element, second.element),
      this.factsOf,
      form,
      h("h2", { class: "visually-hidden" }, "Answer"),
      this.agreement,
      this.answers,
    );
  }

  #picker(words, value, none, onchoice) {
    const id = fresh("model");
    const select = h("select", { id }, none ? h("option", { value: "" }, none) : null, this.choices.map((choice) => h("option", { value: choice.value }, choice.label)));
    select.value = value;
    select.addEventListener("change", () => onchoice(this.choices.find((choice) => choice.value === select.value)));
    return { select, element: h("div", { class: "field" }, h("label", { for: id }, words), select) };
  }

  #choose(place, choice) {
    const hadAnswer = this.columns.some((column) => column.request);
    if (!choice) this.columns.splice(place, 1);
    else if (this.columns[place]) this.columns[place].choose(choice);
    else this.columns[place] = new Column(this, choice);
    this.#arrange();
    if (hadAnswer && choice) this.ask();
  }

  // Two models side by side: { model, version } each, where it is served.
  pair(...wanted) {
    for (const [place, { model, version }] of wanted.entries()) {
      const choice = this.choices.find((choice) => choice.model.name === model && choice.version?.version === version) ?? this.choices.find((choice) => choice.model.name === model);
      if (!choice) return;
      [this.firstPicker, this.secondPicker][place].value = choice.value;
      this.#choose(place, choice);
    }
  }

  #arrange() {
    if (!this.columns.length) return;
    replace(this.factsOf, this.columns.map((column) => column.facts));
    replace(this.answers, this.columns.map((column) => column.element));
    for (const element of [this.factsOf, this.answers]) element.classList.toggle("two", this.columns.length > 1);
  }

  // --- samples

  #samples(samples) {
    const { task } = this;
    const own = samples[task.name] ?? samples[task.family] ?? [];
    const served = own.filter(({ model }) => !model || this.choices.some((choice) => choice.model.name === model));
    const examples = task.examples.map((fields, index) => ({ title: task.examples.length > 1 ? `Example ${index + 1}` : "Example", fields }));
    if (served.length || examples.length) return [...served, ...(served.length ? [] : examples)];
    return task.sampleUrl ? [{ title: "Sample", url: task.sampleUrl }] : [];
  }

  #sampleButton(sample) {
    const button = h("button", { type: "button", class: "small", "data-sample": sample.title, title: sample.from ?? "" }, sample.title);
    button.addEventListener("click", () => this.useSample(sample));
    return button;
  }

  async useSample(sample) {
    const choice = sample.model && this.choices.find((choice) => choice.model.name === sample.model);
    if (choice && this.columns[0].choice.model !== choice.model) {
      this.firstPicker.value = choice.value;
      this.columns[0].choose(choice);
      this.#arrange();
    }
    try {
      this.form.reset();
      this.form.set({ ...this.initial, ...sample.fields });
      const blob = sample.file ? await getFile(`playground/samples/${sample.file}`) : sample.url ? fileOf(sample.url) : null;
      await this.input.useSample({ ...sample, blob, name: sample.file ?? `sample.${blob?.type.split("/")[1]}` });
      await this.ask();
    } catch (problem) {
      this.columns[0]?.refuse(problem);
    }
  }

  // --- asking

  async ask() {
    const requests = this.columns.map((column) => this.#request(column));
    const together = compared(this.task, requests);
    this.agreement.textContent = "";
    this.comparing?.abort();
    if (together) await this.#compare(together, requests);
    else await Promise.all(requests.map((request, index) => request && this.columns[index].ask(request)));
  }

  // What a column is to ask; null where there is nothing, or where it says why it cannot.
  #request(column) {
    try {
      const fields = { ...this.form.read() };
      if (column.carried) fields.state = column.carried;
      return this.input.request(column, fields);
    } catch (problem) {
      column.refuse(problem);
      return null;
    }
  }

  // One call for both, so that neither is asked while the other computes.
  async #compare(call, requests) {
    this.comparing = new AbortController();
    const comes = ask(call, this.comparing).then(({ answer }) => answer);
    const columns = [...this.columns];
    const shown = columns.map((column, index) => column.ask(requests[index], { call, comes: comes.then(({ results }) => gotFrom(results[index])) }));
    await Promise.all(shown);
    const { results, tolerance } = await comes.catch(() => ({ results: [] })); // each column has told why
    if (this.columns.every((column, index) => column === columns[index] && column.call === call)) this.agreement.textContent = inWords(results, tolerance);
  }

  enter() {
    this.input.enter?.();
  }

  leave() {
    this.input.leave?.();
    for (const column of this.columns) column.leave();
  }
}

// The call of `POST /v1/compare/<task>` that asks what all requests ask; null where they differ in more than the model, go on
// from a state, which is one model's alone, or want an answer that is no JSON.
export function compared(task, requests) {
  if (!task.isCompared || requests.length < 2 || requests.includes(null)) return null;
  const models = requests.map(({ json, query }) => (json ?? query).model);
  const [call, ...others] = requests.map(({ path, json, query, file, form }) => {
    const { model, ...fields } = json ?? query;
    return { path, fields, inQuery: !json, file, form };
  });
  const { fields, inQuery, file, form } = call;
  const alike = others.every((other) => JSON.stringify(other.fields) === JSON.stringify(fields) && other.file?.blob === file?.blob);
  if (!alike || new Set(models).size < models.length || "state" in fields || "format" in fields || form) return null;
  const query = { models: models.join(","), ...(inQuery ? fields : {}) };
  return { path: call.path.replace("v1/", "v1/compare/"), query, ...(file ? { file } : { json: fields }) };
}

// An entry of a comparison as the answer to a call of its own.
function gotFrom({ answer, error, latency_ms, timings }) {
  if (error) throw new Problem(error.status, error);
  const { decode, queue, ...others } = timings; // in the order of `Server-Timing`, so that each keeps its colour
  return { answer, kind: "application/json", total_ms: latency_ms, stages: Object.entries({ decode, queue, ...others }), rest: "between the stages" };
}

// Whether the second says what the first says, and how long each took; empty where one has not answered.
export function inWords(results, tolerance) {
  const told = results.filter(({ answer }) => answer);
  if (told.length < 2) return "";
  const name = ({ model }) => `${model.name}@${model.version}`;
  const [first, second] = told;
  const says = second.agrees ? `agrees with ${name(first)}, numbers within ${tolerance}.` : `differs from ${name(first)} ${second.difference}.`;
  return `${name(second)} ${says} ${told.map((entry) => `${name(entry)} took ${entry.latency_ms.toFixed(1)} ms`).join(", ")}.`;
}
