// Where the time of a request went: the service's stages, and the rest, which is the way there and back.

import { h } from "./dom.js";

const MEANING = {
  decode: "reading what was sent",
  queue: "waiting for its turn",
  infer: "the network",
  encode: "writing the answer",
  "way there and back": "network, browser, HTTP",
};

export function timingBar({ stages, total_ms }) {
  const served = stages.reduce((sum, [, ms]) => sum + ms, 0);
  const rest = Math.max(0, total_ms - served);
  const parts = [...stages, ["way there and back", rest]];
  const whole = served + rest || 1;
  return h(
    "div",
    { class: "timing" },
    h("div", { class: "bar", "aria-hidden": "true" }, parts.map(([name, ms], index) => h("span", { class: `stage s${index % 5}`, style: { "flex-grow": String(ms / whole) } }))),
    h("ul", {}, parts.map(([name, ms], index) => h("li", { title: MEANING[name] ?? "" }, h("i", { class: `s${index % 5}`, "aria-hidden": "true" }), `${name} ${ms < 10 ? ms.toFixed(2) : ms.toFixed(0)} ms`))),
  );
}
