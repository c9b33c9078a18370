// A class map over the picture, and each label's own mask.

import { fresh, h, replace } from "../dom.js";
import { percent } from "../numbers.js";
import { BesidePicture } from "./picture.js";

export class RegionsView extends BesidePicture {
  static fits = (answer, result) => typeof result.class_map === "string" && Array.isArray(result.segments);

  async show({ results: [result] }, context) {
    this.picture.show(result, context);
    const colours = palette(result.class_map);
    const map = h("img", { src: `data:image/png;base64,${result.class_map}`, alt: "" });
    await map.decode();
    this.canvas = h("canvas", { width: result.width, height: result.height });
    this.paint = this.canvas.getContext("2d", { willReadFrequently: true });
    this.map = map;
    this.#mask(null);
    this.picture.lay(this.canvas);
    const doubt = result.certainty_map ? await this.#doubtButton(result.certainty_map) : null;
    const id = fresh("opacity");
    const strength = h("input", { id, type: "range", min: 0, max: 1, step: 0.05, value: 0.6 });
    const fade = () => this.canvas.style.setProperty("opacity", strength.value);
    strength.addEventListener("input", fade);
    fade();
    replace(
      this.side,
      h(
        "ol",
        { class: "found" },
        result.segments.map(({ label, index, score, fraction }) => {
          const css = `rgb(${colours[index].join(" ")})`;
          const button = h("button", { type: "button", class: "small", "aria-pressed": "false" }, h("i", { class: "dot", "aria-hidden": "true", style: { background: css } }), `${label} ${percent(fraction)}`);
          button.addEventListener("click", () => this.#mask(this.#press(button) ? colours[index] : null));
          return h("li", {}, button, h("small", {}, ` sure by ${percent(score)}`));
        }),
      ),
      h("p", { class: "hint" }, "Press a label to see its mask alone."),
      doubt ? h("p", {}, doubt) : null,
      h("div", { class: "field" }, h("label", { for: id }, "Strength of the colours"), strength),
    );
  }

  // Of all buttons at most one is pressed; tells whether this one is now.
  #press(button) {
    const on = button.getAttribute("aria-pressed") !== "true";
    for (const other of this.side.querySelectorAll("[aria-pressed]")) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", String(on));
    return on;
  }

  async #doubtButton(base64) {
    const certainty = h("img", { src: `data:image/png;base64,${base64}`, alt: "" });
    await certainty.decode();
    const button = h("button", { type: "button", class: "small", "aria-pressed": "false" }, "Where it is unsure");
    button.addEventListener("click", () => (this.#press(button) ? this.#doubt(certainty) : this.#mask(null)));
    return button;
  }

  // Paint the doubt, the stronger the less certain a pixel's label is: grey 255 is certain.
  #doubt(certainty) {
    const { width, height } = this.canvas;
    this.paint.clearRect(0, 0, width, height);
    this.paint.drawImage(certainty, 0, 0, width, height);
    const pixels = this.paint.getImageData(0, 0, width, height);
    const { data } = pixels;
    for (let at = 0; at < data.length; at += 4) data.set([255, 40, 20, 255 - data[at]], at);
    this.paint.putImageData(pixels, 0, 0);
  }

  // Paint the map, or of it the pixels of one colour.
  #mask(colour) {
    const { width, height } = this.canvas;
    this.paint.clearRect(0, 0, width, height);
    this.paint.imageSmoothingEnabled = false;
    this.paint.drawImage(this.map, 0, 0, width, height);
    if (!colour) return;
    const pixels = this.paint.getImageData(0, 0, width, height);
    const { data } = pixels;
    for (let at = 0; at < data.length; at += 4) {
      if (data[at] !== colour[0] || data[at + 1] !== colour[1] || data[at + 2] !== colour[2]) data[at + 3] = 0;
    }
    this.paint.putImageData(pixels, 0, 0);
  }

  say({ results: [{ segments }] }) {
    return `${segments.slice(0, 3).map(({ label, fraction }) => `${label} ${percent(fraction)}`).join(", ")}${segments.length > 3 ? ` and ${segments.length - 3} more` : ""}.`;
  }
}

// The colours of an indexed PNG, from its PLTE chunk.
function palette(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  for (let at = 8; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at);
    if (String.fromCharCode(...bytes.slice(at + 4, at + 8)) === "PLTE") {
      return Array.from({ length: length / 3 }, (_, index) => [...bytes.slice(at + 8 + 3 * index, at + 11 + 3 * index)]);
    }
    at += length + 12;
  }
  return [];
}
