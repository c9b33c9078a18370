// A picture: dropped, pasted, chosen, or from the camera.

import { h, replace } from "../dom.js";
import { FileInput } from "./file.js";

export class PictureInput extends FileInput {
  get noun() {
    return "picture";
  }

  extras() {
    this.camera = h("div", { class: "camera" });
    return [h("button", { type: "button", onclick: () => this.#open() }, "Use the camera"), this.camera];
  }

  async #open() {
    if (!navigator.mediaDevices) {
      replace(this.camera, h("p", { class: "problem" }, "Browsers give pages the camera on https and on localhost only."));
      return;
    }
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      replace(this.camera, h("p", { class: "problem", role: "alert" }, `The camera cannot be used: ${error.message}.`));
      return;
    }
    const video = h("video", { autoplay: true, playsinline: true, muted: true, "aria-label": "What the camera sees" });
    video.srcObject = this.stream;
    replace(this.camera, video, h("button", { type: "button", class: "primary", onclick: () => this.#shoot(video) }, "Take the picture"), h("button", { type: "button", onclick: () => this.#close() }, "Close the camera"));
  }

  async #shoot(video) {
    const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    this.#close();
    const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.9));
    await this.bring(blob, "camera.jpg");
  }

  #close() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    replace(this.camera);
  }

  leave() {
    super.leave();
    this.#close();
  }
}
