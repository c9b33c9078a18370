"""The plots of `cnn_or_rnn.py`: curves, and what goes on inside the networks, from the published graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cnn_or_rnn as bench
import numpy as np
import onnx
from measuring.plots import INK, drawing, save

from service.evaluation import load_script
from service.text.tokeniser import tokenise
from service.text.vocabulary import UNKNOWN

COLOURS = {"rnn": "#bf5700", "cnn": "#0969da"}
UNITS = 8
"""Feature maps that are shown (count)."""
TRACES = 5
"""Hidden units and channels whose traces are shown of each network (count)."""
SENTENCE = "I would like to book a table for two people tomorrow evening ."


def draw(document: Mapping[str, Any], data: Path, folder: Path) -> None:
    """All of them, as `cnn_or_rnn_*.svg`."""
    contenders = {(one["domain"], one["kind"]): one for one in document["contenders"]}
    files = {key: bench.MODELS / one["model"] / one["version"] / "model.onnx" for key, one in contenders.items()}
    with drawing("cnn_or_rnn") as plt:
        save(curves(plt, document["curves"]), folder / "cnn_or_rnn_curves.svg")
        save(trainings(plt, document["trainings"]), folder / "cnn_or_rnn_trainings.svg")
        pixels, _ = load_script(bench.MODELS / "cifar10-cnn" / "evaluate.py").load(data)
        save(inside_pictures(plt, files, pixels[1:2]), folder / "cnn_or_rnn_picture.svg")
        save(inside_series(plt, files), folder / "cnn_or_rnn_series.svg")
        save(inside_text(plt, files), folder / "cnn_or_rnn_text.svg")


def curves(plt: Any, found: Mapping[str, Any]) -> Any:
    """Cost by length, perplexity by context, accuracy of moved pictures."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
    for kind, colour in COLOURS.items():
        left.plot(found["series"]["points"], found["series"][kind], "o-", color=colour, label=kind.upper())
        middle.plot(found["texts"]["words before"], found["texts"][kind], color=colour, label=kind.upper())
        for way, style in (("down", "-"), ("right", "--")):
            label = f"{kind.upper()}, {way}"
            right.plot(found["pictures"]["pixels"], found["pictures"][kind][way], style, color=colour, label=label)
    left.set(xscale="log", yscale="log", xlabel="points in one request", ylabel="ms", title="series: cost by length")
    middle.set(
        xlabel="words before it", ylabel="perplexity of a word", yscale="log", title="texts: what context is worth"
    )
    right.set(xlabel="pixels that it is moved", ylabel="accuracy", title="pictures: moved")
    for axes in (left, middle, right):
        axes.grid(visible=True)
        axes.legend(fontsize=8)
    return figure


