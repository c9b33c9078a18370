// A file: dropped, pasted or chosen. Inputs for pictures and recordings add to it.

import { h, replace } from "../dom.js";
import { size } from "../numbers.js";

export class FileInput {
  handles = new Set(["final"]);

  get noun() {
    return "file";
  }

  constructor(task, panel) {
    this.task = task;
    this.panel = panel;
    this.file = null; // { blob, name, url }
    this.chooser = h("input", { type: "file", class: "visually-hidden", tabindex: -1, "aria-hidden": "true", accept: task.kinds.join(",") || null });
    this.chooser.addEventListener("change", () => this.chooser.files[0] && this.bring(this.chooser.files[0]));
    this.chosen = h("span", { class: "hint" });
    const choose = h("button", { type: "button", onclick: () => this.chooser.click() }, `Choose a ${this.noun}`);
    this.zone = h("div", { class: "drop" }, h("p", {}, `Drop or paste a ${this.noun} here, or`), h("div", { class: "row" }, choose, this.extras()), this.chosen);
    this.element = h("div", {}, this.chooser, this.zone);
    this.#listen();
  }

  extras() {
    return null;
  }

  #listen() {
    const over = (event) => {
      event.preventDefault();
      this.zone.classList.toggle("over", event.type === "dragover");
    };
    this.zone.addEventListener("dragover", over);
    this.zone.addEventListener("dragleave", over);
    this.zone.addEventListener("drop", (event) => {
      over(event);
      if (event.dataTransfer.files[0]) this.bring(event.dataTransfer.files[0]);
    });
    this.paste = (event) => {
      const file = [...(event.clipboardData?.files ?? [])][0];
      if (file) this.bring(file);
    };
  }

  enter() {
    document.addEventListener("paste", this.paste);
  }

  leave() {
    document.removeEventListener("paste", this.paste);
  }

  // Take a file and ask about it.
  async bring(blob, name = blob.name) {
    this.take(blob, name);
    await this.panel.ask();
  }

  take(blob, name) {
    if (this.file) URL.revokeObjectURL(this.file.url);
    this.file = { blob, name: name || this.noun, url: URL.createObjectURL(blob) };
    const link = h("a", { href: this.file.url, download: this.file.name }, "save it");
    replace(this.chosen, `${this.file.name}, ${size(blob.size)} (`, link, " to use it in a copied call)");
  }

  async useSample({ blob, name }) {
    this.take(blob, name);
  }

  request(column, { state, ...fields }) {
    if (!this.file) throw new Error(`Choose a ${this.noun} first, or press a sample.`);
    return {
      path: this.task.path,
      query: { model: column.choice.value, ...fields },
      file: { blob: this.file.blob, name: this.file.name },
      ...(state ? { form: { state } } : {}),
    };
  }

  context() {
    return { file: this.file };
  }
}
