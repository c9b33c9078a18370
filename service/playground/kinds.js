// The page "CNN or RNN?": what was measured of both kinds of network on the same data, and a way to ask both.

import { getJson } from "./api.js";
import { h, replace } from "./dom.js";
import { percent, short, size } from "./numbers.js";

const KINDS = { cnn: "CNN", rnn: "RNN" };

// Shown for `#/cnn-or-rnn`. `tasksBy` says which task a model serves; `ask` opens its panel with two models side by side.
export function kindsPage(tasksBy, ask) {
  const measured = h("div", {}, h("p", { role: "status" }, "Fetching what was measured …"));
  getJson("playground/evidence.json").then(
    (evidence) => replace(measured, drawn(evidence, tasksBy, ask)),
    (problem) => replace(measured, h("p", { class: "problem", role: "alert" }, problem.message)),
  );
  return h(
    "section",
    { "data-page": "cnn-or-rnn" },
    h("h1", {}, "CNN or RNN?"),
    h(
      "p",
      { class: "lead" },
      "A convolutional network looks at a window: patterns across space. A recurrent one carries a memory from step to step: patterns across time. ",
      "Here the same pictures, series and texts go through one of each, as they are served.",
    ),
    measured,
  );
}

function drawn(evidence, tasksBy, ask) {
  const domains = [...new Set(evidence.contenders.map(({ domain }) => domain))];
  return [
    domains.map((domain) => comparison(evidence, domain, tasksBy, ask)),
    h("h2", {}, "At the same cost"),
    h("p", {}, "These models had unequal chances: some were trained for hours, with rules and tables beside the network. Of the pairs below, both networks saw the same data for the same CPU time."),
    table(
      ["", ...Object.values(KINDS)],
      [...new Set(evidence.trainings.map(({ domain }) => domain))].map((domain) => {
        const of = evidence.trainings.filter((training) => training.domain === domain);
        const value = (kind) => figure(of.find((training) => training.kind === kind) ?? {});
        return [`${domain}, ${short(of[0].minutes)} min each: ${of[0].name}`, ...Object.keys(KINDS).map(value)];
      }),
    ),
    h("p", { class: "hint" }, `Measured ${evidence.date} on ${evidence.processor}, one thread, ONNX Runtime ${evidence.onnxruntime}, on the official test data, by benchmarks/cnn_or_rnn.py; intervals hold 95 %.`),
  ];
}

function comparison(evidence, domain, tasksBy, ask) {
  const by = Object.fromEntries(evidence.contenders.filter((each) => each.domain === domain).map((each) => [each.kind, each]));
  const pair = Object.keys(KINDS).map((kind) => by[kind]);
  const row = (words, cell) => [words, ...pair.map(cell)];
  const task = tasksBy(pair[0].model);
  const both = task && pair.every(({ model }) => tasksBy(model) === task);
  return [
    h("h2", {}, domain[0].toUpperCase() + domain.slice(1)),
    table(
      ["", ...pair.map(({ kind, model, version }) => `${KINDS[kind]}: ${model}@${version}`)],
      [
        ...pair[0].figures.map(({ name }, place) => row(place || evidence.higher_is_better[domain] ? name : `${name} (lower is better)`, ({ figures }) => figure(figures[place]))),
        row(`time for a ${pair[0].item}`, ({ ms }) => `${short(ms)} ms`),
        row(`work for a ${pair[0].item}`, ({ mflop }) => `${short(mflop)} million operations`),
        row("weights", ({ weights }) => weights.toLocaleString("en")),
        row("file", ({ file_bytes }) => size(file_bytes)),
        row("memory of a stream", ({ state_bytes }) => (state_bytes ? size(state_bytes) : "none")),
      ],
    ),
    both ? h("p", {}, h("button", { type: "button", class: "small", onclick: () => ask(task, pair) }, "Ask both")) : null,
  ];
}

// A share as percent, anything else as it is; with its interval where there is one.
function figure({ value, interval }) {
  if (value == null) return "–";
  const shown = (number) => (value <= 1 ? percent(number) : short(number));
  return interval ? `${shown(value)} (${shown(interval[0])} to ${shown(interval[1])})` : shown(value);
}

function table(head, rows) {
  return h(
    "div",
    { class: "markdown scroll", tabindex: "0", role: "region", "aria-label": head.filter(Boolean).join(" and ") },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, head.map((words) => (words ? h("th", { scope: "col" }, words) : h("td", {}))))),
      h("tbody", {}, rows.map(([words, ...cells]) => h("tr", {}, h("th", { scope: "row" }, words), cells.map((cell) => h("td", {}, cell))))),
    ),
  );
}
