// An answer that is no JSON: a picture is shown, anything else can be saved.

import { downloadLink, h, replace } from "../dom.js";
import { size } from "../numbers.js";

export class FileView {
  constructor() {
    this.element = h("div", {});
  }

  show(blob, { got }) {
    const [family, kind] = got.kind.split(";")[0].split("/");
    const link = downloadLink(blob, `answer.${kind}`, `Save the answer (${got.kind}, ${size(blob.size)})`);
    replace(this.element, family === "image" ? h("img", { class: "answer", src: link.href, alt: "The answer drawn on the picture" }) : null, h("p", {}, link));
    if (family === "text") blob.text().then((text) => this.element.append(h("pre", { tabindex: 0, "aria-label": "Answer" }, text)));
  }
}
