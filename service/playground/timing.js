// Where the time of a request went: the service's stages, and the rest, which is the way there and back.

import { h } from "./dom.js";

const MEANING = {
  decode: "reading what was sent",
  queue: "waiting for its turn",
  infer: "the network",
  encode: "writing the answer",
  "way there and back": "network, browser, HTTP",
  "between the stages": "from one stage to the next",
};

// rest: what the time is called that is in none of the stages.
export function timingBar({ stages, total_ms, rest = "way there and back" }) {
  const served = stages.reduce((sum, [, ms]) => sum + ms, 0);
  const left = Math.max(0, total_ms - served);
  const parts = [...stages, [rest, left]];
  const whole = served + left || 1;
  return h(
    "div",
    { class: "timing" },
    h("div", { class: "bar", "aria-hidden": "true" }, parts.map(([name, ms], index) => h("span", { class: `stage s${index % 5}`, style: { "flex-grow": String(ms / whole) } }))),
    h("ul", {}, parts.map(([name, ms], index) => h("li", { title: MEANING[name] ?? "" }, h("i", { class: `s${index % 5}`, "aria-hidden": "true" }), `${name} ${ms < 10 ? ms.toFixed(2) : ms.toFixed(0)} ms`))),
  );
}
