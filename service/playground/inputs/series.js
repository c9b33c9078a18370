// A series: pasted, dropped or chosen as CSV; asked whole, or streamed point by point with the state of the answer before.

import { series } from "../csv.js";
import { fresh, h, replace } from "../dom.js";
import { plural, size } from "../numbers.js";

const PAUSE_MS = 60; // between two points of a stream
const WARM_SHARE = 0.25; // of a series, sent at once when a stream begins

export class SeriesInput {
  handles = new Set(["values", "timestamps", "state"]);
  carriesState = true;

  constructor(task, panel) {
    this.task = task;
    this.panel = panel;
    this.read = null; // what csv.js made of the text
    const id = fresh("series");
    this.area = h("textarea", { id, rows: 5, spellcheck: "false", placeholder: "time,value\n2026-03-02T00:00,10.1\n…" });
    this.area.addEventListener("input", () => this.#reread());
    this.area.addEventListener("dragover", (event) => event.preventDefault());
    this.area.addEventListener("drop", async (event) => {
      const [file] = event.dataTransfer.files;
      if (!file) return;
      event.preventDefault();
      this.#write(await file.text());
      this.panel.ask();
    });
    const chooser = h("input", { type: "file", class: "visually-hidden", tabindex: -1, "aria-hidden": "true", accept: ".csv,.txt,.tsv,text/*" });
    chooser.addEventListener("change", async () => {
      if (chooser.files[0]) this.#write(await chooser.files[0].text());
      this.panel.ask();
    });
    this.found = h("p", { class: "hint", role: "status" });
    this.picker = h("div", {});
    this.streamButton = h("button", { type: "button", onclick: () => (this.streaming ? this.stop() : this.stream()) }, "Stream it");
    this.buttons = this.streamButton;
    this.element = h(
      "div",
      {},
      h("label", { for: id }, "Series: paste or drop a CSV, or numbers"),
      this.area,
      h("div", { class: "row" }, h("button", { type: "button", onclick: () => chooser.click() }, "Choose a file"), chooser, this.picker, this.found),
    );
  }

  #write(text) {
    this.stop();
    this.area.value = text;
    this.#reread();
  }

  #reread() {
    this.stop();
    this.read = null;
    replace(this.picker);
    this.found.textContent = "";
    if (!this.area.value.trim()) return;
    try {
      this.read = series(this.area.value);
    } catch (error) {
      this.found.textContent = error.message;
      return;
    }
    const { columns, timestamps } = this.read;
    this.column = columns.at(-1);
    this.found.textContent = `${plural(this.column.values.length, "point")}${timestamps ? " with times" : ""}.`;
    if (columns.length > 1) {
      const id = fresh("column");
      const select = h("select", { id }, columns.map(({ name }, index) => h("option", { value: index }, name)));
      select.value = columns.length - 1;
      select.addEventListener("change", () => {
        this.column = columns[select.value];
        this.panel.ask();
      });
      replace(this.picker, h("label", { for: id }, "Column "), select);
    }
  }

  async useSample({ blob, fields = {} }) {
    this.#write(blob ? await blob.text() : (fields.values ?? []).map((value) => value ?? "null").join(", "));
  }

  // The points from one place to another, and the state of the answer before.
  request(column, { state, ...fields }) {
    if (!this.read) throw new Error(this.found.textContent || "Paste a series first, or press a sample.");
    const { values } = this.column;
    const end = this.streaming ? this.sent : values.length;
    const { memory } = column;
    const goesOn = this.streaming && memory.state && memory.run === this.run;
    const start = goesOn ? memory.end : 0;
    Object.assign(memory, { start, nextEnd: end });
    const json = { model: column.choice.value, values: values.slice(start, end), ...fields };
    if (this.read.timestamps) json.timestamps = this.read.timestamps.slice(start, end);
    if (goesOn) json.state = memory.state;
    return { path: this.task.path, json };
  }

  // Lists that are as long as the points sent are joined to those of the answers before.
  answered({ memory }, request, answer) {
    const { start, nextEnd } = memory;
    const joined = start ? memory.joined : {};
    memory.joined = { ...answer };
    for (const name of ["expected", "lower", "upper", "scores", "is_anomaly"]) {
      if (Array.isArray(answer[name])) memory.joined[name] = (start ? joined[name] : []).concat(answer[name]);
    }
    for (const [name, list] of Object.entries(answer.causes ?? {})) {
      memory.joined.causes = { ...memory.joined.causes, [name]: (start ? joined.causes[name] : []).concat(list) };
    }
    if (answer.anomalies) memory.joined.anomalies = (start ? joined.anomalies : []).concat(answer.anomalies.map((index) => index + start));
    Object.assign(memory, { state: answer.state, end: nextEnd, run: this.run });
  }

  context({ memory, request }) {
    const points = request.json.values.length;
    return {
      joined: memory.joined,
      values: this.column.values.slice(0, memory.end),
      timestamps: this.read.timestamps?.slice(0, memory.end) ?? null,
      sent: `Sent just now: ${plural(points, "point")}${request.json.state ? ` and ${size(request.json.state.length)} of state, which stands for the ${plural(memory.start, "point")} before` : ""}.`,
    };
  }

  async stream() {
    if (!this.read) {
      await this.panel.ask(); // says what is missing
      return;
    }
    const total = this.column.values.length;
    const run = (this.run = Symbol("run"));
    this.streaming = true;
    this.streamButton.textContent = "Stop the stream";
    this.sent = Math.max(1, Math.floor(total * WARM_SHARE));
    while (this.run === run && this.streaming) {
      await this.panel.ask();
      const failed = this.panel.columns.some(({ memory }) => memory.end !== this.sent);
      if (this.sent >= total || failed) break;
      this.sent++;
      await new Promise((done) => setTimeout(done, PAUSE_MS));
    }
    if (this.run === run) this.stop();
  }

  stop() {
    this.streaming = false;
    this.streamButton.textContent = "Stream it";
  }

  leave() {
    this.stop();
  }
}
