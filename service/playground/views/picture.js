// The picture as it was sent, with something laid over it, and beside it the picture as the model saw it.

import { ask } from "../api.js";
import { h, replace, svg } from "../dom.js";
import { size } from "../numbers.js";

export class Picture {
  constructor() {
    this.image = h("img", { alt: "" });
    this.over = h("div", { class: "over", "aria-hidden": "true" });
    this.caption = h("figcaption", { class: "hint" });
    this.sent = h("figure", { class: "picture" }, h("div", { class: "frame" }, this.image, this.over), this.caption);
    this.seen = h("figure", { class: "picture seen", hidden: true });
    this.element = h("div", { class: "pictures" }, this.sent, this.seen);
  }

  // What can be shown before there is an answer.
  open(file) {
    if (this.image.src === file.url) return;
    this.image.src = file.url;
    this.image.alt = `The picture as sent: ${file.name}`;
    this.image.onload = () => this.#fit(this.image.naturalWidth, this.image.naturalHeight);
    this.image.onerror = () => (this.caption.textContent = `Your browser cannot show ${file.name}; the service can read it.`);
    this.caption.textContent = `As sent: ${file.name}.`;
    this.seen.hidden = true;
    replace(this.over);
  }

  #fit(width, height) {
    this.sent.querySelector(".frame").style.setProperty("aspect-ratio", `${width} / ${height}`);
    this.sent.classList.toggle("tiny", width < 128);
  }

  show({ width, height }, context) {
    const { file } = context;
    this.open(file);
    this.#fit(width, height);
    this.caption.textContent = `As sent: ${file.name}, ${width} × ${height} pixels, ${size(file.blob.size)}.`;
    replace(this.over);
    this.#showSeen(context);
  }

  // What the graph was given: validation tells its pixels.
  async #showSeen({ file, column, request }) {
    const shown = `${file.url} ${column.choice.value}`;
    if (this.shown === shown) return;
    this.shown = shown;
    this.seen.hidden = true;
    const { path, query } = request;
    const { answer } = await ask({ path: `${path}:validate`, query, file }).catch(() => ({})); // it is an extra
    const png = answer?.files[0].seen;
    if (!png || this.shown !== shown) return;
    const image = h("img", { src: `data:image/png;base64,${png}`, alt: "The picture as the model saw it" });
    await image.decode();
    const caption = h("figcaption", { class: "hint" }, `As the model saw it: ${image.naturalWidth} × ${image.naturalHeight} pixels.`);
    replace(this.seen, image, caption);
    this.seen.hidden = false;
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

// A view of a picture with what is said of it beside it: `side` is the view's own.
export class BesidePicture {
  constructor() {
    this.picture = new Picture();
    this.side = h("div", {});
    this.element = h("div", { class: "beside" }, this.picture.element, this.side);
  }
}

// A file of several that could not be used has an error in place of an answer.
export function failed(result) {
  return result.error ? h("p", { class: "problem", role: "alert" }, result.error.detail) : null;
}
