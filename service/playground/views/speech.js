// What was said, each word at its time under the wave of the recording.

import { h, replace } from "../dom.js";
import { percent } from "../numbers.js";
import { colour, onTheme } from "../theme.js";

export class SpeechView {
  static fits = (answer, result) => typeof result.text === "string" && "duration_s" in result && Array.isArray(result.alternatives);
  static fitsPart = ({ data }) => "recording" in data && "word" in data;

  constructor() {
    this.player = h("audio", { controls: true, "aria-label": "The recording as sent" });
    this.canvas = h("canvas", { class: "wave", width: 1000, height: 120, role: "img", "aria-label": "Loudness over time" });
    this.track = h("div", { class: "track" });
    this.text = h("p", { class: "said" });
    this.rest = h("div", {});
    this.heat = h("canvas", { class: "heat", "aria-hidden": "true" });
    this.element = h("div", {}, this.text, h("div", { class: "timeline" }, this.canvas, this.track), this.player, this.rest);
    this.player.addEventListener("timeupdate", () => this.#follow());
    onTheme(() => {
      if (!this.element.isConnected) return;
      this.#draw();
      this.#drawFrames();
    });
  }

  show({ results: [result] }, { file }) {
    const { text, words, alternatives, score, duration_s: duration, frames } = result;
    this.words = words ?? [];
    this.#load(file);
    replace(this.text, text ? `“${text}”` : "Nothing was said.", h("small", {}, ` ${percent(score)} sure`));
    const place = (seconds) => `${(100 * seconds) / duration}%`;
    replace(
      this.track,
      this.words.map(({ word, start_s: start, end_s: end, score: sure }) =>
        h(
          "button",
          { type: "button", class: "spoken", style: { left: place(start), width: place(end - start) }, title: `${start.toFixed(2)} to ${end.toFixed(2)} s, ${percent(sure)}`, onclick: () => this.#play(start) },
          word,
        ),
      ),
    );
    const times = this.words.map(({ word, start_s: start, end_s: end, score: sure }) => h("tr", {}, h("th", { scope: "row" }, word), h("td", {}, `${start.toFixed(2)} s`), h("td", {}, `${end.toFixed(2)} s`), h("td", {}, percent(sure))));
    replace(
      this.rest,
      frames ? this.#showFrames(frames, place) : null,
      times.length
        ? h("table", { class: "plain" }, h("thead", {}, h("tr", {}, ["word", "from", "to", "sure"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, times))
        : null,
      alternatives.length > 1 ? [h("h3", {}, "It may also have been"), h("ol", {}, alternatives.slice(1).map((other) => h("li", {}, `“${other.text}” ${percent(other.score)}`)))] : null,
    );
  }

  showParts(parts, { file }) {
    this.#load(file);
    replace(this.text, `“${parts.map(({ data }) => data.word).join(" ")} …`);
    replace(this.track);
    replace(this.rest);
  }

  #load(file) {
    if (this.player.src === file.url) return;
    this.player.src = file.url;
    this.#listen(file.blob);
  }

  // A row for each word, a column for each step, under the wave; the first label is that there is no word.
  #showFrames(frames, place) {
    this.frames = frames;
    const steps = frames.probabilities.length;
    const names = frames.labels.slice(1);
    Object.assign(this.heat, { width: steps, height: names.length });
    for (const [name, value] of Object.entries({ left: place(frames.start_s), width: place(steps * frames.step_s) })) this.heat.style.setProperty(name, value);
    this.#drawFrames();
    return [
      h("h3", {}, "What the network heard, step by step"),
      h("div", { class: "frames" }, this.heat, h("ul", {}, names.map((name) => h("li", {}, name)))),
      h("p", { class: "hint" }, "The darker, the more probable. A word is told once, when enough of it was heard, so later than it was said."),
    ];
  }

  #drawFrames() {
    if (!this.frames) return;
    const paint = this.heat.getContext("2d");
    paint.clearRect(0, 0, this.heat.width, this.heat.height);
    paint.fillStyle = colour("accent");
    this.frames.probabilities.forEach((row, step) =>
      row.slice(1).forEach((probability, word) => {
        paint.globalAlpha = probability;
        paint.fillRect(step, word, 1, 1);
      }),
    );
  }

  #play(start) {
    this.player.currentTime = start;
    this.player.play();
  }

  #follow() {
    const now = this.player.currentTime;
    [...this.track.children].forEach((button, index) => button.classList.toggle("now", now >= this.words[index].start_s && now < this.words[index].end_s));
  }

  async #listen(blob) {
    const context = new OfflineAudioContext(1, 1, 8000);
    try {
      this.samples = (await context.decodeAudioData(await blob.arrayBuffer())).getChannelData(0);
    } catch {
      this.samples = null; // a format that this browser cannot play; the service can
    }
    this.#draw();
  }

  #draw() {
    const { width, height } = this.canvas;
    const paint = this.canvas.getContext("2d");
    paint.clearRect(0, 0, width, height);
    if (!this.samples) return;
    paint.fillStyle = colour("accent");
    const step = this.samples.length / width;
    for (let x = 0; x < width; x++) {
      let peak = 0;
      for (let at = Math.floor(x * step); at < (x + 1) * step; at++) peak = Math.max(peak, Math.abs(this.samples[at] ?? 0));
      const tall = Math.max(1, peak * height);
      paint.fillRect(x, (height - tall) / 2, 1, tall);
    }
  }

  say({ results: [{ text }] }) {
    return text ? `“${text}”` : "nothing was said.";
  }

  leave() {
    this.player.pause();
  }
}
