"""The pictures of a model card, as PNG. The only module that needs matplotlib.

Each function draws one kind of plot into a figure; it is named by `Plot.draw`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from service.evaluation.base import Plot
from service.evaluation.statistics import Floats, Reliability, average_precision, wilson

BLUE, ORANGE, GREY, GREEN = "#2f6db5", "#d9722e", "#8a8f98", "#4a9a5b"
COLOURS = (BLUE, ORANGE, GREEN, "#8d5fb0", GREY, "#b8475b")
DPI = 110


def save(plot: Plot, folder: Path) -> Path:
    """Draw a plot into `folder`, which is made where it is missing. The same data give the same bytes."""
    figure = Figure(figsize=(6.4, 4.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    draw = globals()[plot.draw] if isinstance(plot.draw, str) else plot.draw
    draw(figure, **plot.data)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / plot.file
    figure.savefig(path, format="png", metadata={"Software": None})
    return path


def confusion_matrix(figure: Figure, matrix: NDArray[np.int64], labels: Sequence[str]) -> None:
    """Answers (columns) to each class (rows), in percent of the row; numbers where they can be read."""
    figure.set_size_inches(6.4, 5.6)
    axes = figure.add_subplot()
    with np.errstate(invalid="ignore"):
        share = np.nan_to_num(100 * matrix / matrix.sum(axis=1, keepdims=True))
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    if len(labels) <= 30:
        ticks = range(len(labels))
        axes.set_xticks(ticks, labels, rotation=45, ha="right")
        axes.set_yticks(ticks, labels)
    if len(labels) <= 15:
        for (row, column), value in np.ndenumerate(share):
            if matrix[row, column]:
                colour = "white" if value > 55 else "black"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xlabel("answer")
    axes.set_ylabel("label")
    figure.colorbar(image, ax=axes, label="% of the row", shrink=0.8)


def reliability_diagram(figure: Figure, bins: Reliability, of: str) -> None:
    """Accuracy over confidence, and the share of the answers in each bin."""
    figure.set_size_inches(6.0, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    width = float(bins.edges[1] - bins.edges[0])
    used = bins.count > 0
    centres = (bins.edges[:-1] + bins.edges[1:]) / 2
    top.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="calibrated")
    top.bar(centres[used], bins.accuracy[used], width=width * 0.92, color=BLUE, alpha=0.35, label="right")
    hits = np.rint(bins.accuracy[used] * bins.count[used]).astype(int)
    ends = np.array([wilson(int(hit), int(n)) for hit, n in zip(hits, bins.count[used], strict=True)]).reshape(-1, 2)
    lengths = np.abs(ends.T - bins.accuracy[used])
    mark = {"fmt": "o", "color": BLUE, "markersize": 4, "elinewidth": 1, "capsize": 2}
    top.errorbar(bins.confidence[used], bins.accuracy[used], lengths, label="95 % interval", **mark)
    top.set_ylim(0, 1)
    top.set_ylabel("share that is right")
    top.legend(loc="upper left", frameon=False)
    top.text(0.98, 0.06, f"expected calibration error {bins.error:.4f}", ha="right", transform=top.transAxes)
    bottom.bar(centres, bins.count / max(1, bins.count.sum()), width=width * 0.92, color=ORANGE)
    bottom.set_xlim(0, 1)
    bottom.set_xlabel("probability of the best answer")
    bottom.set_ylabel(f"share of\n{of}")


def top_k_accuracy(figure: Figure, curves: Mapping[str, Floats]) -> None:
    """Share of words that are among the first k suggestions."""
    axes = figure.add_subplot()
    for (name, curve), colour in zip(curves.items(), COLOURS * 10, strict=False):
        axes.plot(range(1, len(curve) + 1), 100 * curve, "o-", color=colour, markersize=4, label=name)
    axes.set_xlabel("suggestions looked at")
    axes.set_ylabel("% of words among them")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    if curves:
        axes.legend(frameon=False)


def perplexity_by_frequency(
    figure: Figure, names: Sequence[str], perplexities: Sequence[float], shares: Sequence[float]
) -> None:
    """Perplexity of the tokens in each range of the vocabulary, and how much of the text they are."""
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
    places = range(len(names))
    left.barh(places, perplexities, color=BLUE, log=True)
    for place, value in zip(places, perplexities, strict=True):
        left.text(value, place, f" {value:,.0f}" if value >= 10 else f" {value:.1f}", va="center", fontsize=8)
    left.set_yticks(places, names)
    left.invert_yaxis()
    left.set_xlim(1, 6 * max(perplexities))
    left.set_xlabel("perplexity (logarithmic)")
    left.set_ylabel("rank in the vocabulary")
    right.barh(places, [100 * share for share in shares], color=ORANGE)
    right.set_xlabel("% of the tokens")


def precision_recall(
    figure: Figure, precision: Floats, recall: Floats, here: tuple[float, float], chance: float
) -> None:
    """The curve over all thresholds, the point that is served (precision, recall), and the precision of chance."""
    axes = figure.add_subplot()
    area = average_precision(precision, recall)
    chosen = np.flatnonzero(np.diff(recall, prepend=0.0) > 0)  # the others add nothing to the area
    if len(chosen) > 5_000:  # as many as can be seen
        chosen = chosen[np.linspace(0, len(chosen) - 1, 5_000).astype(int)]
    precision, recall = precision[chosen], recall[chosen]
    axes.step(
        [0, *recall], [*precision[:1], *precision], where="pre", color=BLUE, label=f"average precision {area:.3f}"
    )
    axes.axhline(chance, color=GREY, linestyle="--", linewidth=1, label=f"chance: precision {chance:.3f}")
    if np.isfinite(here).all():
        label = f"as served: precision {here[0]:.2f}, recall {here[1]:.2f}"
        axes.plot(here[1], here[0], "o", color=ORANGE, label=label)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.legend(frameon=False)


def series_example(
    figure: Figure,
    title: str,
    begin: int,
    values: Floats,
    lower: Floats,
    upper: Floats,
    labels: NDArray[np.bool_],
    alarms: NDArray[np.bool_],
) -> None:
    """A series with the band around what was expected, labelled points and alarms."""
    figure.set_size_inches(9, 3)
    axes = figure.add_subplot()
    at = np.arange(begin, begin + len(values))
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    room = 0.15 * (high - low or 1.0)
    axes.set_ylim(low - room, high + room)
    axes.fill_between(
        at, np.maximum(lower, low - 10 * room), np.minimum(upper, high + 10 * room),
        color=BLUE, alpha=0.18, linewidth=0, label="band",
    )  # fmt: skip
    axes.plot(at, values, color="#333333", linewidth=0.8, label="value")
    axes.fill_between(
        at, 0, 1, where=labels.tolist(), transform=axes.get_xaxis_transform(), color=ORANGE, alpha=0.2, linewidth=0,
        label="labelled",
    )  # fmt: skip
    axes.plot(at[alarms], values[alarms], "o", color="#c0392b", markersize=4, label="alarm")
    axes.set_title(textwrap.shorten(title, 80), fontsize=10)
    axes.set_xlabel("point")
    axes.margins(x=0.01)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
