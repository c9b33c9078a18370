// A task that is asked with plain fields: the form is all there is.

import { h } from "../dom.js";

export class FieldsInput {
  handles = new Set();
  isForm = true;

  constructor(task) {
    this.task = task;
    this.element = h("div", {});
  }

  request(column, fields) {
    return { path: this.task.path, json: { model: column.choice.value, ...fields } };
  }

  async useSample() {}
}
