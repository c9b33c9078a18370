// The picture as it was sent, with something laid over it.

import { h, replace, svg } from "../dom.js";
import { size } from "../numbers.js";

export class Picture {
  constructor() {
    this.image = h("img", { alt: "" });
    this.over = h("div", { class: "over", "aria-hidden": "true" });
    this.caption = h("figcaption", { class: "hint" });
    this.element = h("figure", { class: "picture" }, h("div", { class: "frame" }, this.image, this.over), this.caption);
  }

  show(result, { file, column }) {
    const { width, height } = result;
    if (this.image.src !== file.url) this.image.src = file.url;
    this.image.alt = `The picture as sent: ${file.name}`;
    this.image.onerror = () => (this.caption.textContent = `Your browser cannot show ${file.name}; the service can read it.`);
    this.element.querySelector(".frame").style.setProperty("aspect-ratio", `${width} / ${height}`);
    this.element.classList.toggle("tiny", width < 128);
    const seen = inputSize(column.choice.version);
    this.caption.textContent = `As sent: ${file.name}, ${width} × ${height} pixels, ${size(file.blob.size)}.${seen ? ` The network reads ${seen[0]} × ${seen[1]}.` : ""}`;
    replace(this.over);
  }

  // rows: numbers 0..1 over the whole picture; the warmer, the more.
  heat(rows) {
    if (!rows) {
      replace(this.over);
      return;
    }
    const canvas = h("canvas", { class: "heat", width: rows[0].length, height: rows.length });
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(rows[0].length, rows.length);
    rows.flat().forEach((value, index) => pixels.data.set([255, 200 - 170 * value, 20, 210 * value ** 1.3], 4 * index));
    context.putImageData(pixels, 0, 0);
    replace(this.over, canvas);
  }

  draw(width, height, ...shapes) {
    replace(this.over, svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" }, ...shapes));
  }

  lay(element) {
    replace(this.over, element);
  }
}

// Width and height of a graph's picture, where they are fixed.
function inputSize({ inputs = [] }) {
  const shape = inputs.find((input) => input.shape.length === 4)?.shape;
  if (!shape) return null;
  const [height, width] = shape[3] === 3 || shape[3] === 1 ? [shape[1], shape[2]] : [shape[2], shape[3]];
  return typeof width === "number" && typeof height === "number" ? [width, height] : null;
}

// A switch that lays a heatmap over the picture and takes it off.
export function heatButton(picture, rows, words, on = false) {
  const button = h("button", { type: "button", class: "small", "aria-pressed": String(on) }, words);
  button.addEventListener("click", () => {
    const pressed = button.getAttribute("aria-pressed") !== "true";
    for (const other of button.closest(".view").querySelectorAll("[aria-pressed=true]")) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", String(pressed));
    picture.heat(pressed ? rows : null);
  });
  if (on) picture.heat(rows);
  return button;
}

// A file of several that could not be used has an error in place of an answer.
export function failed(result) {
  return result.error ? h("p", { class: "problem", role: "alert" }, result.error.detail) : null;
}
