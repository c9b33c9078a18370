// A form made from the fields of a task's Input. Only what differs from the default is sent, so that calls stay short.

import { fresh, h } from "./dom.js";

export class Form {
  // initial: values to begin with; texts: fields which deserve a large box.
  constructor(fields, { initial = {}, texts = new Set(), onchange = () => {} } = {}) {
    this.fields = fields;
    this.texts = texts;
    this.inputs = new Map();
    this.element = h("div", { class: "fields" }, fields.map((field) => this.#row(field, initial[field.name], onchange)));
  }

  #row(field, initial, onchange) {
    const id = fresh(field.name);
    const input = this.#input(field, id);
    input.addEventListener("change", onchange);
    this.inputs.set(field.name, input);
    const value = initial ?? field.default;
    if (value != null) write(input, field, value);
    const hint = h("small", { id: `${id}-hint` }, oneSentence(field.description), bounds(field));
    if (field.description || bounds(field)) input.setAttribute("aria-describedby", `${id}-hint`);
    const label = h("label", { for: id }, field.name, field.required ? " (required)" : "");
    return h("div", { class: `field ${field.type}` }, field.type === "boolean" ? [input, label] : [label, input], hint);
  }

  #input(field, id) {
    const common = { id, name: field.name };
    if (field.type === "boolean") return h("input", { ...common, type: "checkbox" });
    if (field.type === "choice") {
      return h("select", common, field.required || field.default != null ? null : h("option", { value: "" }, "–"), field.choices.map((choice) => h("option", { value: choice }, String(choice))));
    }
    if (field.type === "integer" || field.type === "number") {
      return h("input", { ...common, type: "number", step: field.type === "integer" ? 1 : "any", min: field.minimum, max: field.maximum });
    }
    if (field.type === "string" && !this.texts.has(field.name)) {
      return h("input", { ...common, type: "text", maxlength: field.maxLength, autocomplete: "off", spellcheck: "false" });
    }
    const placeholder = { array: "1, 2, 3", object: "{}", json: "JSON" }[field.type];
    return h("textarea", { ...common, rows: field.type === "string" ? 5 : 3, placeholder, spellcheck: "false" });
  }

  set(values) {
    for (const field of this.fields) {
      if (field.name in values) write(this.inputs.get(field.name), field, values[field.name]);
    }
  }

  reset() {
    for (const field of this.fields) write(this.inputs.get(field.name), field, field.default);
  }

  // Raises: Error with a sentence where a value cannot be read.
  read() {
    const values = {};
    for (const field of this.fields) {
      const value = read(this.inputs.get(field.name), field);
      if (value === undefined || (!field.required && same(value, field.default))) continue;
      values[field.name] = value;
    }
    return values;
  }
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

function write(input, field, value) {
  if (field.type === "boolean") input.checked = Boolean(value);
  else if (value == null) input.value = "";
  else if (field.type === "array" && Array.isArray(value) && value.every((item) => typeof item !== "object" || item === null)) input.value = value.map((item) => item ?? "null").join(", ");
  else input.value = typeof value === "object" ? JSON.stringify(value) : value;
}

function read(input, field) {
  if (field.type === "boolean") return input.checked;
  const text = input.value;
  if (text.trim() === "" && !(field.type === "string" && field.required)) return field.required && field.type === "array" ? [] : undefined;
  if (field.type === "integer" || field.type === "number") return Number(text);
  if (field.type === "choice") return field.choices.find((choice) => String(choice) === text);
  if (field.type === "array" && !text.trim().startsWith("[")) return text.split(/[\s,;]+/).filter(Boolean).map(item(field));
  if (field.type === "string") return text;
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`“${field.name}” is no JSON.`);
  }
}

const item = (field) => (text) => {
  if (text === "null") return null;
  return field.itemType === "string" || Number.isNaN(Number(text)) ? text : Number(text);
};

const oneSentence = (text) => text.replaceAll("`", "").match(/^.*?[.;](?=\s|$)/s)?.[0].replace(/;$/, ".") ?? text;

function bounds({ minimum, maximum, type }) {
  if (type !== "integer" && type !== "number") return "";
  if (minimum != null && maximum != null) return ` ${minimum} to ${maximum}.`;
  return minimum != null ? ` From ${minimum}.` : maximum != null ? ` Up to ${maximum}.` : "";
}
