// A tune as sheet music and as sound, and as files of both.
//
// abcjs draws, and says when each note sounds. It would play with instruments fetched from the net; two oscillators play
// instead, which every browser has.

import { ask } from "../api.js";
import { downloadLink, h, library, replace, svg } from "../dom.js";
import { plural } from "../numbers.js";

const NARROW = 560; // pixels
const MOST_BITS = 8; // as surprising as one note of 256

export class TuneView {
  static fits = (answer) => typeof answer.abc === "string" && answer.abc.includes("K:");
  static fitsPart = ({ data }) => typeof data.abc === "string";

  constructor() {
    this.sheet = h("div", { class: "sheet" });
    new ResizeObserver(() => this.#resized()).observe(this.sheet);
    this.play = h("button", { type: "button", onclick: () => (this.playing ? this.leave() : this.#start()) }, "Play");
    this.files = h("span", { class: "row" });
    this.facts = h("p", { class: "hint" });
    this.source = h("pre", { tabindex: 0, "aria-label": "ABC notation" });
    this.element = h("div", {}, h("div", { class: "row" }, this.play, this.files), this.sheet, this.facts, h("details", {}, h("summary", {}, "ABC notation"), this.source));
  }

  async show({ abc, bars, seed, surprisal, surprisals, prompt_surprisals: ofPrompt }, { request, column }) {
    this.leave();
    this.bits = surprisals ? [...ofPrompt, ...surprisals.flat()] : null;
    this.facts.textContent = `${bars} bars, seed ${seed}. ${surprisal.toFixed(2)} bits of surprise a note.${this.bits ? " The redder a note, the more surprising it was." : ""}`;
    const midi = h("button", { type: "button", class: "small" }, "Save as MIDI");
    midi.addEventListener("click", () => this.#midi(midi, request, seed, column));
    replace(this.files, downloadLink(new Blob([abc], { type: "text/vnd.abc" }), `tune-${seed}.abc`, "Save as ABC"), takesMidi(column) ? midi : null);
    await this.#write(abc, bars);
  }

  // The tune so far: the abc of all parts, one after another.
  async showParts(parts) {
    this.leave();
    this.bits = null;
    replace(this.files);
    const bars = parts.length - 1; // the first part is the head
    this.facts.textContent = `${plural(bars, "bar")} so far.`;
    await this.#write(parts.map(({ data }) => data.abc).join(""), bars);
  }

  async #write(abc, bars) {
    this.source.textContent = abc;
    this.abc = abc;
    this.label = `Sheet music of ${plural(bars, "bar")}`;
    this.library = await library("abcjs-basic-min.js", "ABCJS");
    if (this.abc === abc) this.#draw();
  }

  // Two bars a line on a phone, four on a desk; drawn again when that changes, but not while it sounds.
  #draw() {
    const narrow = (this.sheet.clientWidth || document.getElementById("main").clientWidth) < NARROW;
    this.narrow = narrow;
    const wrap = { preferredMeasuresPerLine: narrow ? 2 : 4, minSpacing: 1.2, maxSpacing: 2.7 };
    const options = { responsive: "resize", add_classes: true, staffwidth: narrow ? 340 : 760, wrap, foregroundColor: "currentColor" };
    [this.tune] = underThePolicy(() => this.library.renderAbc(this.sheet, this.abc, options));
    this.sheet.querySelector("svg")?.setAttribute("aria-label", this.label);
    this.#shade();
    for (const gauge of document.querySelectorAll("body > svg")) gauge.setAttribute("aria-hidden", "true"); // abcjs measures text with it
  }

  // Each note in the colour of its surprise, where there is one for each: a long note may be written as two that are tied.
  #shade() {
    const notes = [...this.sheet.querySelectorAll(".abcjs-note, .abcjs-rest")];
    if (notes.length !== this.bits?.length) return;
    notes.forEach((note, index) => {
      note.classList.add("shaded");
      note.style.setProperty("--bits", `${Math.min(100, (100 * this.bits[index]) / MOST_BITS)}%`);
      note.append(svg("title", {}, `${this.bits[index].toFixed(1)} bits`));
    });
  }

  #resized() {
    const width = this.sheet.clientWidth;
    if (this.tune && width && !this.playing && width < NARROW !== this.narrow) this.#draw();
  }

  async #midi(button, request, seed, column) {
    button.disabled = true;
    try {
      const { blob } = await ask({ ...request, events: false, json: { ...request.json, seed, format: "midi" } });
      const link = downloadLink(blob, `tune-${seed}.mid`, "Save as MIDI");
      button.replaceWith(link);
      link.click();
    } catch (problem) {
      column.refuse(problem);
    }
  }

