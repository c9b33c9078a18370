// A line chart with bands, by uPlot, in the page's colours and width.

import { h, library } from "./dom.js";
import { colour, onTheme } from "./theme.js";

const HEIGHT = 300;

// Call `show` with:
//   x: numbers; isTime: whether they are Unix seconds;
//   lines: [{ label, values, colour, width, dash, points, edge }], values as many as x, null where there is none;
//   bands: [[index of the upper line, index of the lower one, colour]];
//   span: [lowest, highest] that has to be seen; left out, everything is.
export class Chart {
  constructor(label) {
    this.element = h("div", { class: "chart", role: "img", "aria-label": label });
    new ResizeObserver(() => this.plot?.setSize(this.#size())).observe(this.element);
    onTheme(() => this.drawn && this.element.isConnected && this.show(this.drawn, true));
  }

  describe(text) {
    this.element.setAttribute("aria-label", text);
  }

  async show(drawn, anew = false) {
    this.drawn = drawn;
    const UPlot = await library("uPlot.iife.min.js", "uPlot");
    if (this.drawn !== drawn) return; // something newer came meanwhile
    const shape = JSON.stringify([drawn.isTime, drawn.lines.map(({ label }) => label), drawn.bands]);
    const data = [drawn.x, ...drawn.lines.map(({ values }) => values)];
    if (this.plot && this.shape === shape && !anew) {
      this.plot.setData(data);
      return;
    }
    this.plot?.destroy();
    this.shape = shape;
    this.plot = new UPlot(this.#options(drawn), data, this.element);
  }

  #size() {
    return { width: Math.max(240, this.element.clientWidth), height: HEIGHT };
  }

  #options({ isTime, lines, bands }) {
    const axis = { stroke: colour("soft"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 } };
    return {
      ...this.#size(),
      scales: { x: { time: isTime }, y: { range: (plot, low, high) => roomy(this.drawn.span ?? [low, high]) } },
      axes: [axis, { ...axis, size: 60 }],
      series: [
        { label: isTime ? "time" : "point" },
        ...lines.map((line) => ({
          label: line.label,
          class: line.edge ? "edge" : undefined, // of a band: not in the legend
          stroke: colour(line.colour),
          width: line.points ? 0 : (line.width ?? 1.5),
          dash: line.dash,
          paths: line.points ? () => null : undefined,
          points: line.points ? { show: true, size: 10, width: 2, stroke: colour(line.colour), fill: colour("paper") } : { show: line.dots ?? false },
          value: (_, value) => (value == null ? "–" : String(+value.toPrecision(5))),
        })),
      ],
      bands: bands.map(([upper, lower, name]) => ({ series: [upper + 1, lower + 1], fill: colour(name) })),
      legend: { live: false },
    };
  }
}

// A little more than what has to be seen, and something where all values are one.
function roomy([low, high]) {
  const margin = 0.06 * (high - low) || Math.abs(high) * 0.1 || 1;
  return [low - margin, high + margin];
}
