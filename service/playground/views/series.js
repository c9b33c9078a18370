// A series with the band in which points are normal and those that are not; or with the fan of what may come.

import { Chart } from "../chart.js";
import { h, replace } from "../dom.js";
import { plural, short } from "../numbers.js";
import { bars } from "./labels.js";

const SHOWN = 400; // latest points of a long series

export class SeriesView {
  static fits = (answer) => isBand(answer) || isFan(answer);

  constructor() {
    this.chart = new Chart("Series");
    this.notes = h("div", {});
    this.sent = h("p", { class: "hint sent" });
    this.element = h("div", {}, this.chart.element, this.notes, this.sent);
  }

  async show(answer, { joined, values, timestamps, sent }) {
    this.sent.textContent = sent;
    const { x, isTime, shown } = axis(values.length, timestamps, isFan(answer) ? answer : null);
    const from = values.length - shown;
    await (isBand(answer) ? this.#band(joined, values.slice(from), x, isTime, from) : this.#fan(answer, values.slice(from), x, isTime, timestamps));
  }

  async #band({ expected, lower, upper, is_anomaly: flags, scores, anomalies, causes }, values, x, isTime, from) {
    const cut = (list) => list.slice(from);
    const isNew = (at) => causes && causes.novelty[at] > causes.error[at];
    const strange = (test) => values.map((value, index) => (flags[from + index] && test(from + index) ? value : null));
    this.chart.describe(`Chart of ${plural(values.length, "point")} with the band of normal values; ${plural(anomalies.length, "anomaly").replace("anomalys", "anomalies")}.`);
    await this.chart.show({
      x,
      isTime,
      lines: [
        { label: "upper", values: cut(upper), colour: "line", width: 0.5, edge: true },
        { label: "lower", values: cut(lower), colour: "line", width: 0.5, edge: true },
        { label: "expected", values: cut(expected), colour: "accent", width: 1.2, dash: [5, 4] },
        { label: "sent", values, colour: "ink", width: 1.5, dots: values.length < 40 },
        { label: causes ? "anomaly: far from expected" : "anomaly", values: strange((at) => !isNew(at)), colour: "bad-line", points: true },
        ...(causes ? [{ label: "anomaly: new together", values: strange(isNew), colour: "warn-line", points: true }] : []),
      ],
      bands: [[0, 1, "band"]],
      span: span(values, cut(expected)),
    });
    const why = (at) => (causes ? `: ${isNew(at) ? "the latest points are new together" : "far from what was expected"} (error ${causes.error[at].toFixed(2)}, novelty ${causes.novelty[at].toFixed(2)})` : "");
    const rows = anomalies.slice(-8).map((index) => h("li", {}, `point ${index}: ${short(values[index - from] ?? null)} where ${short(expected[index])} was expected, score ${scores[index].toFixed(2)}${why(index)}`));
    replace(this.notes, anomalies.length ? [h("h3", {}, anomalies.length > 8 ? `The last 8 of ${anomalies.length} anomalies` : "Anomalies"), h("ul", { class: "anomalies" }, rows)] : h("p", {}, "No anomaly: every point is inside the band."));
  }

