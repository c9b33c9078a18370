// A recording: dropped, pasted, chosen, or spoken here. What is spoken becomes a WAV in the page.
//
// Where a task takes recordings in pieces, words appear while they are spoken: each piece is sent with the state of the answer
// before. At the end the whole recording is asked about, as any other.

import { ask } from "../api.js";
import { fresh, h, replace } from "../dom.js";
import { joined, wav } from "../wav.js";
import { FileInput } from "./file.js";

const LONGEST_S = 60;
const PIECE_S = 0.5;

export class SoundInput extends FileInput {
  get noun() {
    return "recording";
  }

  extras() {
    this.level = h("meter", { id: fresh("level"), min: 0, max: 1, value: 0, "aria-label": "Loudness" });
    this.recorder = h("div", { class: "recorder" });
    this.heard = h("p", { class: "said", role: "status" });
    this.button = h("button", { type: "button", onclick: () => (this.recording ? this.finish() : this.record()) }, "Record");
    return [this.button, this.recorder];
  }

  async record() {
    if (!navigator.mediaDevices) {
      replace(this.recorder, h("p", { class: "problem", role: "alert" }, "Browsers give pages the microphone on https and on localhost only."));
      return;
    }
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      const context = new AudioContext();
      await context.audioWorklet.addModule(new URL("../recorder-worklet.js", import.meta.url).href);
      const node = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0 });
      const pieces = [];
      const clock = h("span", { class: "clock" }, "0.0 s");
      let heard = 0;
      this.recording = { stream, context, pieces };
      node.port.onmessage = ({ data }) => {
        pieces.push(data);
        heard += data.length / context.sampleRate;
        this.level.value = Math.max(...data.map(Math.abs));
        clock.textContent = `${heard.toFixed(1)} s`;
        if (heard > LONGEST_S) this.finish();
      };
      context.createMediaStreamSource(stream).connect(node);
      this.button.textContent = "Stop, and ask";
      replace(this.recorder, h("span", { role: "status" }, "Recording, speak now: "), clock, this.level, this.heard);
      if (["final", "state"].every((name) => this.task.fields.some((field) => field.name === name))) this.#follow(this.recording);
    } catch (error) {
      this.#release();
      replace(this.recorder, h("p", { class: "problem", role: "alert" }, `The microphone cannot be used: ${error.message}.`));
    }
  }

  async #follow(recording) {
    const { context, pieces } = recording;
    const model = this.panel.columns[0].choice.value;
    let state = null;
    let sent = 0;
    this.heard.textContent = "";
    while (this.recording === recording) {
      await new Promise((done) => setTimeout(done, 1000 * PIECE_S));
      const piece = joined(pieces.slice(sent));
      if (!piece.length || this.recording !== recording) continue;
      sent = pieces.length;
      try {
        const file = { blob: wav(piece, context.sampleRate), name: "piece.wav" };
        const { answer } = await ask({ path: this.task.path, query: { model, final: false }, file, form: state ? { state } : {} });
        state = answer.state;
        this.heard.append(answer.results[0].text ? `${answer.results[0].text} ` : "");
      } catch (problem) {
        this.heard.textContent = problem.message;
        return;
      }
    }
  }

  async finish() {
    if (!this.recording) return;
    const { context, pieces } = this.recording;
    const rate = context.sampleRate;
    this.#release();
    if (pieces.length) await this.bring(wav(joined(pieces), rate), "recording.wav");
  }

  #release() {
    if (!this.recording) return;
    const { stream, context } = this.recording;
    for (const track of stream.getTracks()) track.stop();
    context.close();
    this.recording = null;
    this.button.textContent = "Record";
    replace(this.recorder);
  }

  leave() {
    super.leave();
    this.#release();
  }
}