def trainings(plt: Any, found: Mapping[str, Any]) -> Any:
    """What each kind had reached by when, on data held out."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for kind, colour in COLOURS.items():
        pictures = np.array(found["cifar10-rnn"]["networks"][kind]["held out"])
        left.plot(pictures[:, 0], pictures[:, 1], "o-", color=colour, label=kind.upper())
        log = found["english-cnn"]["networks"][kind]["validation"]
        minutes, reached = [one[0] for one in log], [one[1]["WikiText-2"] for one in log]
        right.plot(minutes, reached, "o-", color=colour, label=kind.upper())
    left.set(xlabel="minutes of a core", ylabel="accuracy, held out", title="pictures", ylim=(0, 1))
    right.set(xlabel="minutes of a core", ylabel="WikiText-2 perplexity, validation", title="texts")
    for axes in (left, right):
        axes.set_xlim(0)
        axes.grid(visible=True)
        axes.legend()
    return figure


def nodes_of(file: Path, *kinds: str) -> list[str]:
    """What the nodes of these operators write, in the order of the graph."""
    return [node.output[0] for node in onnx.load(file).graph.node if node.op_type in kinds]


def liveliest(units: np.ndarray, points: int = 12) -> np.ndarray:
    """The places of the units (units, time) that move most, apart from the noise: by their means over so many points."""
    smooth = np.apply_along_axis(np.convolve, 1, units, np.ones(points) / points, "valid")
    return np.argsort(-smooth.std(1))[:TRACES]


def inside_pictures(plt: Any, files: Mapping[tuple[str, str], Path], picture: np.ndarray) -> Any:
    """A picture, the CNN's first feature maps, and the RNN's hidden units after each row."""
    file = files["pictures", "cnn"]
    first = nodes_of(file, "Conv", "QLinearConv", "ConvInteger")[0]
    maps = bench.Graph(file, extra=[first]).session.run([first], {"image": picture})[0][0]
    file = files["pictures", "rnn"]
    states = bench.Graph(file, extra=["states1"]).session.run(["states1"], {"image": picture})[0][:, 0]  # (rows, units)
    figure = plt.figure(figsize=(9, 3.4), layout="constrained")
    grid = figure.add_gridspec(2, 3 + UNITS // 2, width_ratios=[2, *[1] * (UNITS // 2), 2.6, 0.1])
    axes = figure.add_subplot(grid[:, 0])
    axes.imshow(picture[0], interpolation="none")
    axes.set_title("the picture", fontsize=9)
    axes.axis("off")
    chosen = np.argsort(-maps.std((1, 2)))[:UNITS]
    for k, unit in enumerate(chosen):
        axes = figure.add_subplot(grid[k // (UNITS // 2), 1 + k % (UNITS // 2)])
        axes.imshow(maps[unit], cmap="magma", interpolation="none")
        axes.axis("off")
        if not k:
            axes.set_title("CNN: feature maps of the first layer", fontsize=9, loc="left")
    axes = figure.add_subplot(grid[:, 1 + UNITS // 2])
    order = np.argsort(np.abs(states).argmax(0))
    axes.imshow(states[:, order], cmap="coolwarm", vmin=-1, vmax=1, aspect="auto", interpolation="none")
    axes.set_title("RNN: hidden units, row by row", fontsize=9)
    axes.set(xlabel="unit, by its strongest row", ylabel="row")
    return figure


def inside_series(plt: Any, files: Mapping[tuple[str, str], Path]) -> Any:
    """A series with a spike and a new level, and what hidden units and channels make of it."""
    values = bench.rhythm(1500)
    values[1250] += 25
    values[1350:] += 8
    part = slice(1100, 1500)
    file = files["series", "rnn"]
    (gru,) = nodes_of(file, "GRU")
    graph = bench.Graph(file, extra=[gru])
    hidden = graph.session.run([gru], {**bench.series_feed(values), **graph.fresh()})[0][:, 0, 0].T[:, part]
    file = files["series", "cnn"]
    last = nodes_of(file, "Relu")[-1]
    graph = bench.Graph(file, extra=[last])
    channels = graph.session.run([last], {**bench.series_feed(values), **graph.fresh()})[0][0]
    channels = channels[:, -len(values) :][:, part]
    figure, rows = plt.subplots(3, 1, figsize=(9, 5), layout="constrained", sharex=True)
    time = np.arange(len(values))[part]
    rows[0].plot(time, values[part], color=INK, linewidth=1)
    rows[0].set_title("a rhythm, a spike at 1250 and a new level from 1350 on", fontsize=9, loc="left")
    for axes, units, kind, title in (
        (rows[1], hidden, "rnn", "RNN: hidden units of the GRU"),
        (rows[2], channels, "cnn", "CNN: channels of the last convolution"),
    ):
        for unit in liveliest(units):
            axes.plot(time, units[unit], color=COLOURS[kind], linewidth=0.8, alpha=0.7)
        axes.set_title(title, fontsize=9, loc="left")
    rows[2].set_xlabel("point")
    return figure


def inside_text(plt: Any, files: Mapping[tuple[str, str], Path]) -> Any:
    """A sentence, the LSTM's hidden units and the gates of the convolutions after each word."""
    words = (bench.MODELS / "english-lstm" / "1" / "vocabulary.txt").read_text("utf-8").removesuffix("\n").split("\n")
    tokens = tokenise(SENTENCE)
    feed = bench.text_feed(np.array([words.index(t) if t in words else words.index(UNKNOWN) for t in tokens]))
    file = files["texts", "rnn"]
    (lstm,) = nodes_of(file, "LSTM")
    graph = bench.Graph(file, extra=[lstm])
    hidden = graph.session.run([lstm], {**feed, **graph.fresh()})[0][:, 0, 0].T
    file = files["texts", "cnn"]
    gate = nodes_of(file, "Sigmoid")[-1]
    graph = bench.Graph(file, extra=[gate])
    gates = graph.session.run([gate], {**feed, **graph.fresh()})[0][0].T
    figure, rows = plt.subplots(2, 1, figsize=(9, 4.6), layout="constrained", sharex=True)
    for axes, units, colours, bounds, title in (
        (rows[0], hidden, "coolwarm", (-1, 1), "RNN: hidden units of the LSTM"),
        (rows[1], gates, "viridis", (0, 1), "CNN: gates of the last layer"),
    ):
        chosen = np.argsort(-units.std(1))[:24]
        chosen = chosen[np.argsort(units[chosen].argmax(1))]
        axes.imshow(units[chosen], cmap=colours, vmin=bounds[0], vmax=bounds[1], aspect="auto", interpolation="none")
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_ylabel("unit")
    rows[1].set_xticks(range(len(tokens)), tokens, rotation=45, ha="right")
    return figure