  async #fan({ mean, quantiles, horizon, timestamps: coming, influences }, values, x, isTime, timestamps) {
    const levels = Object.keys(quantiles);
    const past = values.map(() => null);
    // The fan begins at the last point, so that it hangs on the series.
    const hung = (list) => [...past.slice(0, -1), values.at(-1) ?? list[0], ...list];
    const lines = [{ label: "sent", values: [...values, ...mean.map(() => null)], colour: "ink", width: 1.5, dots: values.length < 40 }];
    const bands = [];
    for (let low = 0; low < levels.length - 1 - low; low++) {
      const high = levels.length - 1 - low;
      lines.push({ label: `${levels[high]}`, values: hung(quantiles[levels[high]]), colour: "line", width: 0.5, edge: true }, { label: `${levels[low]}`, values: hung(quantiles[levels[low]]), colour: "line", width: 0.5, edge: true });
      bands.push([lines.length - 2, lines.length - 1, "band"]);
    }
    if (levels.length % 2) lines.push({ label: `${levels[(levels.length - 1) / 2]}`, values: hung(quantiles[levels[(levels.length - 1) / 2]]), colour: "accent", width: 2 });
    lines.push({ label: "mean", values: hung(mean), colour: "warn-line", width: 1.2, dash: [5, 4] });
    this.chart.describe(`Chart of ${plural(values.length, "point")} and a forecast of ${plural(horizon, "point")}, from ${short(quantiles[levels[0]].at(-1))} to ${short(quantiles[levels.at(-1)].at(-1))} at its end.`);
    await this.chart.show({ x, isTime, lines, bands });
    const column = (name, list) => h("tr", {}, h("th", { scope: "row" }, name), [0, Math.floor(horizon / 2), horizon - 1].map((at) => h("td", {}, short(list[at]))));
    const when = (at) => coming?.[at] ?? `+${at + 1}`;
    replace(
      this.notes,
      h(
        "table",
        { class: "plain" },
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "quantile"), [0, Math.floor(horizon / 2), horizon - 1].map((at) => h("th", { scope: "col" }, String(when(at)))))),
        h("tbody", {}, levels.map((level) => column(level, quantiles[level])), column("mean", mean)),
      ),
      influences?.length ? [h("h3", {}, "What it rests on"), this.#influences(influences, timestamps), h("p", { class: "hint" }, "By how much the median moves, in the series' own unit, had these points been missing.")] : null,
    );
  }

  // Blocks of earlier points, the latest first, each as long as its change.
  #influences(influences, timestamps) {
    const most = Math.max(...influences.map(({ change }) => change)) || 1;
    const name = (at) => timestamps?.at(at) ?? String(at).replace("-", "−");
    return bars(influences.map(({ first, last, change }) => [first === last ? name(first) : `${name(first)} to ${name(last)}`, change / most, short(change)]));
  }

  say(answer) {
    if (isBand(answer)) return `${answer.anomalies.length || "no"} anomal${answer.anomalies.length === 1 ? "y" : "ies"} in ${plural(answer.scores.length, "point")}.`;
    return `the next ${plural(answer.horizon, "point")}.`;
  }
}

// Of a band that is wide at first, as much is seen as the series is high, above and below.
function span(values, expected) {
  const known = values.filter((value) => value !== null);
  if (!known.length) return undefined;
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const room = high - low || Math.abs(high) || 1;
  const near = expected.filter((value) => value !== null && value > low - room / 3 && value < high + room / 3);
  return [Math.min(low, ...near) - room / 4, Math.max(high, ...near) + room / 4];
}

const isBand = (answer) => ["expected", "lower", "upper", "is_anomaly"].every((name) => Array.isArray(answer[name]));
const isFan = (answer) => Array.isArray(answer.mean) && typeof answer.quantiles === "object";

// The x axis: times where all can be read, else numbers of points; for a forecast with those that are to come.
function axis(count, timestamps, fan) {
  const shown = Math.min(count, SHOWN);
  const from = count - shown;
  const coming = fan?.horizon ?? 0;
  const stamps = timestamps && (!fan || fan.timestamps) ? [...timestamps.slice(from), ...(fan?.timestamps ?? [])].map(seconds) : null;
  const rising = stamps?.every((stamp, index) => Number.isFinite(stamp) && (index === 0 || stamp > stamps[index - 1]));
  if (rising) return { x: stamps, isTime: true, shown };
  return { x: Array.from({ length: shown + coming }, (_, index) => from + index), isTime: false, shown };
}

const seconds = (stamp) => (typeof stamp === "number" ? (stamp > 1e17 ? stamp / 1e9 : stamp > 1e14 ? stamp / 1e6 : stamp > 1e11 ? stamp / 1e3 : stamp) : Date.parse(stamp) / 1000);