  #start() {
    const { tracks } = this.tune.setUpAudio({});
    const { num, den } = this.tune.getMeterFraction();
    const whole_s = (this.tune.millisecondsPerMeasure() / 1000) * (den / num);
    const context = new AudioContext();
    const begin = context.currentTime + 0.15;
    let end = begin;
    let count = 0;
    for (const note of tracks.flat().filter(({ cmd, pitch }) => cmd === "note" && pitch)) {
      const from = begin + note.start * whole_s;
      const until = from + note.duration * whole_s;
      sound(context, note.pitch, from, until, (note.volume ?? 80) / 127);
      end = Math.max(end, until);
      count++;
    }
    const timing = new this.library.TimingCallbacks(this.tune, { eventCallback: (event) => this.#light(event) });
    this.playing = { context, timing, count, over: setTimeout(() => this.leave(), 1000 * (end - context.currentTime) + 300) };
    setTimeout(() => this.playing?.timing === timing && timing.start(), 150);
    this.play.textContent = "Stop";
    this.element.dataset.notes = String(count);
  }

  #light(event) {
    for (const lit of this.sheet.querySelectorAll(".sounding")) lit.classList.remove("sounding");
    for (const element of event?.elements?.flat() ?? []) element.classList.add("sounding");
  }

  leave() {
    if (!this.playing) return;
    const { context, timing, over } = this.playing;
    clearTimeout(over);
    timing.stop();
    context.close();
    this.playing = null;
    this.#light(null);
    this.play.textContent = "Play";
  }

  say({ bars, seed }) {
    return `a tune of ${bars} bars, seed ${seed}.`;
  }
}

const takesMidi = (column) => column.panel.task.fields.some(({ name, choices }) => name === "format" && choices.includes("midi"));

// A plucked note: a triangle and, an octave above, a quieter sine.
function sound(context, pitch, from, until, loud) {
  for (const [type, factor, share] of [["triangle", 1, 0.22], ["sine", 2, 0.07]]) {
    const tone = new OscillatorNode(context, { type, frequency: factor * 440 * 2 ** ((pitch - 69) / 12) });
    const volume = new GainNode(context, { gain: 0 });
    volume.gain.setValueAtTime(0, from);
    volume.gain.linearRampToValueAtTime(share * loud, from + 0.012);
    volume.gain.exponentialRampToValueAtTime(share * loud * 0.35, Math.max(from + 0.02, until - 0.03));
    volume.gain.linearRampToValueAtTime(0, until);
    tone.connect(volume).connect(context.destination);
    tone.start(from);
    tone.stop(until);
  }
}

// The page's policy forbids style attributes and elements. While abcjs draws, what it writes to an attribute goes to the style
// object instead, and its one style element, which is for editing by mouse, is an element without meaning.
function underThePolicy(draw) {
  const { setAttribute } = Element.prototype;
  const { createElementNS } = Document.prototype;
  Element.prototype.setAttribute = function (name, value) {
    if (name === "style") this.style.cssText = value;
    else setAttribute.call(this, name, value);
  };
  Document.prototype.createElementNS = function (space, name) {
    return createElementNS.call(this, space, name === "style" ? "metadata" : name);
  };
  try {
    return draw();
  } finally {
    Element.prototype.setAttribute = setAttribute;
    Document.prototype.createElementNS = createElementNS;
  }
}
