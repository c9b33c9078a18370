"""CNN or RNN? The same pictures, series and texts through a network of each kind: how good, how costly, how large.

    python benchmarks/cnn_or_rnn.py --data DIR                       # table, plots, JSON, and the evidence of `gridloop advise`
    python benchmarks/cnn_or_rnn.py --data DIR --url http://127.0.0.1:8000     # and what a request takes through a running server
    python benchmarks/cnn_or_rnn.py --data DIR --quick --out /tmp/try          # a hundredth of the data, to see that it runs

| domain | one of each kind | how good, on official test data |
|---|---|---|
| pictures | cifar10-rnn (row by row), cifar10-cnn@2 | top-1 of CIFAR-10's 10,000 test pictures; Wilson's interval |
| series | series-gru, series-cnn | NAB's standard profile, best single threshold; bootstrap over its 58 series |
| texts | english-lstm, english-cnn | perplexity of WikiText-2's test tokens as one stream, bootstrap over articles; top-1 of clinc150's test lines, one place in each |

**Cost** is the median CPU time of one item on one thread, the two models in turns: a picture alone, one more point of a stream
whose memory is full, one more word of a text. **MFLOP** are counted from the nodes that really run for such an item: two for each
multiplication of a product or convolution, one for each number that any other node writes. **State** is what a stream's caller
carries from request to request; **weights** are the file's constants.

Beside the table, three questions to each pair: the cost of a longer series in one request and the surprise of a word by how
many words stand before it; the accuracy of a picture that is moved; and what a training of the same CPU time reaches, from
the models' `training.json`.

DIR holds `cifar10`, `nab`, `wikitext2` and `english_text`, as the models' `evaluate.py` say. Needs onnx and matplotlib.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import nab  # noqa: E402
import perplexity as texts  # noqa: E402

from service.cpu import processor_name  # noqa: E402
from service.evaluation import load_script  # noqa: E402
from service.evaluation.statistics import bootstrap_sums, wilson  # noqa: E402
from service.evaluation.statistics import perplexity as perplexity_of  # noqa: E402
from service.registry.golden import golden_request, read_golden  # noqa: E402
from service.registry.handle import LoadOptions  # noqa: E402
from service.registry.loading import load_version  # noqa: E402
from service.registry.repository import scan  # noqa: E402
from service.runtime.eight_bits import keep_sums_exact  # noqa: E402
from service.tasks import discover  # noqa: E402
from service.text.tokeniser import END, tokenise  # noqa: E402
from service.text.vocabulary import UNKNOWN  # noqa: E402

MODELS = ROOT / "models"
EVIDENCE = ROOT / "service" / "playground" / "evidence.json"
RESULTS = ROOT / "benchmarks" / "results" / "cnn_or_rnn.json"
PLOTS = ROOT / "docs" / "plots"
PAGE = ROOT / "docs" / "cnn-or-rnn.md"
Arrays = dict[str, np.ndarray]
LENGTHS = (1, 16, 256, 4096)
"""Points of a series in one request."""
SHIFTS = (0, 2, 4, 6, 8)
"""How far a picture is moved (pixels)."""
CONTEXT = 48
"""Words of the windows that are read from a fresh state."""


@dataclass(frozen=True)
class Contender:
    """A version of a model, and the kind of its network."""

    domain: str
    kind: str
    model: str
    version: str

    @property
    def folder(self) -> Path:
        return MODELS / self.model / self.version

    @property
    def name(self) -> str:
        return f"{self.model}@{self.version}"


PAIRS = (
    (Contender("pictures", "rnn", "cifar10-rnn", "1"), Contender("pictures", "cnn", "cifar10-cnn", "2")),
    (Contender("series", "rnn", "series-gru", "2"), Contender("series", "cnn", "series-cnn", "1")),
    (Contender("texts", "rnn", "english-lstm", "1"), Contender("texts", "cnn", "english-cnn", "1")),
)
ITEMS = {"pictures": "picture", "series": "point", "texts": "word"}
MEASURES = {
    "pictures": "CIFAR-10 test accuracy",
    "series": "NAB standard profile",
    "texts": "WikiText-2 test perplexity",
}
HIGHER = {"pictures": True, "series": True, "texts": False}
"""Whether a larger figure is the better one."""


# ------------------------------------------------------------------------------------------------------------- graphs


class Graph:
    """A graph on one thread, with the state of one stream."""

    def __init__(self, file: Path, profile: Path | None = None, extra: Sequence[str] = ()) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        keep_sums_exact(options)
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
            options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights have no shape to tell
        model: str | bytes = str(file)
        if extra:
            shown = onnx.load(file)
            shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in extra)
            model = shown.SerializeToString()
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        dtypes = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64}
        outputs = {output.name for output in self.session.get_outputs()}
        self.states = {
            i.name: (i.shape[1:], dtypes[i.type]) for i in self.session.get_inputs() if f"next_{i.name}" in outputs
        }

    def fresh(self, rows: int = 1) -> Arrays:
        """The state of streams that begin."""
        return {name: np.zeros((rows, *shape), dtype) for name, (shape, dtype) in self.states.items()}

    @property
    def state_bytes(self) -> int:
        return sum(array.nbytes for array in self.fresh().values())

    def run(self, feed: Mapping[str, np.ndarray], *wanted: str) -> Arrays:
        names = [*wanted, *(f"next_{name}" for name in self.states)]
        return dict(zip(names, self.session.run(names, dict(feed)), strict=True))

    def after(self, found: Arrays) -> Arrays:
        """The state for the next call."""
        return {name: found[f"next_{name}"] for name in self.states}


def weights_of(file: Path) -> int:
    """How many numbers the file's constants hold (count). Those of one number are settings, and wide types are places and axes."""
    tensors = [numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer]
    return sum(tensor.size for tensor in tensors if tensor.size > 1 and tensor.dtype.itemsize <= 4)


def flops(events: Sequence[Mapping[str, Any]]) -> float:
    """Floating-point or integer operations of the nodes in a profile of ONNX Runtime.

    A product counts two for each multiplication, any other node one for each number that it writes.
    """
    total = 0.0
    for event in events:
        args = event.get("args", {})
        kind, given, made = args.get("op_name", ""), args.get("input_type_shape"), args.get("output_type_shape")
        if event.get("cat") != "Node" or not kind or given is None or not made:
            continue
        inputs = [next(iter(one.values())) for one in given]
        written = math.prod(next(iter(made[0].values())))
        if "Conv" in kind:  # the weights are the first input after the picture with all its axes
            total += 2 * written * math.prod(next(one for one in inputs[1:] if len(one) == len(inputs[0]))[1:])
        elif "MatMul" in kind or "Gemm" in kind:
            total += 2 * written * inputs[0][-1]
        elif kind in ("GRU", "LSTM", "DynamicQuantizeLSTM"):
            steps, rows = inputs[0][:2]
            total += 2 * steps * rows * (math.prod(inputs[1]) + math.prod(inputs[2]))
        elif kind not in ("If", "Loop", "Scan"):  # what is inside them has events of its own
            total += written
    return total


def profiled_mflop(contender: Contender, item: Item) -> float:
    """MFLOP of one item."""
    with tempfile.TemporaryDirectory() as folder:
        graph = Graph(contender.folder / "model.onnx", Path(folder) / "profile")
        graph.run(item.feed(graph), *item.wanted)
        first = json.loads(Path(graph.session.end_profiling()).read_text())
        graph = Graph(contender.folder / "model.onnx", Path(folder) / "profile")
        item.warm(graph)
        warm = json.loads(Path(graph.session.end_profiling()).read_text())
        graph = Graph(contender.folder / "model.onnx", Path(folder) / "profile")
        state = item.warm(graph)
        graph.run(item.feed(graph, state), *item.wanted)
        both = json.loads(Path(graph.session.end_profiling()).read_text())
    return (flops(both) - flops(warm) if graph.states else flops(first)) / 1e6


# -------------------------------------------------------------------------------------------------------------- items


@dataclass(frozen=True)
class Item:
    """What one item of a domain is: what comes before it in its stream, and itself."""

    before: Arrays
    own: Arrays
    wanted: tuple[str, ...]

    def warm(self, graph: Graph) -> Arrays:
        """The state after what comes before."""
        if not graph.states:
            return {}
        return graph.after(graph.run({**self.before, **graph.fresh()}))

    def feed(self, graph: Graph, state: Arrays | None = None) -> Arrays:
        return {**self.own, **(graph.fresh() if state is None else state)}


def series_feed(values: np.ndarray) -> Arrays:
    return {"values": values[None].astype(np.float64), "sequence_lens": np.array([len(values)], np.int32)}


def text_feed(tokens: np.ndarray, explain: bool = False) -> Arrays:
    rows = np.atleast_2d(tokens).astype(np.int64)
    lengths = np.full(len(rows), rows.shape[1], np.int32)
    return {"tokens": rows, "sequence_lens": lengths, "explain": np.full(len(rows), explain)}


def rhythm(points: int) -> np.ndarray:
    """A daily rhythm with noise, as a stream whose period is known."""
    t = np.arange(points)
    return 20 + 5 * np.sin(2 * np.pi * t / 288) + np.random.default_rng(0).standard_normal(points)


def items_of(pictures: np.ndarray, tokens: np.ndarray) -> dict[str, Item]:
    series = rhythm(2500)
    return {
        "pictures": Item({}, {"image": pictures[:1]}, ("logits",)),
        "series": Item(series_feed(series[:-1]), series_feed(series[-1:]), ("expected", "spread")),
        "texts": Item(text_feed(tokens[:100]), text_feed(tokens[100:101]), ("logits",)),
    }


def milliseconds(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median CPU time of each call, in turns, so that what else the machine does meets all of them (ms)."""
    spent = np.zeros((rounds, len(calls)))
    for turn in range(rounds):
        for k, call in enumerate(calls):
            begin = time.process_time()
            call()
            spent[turn, k] = time.process_time() - begin
    return [float(value) for value in 1000 * np.median(spent[rounds // 10 :], axis=0)]


# ----------------------------------------------------------------------------------------------------------- how good


def figure(name: str, value: float, interval: tuple[float, float], n: int, of: str) -> dict[str, Any]:
    return {"name": name, "value": value, "interval": list(interval), "n": n, "of": of}


def picture_figures(graph: Graph, pixels: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Top-1 of the official test split."""
    right = int((logits_of(graph, pixels).argmax(1) == labels).sum())
    return [figure(MEASURES["pictures"], right / len(labels), wilson(right, len(labels)), len(labels), "pictures")]


def logits_of(graph: Graph, pixels: np.ndarray) -> np.ndarray:
    parts = [graph.run({"image": pixels[at : at + 100]}, "logits")["logits"] for at in range(0, len(pixels), 100)]
    return np.concatenate(parts)


def series_figures(contender: Contender, corpus: list[nab.Series], profiles: Sequence[Any]) -> list[dict[str, Any]]:
    """NAB's standard profile."""
    detect = nab.onnx_scores(contender.folder / "model.onnx")
    scored = [(detect(one), one.windows) for one in corpus]
    whole = nab.evaluate(scored, profiles[0], None)
    interval = nab.confidence_interval(scored, profiles[0], whole.threshold)
    return [figure(MEASURES["series"], whole.normalised, interval, len(corpus), "series")]


def text_figures(
    graph: Graph, articles: list[np.ndarray], opening: int, lines: list[np.ndarray]
) -> list[dict[str, Any]]:
    """Perplexity of the official test tokens as one stream, and how often the most probable word is the next of a line."""
    state = graph.after(graph.run({**text_feed(np.array([opening])), **graph.fresh()}))
    tokens, bits = np.concatenate(articles), []
    for at in range(0, len(tokens), texts.RUN_TOKENS):
        found = graph.run({**text_feed(tokens[at : at + texts.RUN_TOKENS], True), **state}, "surprisal")
        bits.append(found["surprisal"][0])
        state = graph.after(found)
    told = np.concatenate(bits).astype(np.float64)
    sizes = np.array([len(article) for article in articles])
    sums = np.stack([np.add.reduceat(told, np.cumsum(sizes) - sizes), sizes], axis=1)
    interval = bootstrap_sums(sums, perplexity_of) or (math.nan, math.nan)
    value = float(perplexity_of(sums.sum(axis=0)))
    rng, hits = np.random.default_rng(0), 0
    for line in lines:
        place = int(rng.integers(1, len(line)))
        feed = text_feed(np.concatenate([[opening], line[:place]]))
        hits += int(graph.run({**feed, **graph.fresh()}, "logits")["logits"][0].argmax() == line[place])
    return [
        figure(MEASURES["texts"], value, interval, len(tokens), "tokens"),
        figure("clinc150 test, next token", hits / len(lines), wilson(hits, len(lines)), len(lines), "lines"),
    ]


# -------------------------------------------------------------------------------------------------------------- curves


def moved_accuracy(graph: Graph, pixels: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
    """Accuracy where pictures are moved, the edge repeated, by direction."""

    def moved(rows: int, columns: int) -> np.ndarray:
        padded = np.pad(pixels, ((0, 0), (8, 8), (8, 8), (0, 0)), mode="edge")
        return np.ascontiguousarray(padded[:, 8 - rows : 40 - rows, 8 - columns : 40 - columns])

    def accuracy(shown: np.ndarray) -> float:
        return float((logits_of(graph, shown).argmax(1) == labels).mean())

    return {
        "down": [accuracy(moved(shift, 0)) for shift in SHIFTS],
        "right": [accuracy(moved(0, shift)) for shift in SHIFTS],
    }


def context_perplexity(graph: Graph, opening: int, tokens: np.ndarray, windows: int) -> list[float]:
    """Perplexity of a word by how many words were read before it, from a fresh state; windows of running text."""
    starts = np.linspace(0, len(tokens) - CONTEXT, windows).astype(int)
    bits = []
    for start in starts:
        window = tokens[start : start + CONTEXT]
        feed = text_feed(np.concatenate([[opening], window]), True)
        bits.append(graph.run({**feed, **graph.fresh()}, "surprisal")["surprisal"][0][1:])
    return [float(2**value) for value in np.mean(bits, axis=0)]


def through_http(url: str, contender: Contender, item: Item, rounds: int) -> float:
    """Median time of one request through a running server (ms)."""
    import httpx
    from PIL import Image

    spent = []
    with httpx.Client(base_url=url, timeout=60) as client:
        if contender.domain == "pictures":
            buffer = io.BytesIO()
            Image.fromarray(item.own["image"][0]).save(buffer, "PNG")
            ask: dict[str, Any] = {"content": buffer.getvalue(), "headers": {"Content-Type": "image/png"}}
            path = f"/v1/image-classification?model={contender.name}"
        elif contender.domain == "series":
            path, body = "/v1/anomaly-detection", {"model": contender.name, "values": rhythm(2500)[:-1].tolist()}
            state = client.post(path, json=body).raise_for_status().json()["state"]
            ask = {"json": {"model": contender.name, "values": [20.0], "state": state}}
        else:
            path = "/v1/next-word-prediction"
            state = (
                client.post(path, json={"model": contender.name, "text": "Can you "}).raise_for_status().json()["state"]
            )
            ask = {"json": {"model": contender.name, "text": "please ", "state": state}}
        for _ in range(rounds):
            begin = time.perf_counter()
            client.post(path, **ask).raise_for_status()
            spent.append(time.perf_counter() - begin)
    return 1000 * float(np.median(spent))


# -------------------------------------------------------------------------------------------------------------- served


def served() -> list[dict[str, Any]]:
    """Every model's default version: what its first golden sample costs with decoding and all, and what its manifest claims."""
    found, tasks = [], discover()
    for model in scan(MODELS, tasks):
        manifest = model.manifest
        if manifest is None or model.problem or not tasks[manifest.task].has_route:
            continue
        version = manifest.default_version or model.versions[-1]
        folder = MODELS / model.name / version
        handle = load_version(folder, manifest, tasks[manifest.task], LoadOptions())
        request = golden_request(handle.task, read_golden(folder, model.name)[0], folder)
        (ms,) = milliseconds([partial(handle.predict_now, request)], 12)
        claim = next(iter(manifest.metrics.items()), None)
        found.append(
            {
                "model": model.name,
                "version": version,
                "task": manifest.task,
                "architecture": manifest.architecture,
                "default": manifest.default,
                "ms": round(ms, 2),
                "claim": None if claim is None else {"name": claim[0], "value": claim[1]},
            }
        )
    return found


# ---------------------------------------------------------------------------------------------------------------- whole


def measure(data: Path, url: str | None, quick: bool, known: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Everything, as one JSON-ready document. `known`: figures that are not measured again, by model."""
    pixels, labels = load_script(MODELS / "cifar10-cnn" / "evaluate.py").load(data)
    corpus, profiles = nab.read_corpus(data)
    words = (MODELS / "english-lstm" / "1" / "vocabulary.txt").read_text("utf-8").removesuffix("\n").split("\n")
    number = {word: k for k, word in enumerate(words)}

    def ids(tokens: Sequence[str]) -> np.ndarray:
        return np.array([number.get(token, number[UNKNOWN]) for token in tokens])

    articles = [ids(article) for article in texts.read_wikitext(data, "test")]
    lines = [ids(tokenise(line)) for line in texts.read_everyday(data)["clinc150"]]
    lines = [line for line in lines if len(line) > 1][::3]
    if quick:
        pixels, labels, corpus, articles, lines = pixels[:200], labels[:200], corpus[:6], articles[:3], lines[:50]
    opening, running = number[END], np.concatenate(articles)
    items = items_of(pixels, running)
    rounds = 20 if quick else 100
    contenders, curves = [], {}
    for pair in PAIRS:
        domain, item = pair[0].domain, items[pair[0].domain]
        graphs = [Graph(one.folder / "model.onnx") for one in pair]
        states = [item.warm(graph) for graph in graphs]
        spent = milliseconds(
            [
                partial(graph.run, item.feed(graph, state), *item.wanted)
                for graph, state in zip(graphs, states, strict=True)
            ],
            rounds,
        )
        for one, graph, ms in zip(pair, graphs, spent, strict=True):
            print(f"{one.name} …", file=sys.stderr, flush=True)
            if one.model in known:
                figures = known[one.model]
            elif domain == "pictures":
                figures = picture_figures(graph, pixels, labels)
            elif domain == "series":
                figures = series_figures(one, corpus, profiles)
            else:
                figures = text_figures(graph, articles, opening, lines)
            file = one.folder / "model.onnx"
            contenders.append(
                {
                    "domain": domain,
                    "kind": one.kind,
                    "model": one.model,
                    "version": one.version,
                    "item": ITEMS[domain],
                    "figures": figures,
                    "ms": round(ms, 3),
                    "mflop": round(profiled_mflop(one, item), 2),
                    "weights": weights_of(file),
                    "file_bytes": file.stat().st_size,
                    "state_bytes": graph.state_bytes,
                    "http_ms": None if url is None else round(through_http(url, one, item, rounds), 2),
                }
            )
        curves[domain] = curves_of(domain, graphs, pixels, labels, running, opening, quick)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": processor_name(),
        "onnxruntime": onnxruntime.__version__,
        "higher_is_better": HIGHER,
        "contenders": contenders,
        "curves": curves,
        "trainings": {name: trained(name) for name in ("cifar10-rnn", "english-cnn")},
        "served": served(),
    }


def curves_of(
    domain: str,
    graphs: list[Graph],
    pixels: np.ndarray,
    labels: np.ndarray,
    running: np.ndarray,
    opening: int,
    quick: bool,
) -> dict[str, Any]:
    """The domain's further question, by the kind of network."""
    kinds = ("rnn", "cnn")
    if domain == "pictures":
        few = slice(0, 100 if quick else 1000)
        found = [moved_accuracy(graph, pixels[few], labels[few]) for graph in graphs]
        return {"pixels": SHIFTS, **dict(zip(kinds, found, strict=True))}
    if domain == "texts":
        found_ = [context_perplexity(graph, opening, running, 20 if quick else 400) for graph in graphs]
        return {"words before": list(range(CONTEXT)), **dict(zip(kinds, found_, strict=True))}
    series = rhythm(2500 + max(LENGTHS))
    states = [graph.after(graph.run({**series_feed(series[:2500]), **graph.fresh()})) for graph in graphs]
    spent = [
        milliseconds(
            [
                partial(graph.run, {**series_feed(series[2500 : 2500 + n]), **state}, "expected")
                for graph, state in zip(graphs, states, strict=True)
            ],
            5 if quick else 20,
        )
        for n in LENGTHS
    ]
    return {"points": LENGTHS, **{kind: [one[k] for one in spent] for k, kind in enumerate(kinds)}}


def trained(model: str) -> dict[str, Any]:
    """What a training of the same CPU time reached with each kind of network, as its script wrote it."""
    found: dict[str, Any] = json.loads((MODELS / model / "training.json").read_text("utf-8"))
    return found


# ------------------------------------------------------------------------------------------------------------- output


def shown(one: Mapping[str, Any]) -> str:
    """A figure with its interval."""
    low, high = one["interval"]
    if one["of"] in ("pictures", "lines"):
        return f"{one['value']:.1%} ({low:.1%} to {high:.1%})"
    return f"{one['value']:.1f} ({low:.1f} to {high:.1f})"


def table(document: Mapping[str, Any]) -> list[str]:
    """The page's table."""
    header = [
        "",
        "network",
        "model",
        "how good (95 % interval)",
        "ms an item",
        "MFLOP an item",
        "weights",
        "file",
        "state of a stream",
    ]
    http = any(one["http_ms"] is not None for one in document["contenders"])
    header += ["ms through HTTP"] if http else []
    rows = []
    for one in document["contenders"]:
        row = [
            one["domain"] if one["kind"] == "rnn" else "",
            one["kind"].upper(),
            f"[{one['model']}@{one['version']}](../models/{one['model']}/card.md)",
            "; ".join(f"{figure['name']} {shown(figure)}" for figure in one["figures"]),
            f"{one['ms']:.2f}",
            f"{one['mflop']:.1f}",
            f"{one['weights']:,}",
            f"{one['file_bytes'] / 1e6:.2f} MB",
            f"{one['state_bytes']:,} bytes" if one["state_bytes"] else "none",
        ]
        rows.append([*row, f"{one['http_ms']:.1f}"] if http else row)
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    about = f"An item is a picture, a point or a word. {document['processor']}, one thread, ONNX Runtime {document['onnxruntime']}, {document['date']}."
    return [*lines, "", about]


def training_table(document: Mapping[str, Any]) -> list[str]:
    """The page's table of trainings at equal cost."""
    lines = ["| same data, same CPU time | network | weights | reached |", "|---|---|---|---|"]
    pictures, text = document["trainings"]["cifar10-rnn"], document["trainings"]["english-cnn"]
    for kind, own in pictures["networks"].items():
        low, high = own["95 % interval"]
        lines.append(
            f"| pictures, {pictures['minutes of CPU for each']:g} min each | {kind.upper()} | {own['weights']:,} | "
            f"CIFAR-10 test accuracy {own['CIFAR-10 test accuracy']:.1%} ({low:.1%} to {high:.1%}) |"
        )
    for kind, own in text["networks"].items():
        weights = own["weights beside the table"]
        lines.append(
            f"| texts, {text['minutes of CPU for each']:g} min each | {kind.upper()} | {weights:,} beside the table of words | "
            f"WikiText-2 test perplexity {own['WikiText-2 test perplexity, in 32 pieces']:.0f} |"
        )
    return lines


def put(page: Path, name: str, lines: Sequence[str]) -> None:
    """Put lines between a page's markers."""
    block = "".join(f"{line}\n" for line in lines)
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    text = re.sub(pattern, lambda found: found[1] + block + found[2], page.read_text("utf-8"), flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")


def evidence(document: Mapping[str, Any]) -> dict[str, Any]:
    """What `gridloop advise` reads: the document without its curves, and of the trainings what each kind reached."""
    named = {
        "cifar10-rnn": ("pictures", "CIFAR-10 test accuracy", "CIFAR-10 test accuracy"),
        "english-cnn": ("texts", "WikiText-2 test perplexity, in 32 pieces", "WikiText-2 test perplexity"),
    }
    trainings = [
        {"domain": domain, "kind": kind, "minutes": one["minutes of CPU for each"], "name": name, "value": own[key]}
        for model, (domain, key, name) in named.items()
        for one in [document["trainings"][model]]
        for kind, own in one["networks"].items()
    ]
    rest = {name: value for name, value in document.items() if name not in ("curves", "trainings")}
    return {**rest, "trainings": trainings}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--url", help="a running server, asked as well")
    parser.add_argument("--quick", action="store_true", help="little data and few rounds; needs --out")
    parser.add_argument("--out", type=Path, help="folder for all files, in place of those of the repository")
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="models whose figures are measured again, at most")
    parser.add_argument("--draw", action="store_true", help="only draw and write again what was measured before")
    options = parser.parse_args()
    if options.quick and options.out is None:
        parser.error("--quick needs --out: the repository's figures are of all data")
    import cnn_or_rnn_plots as drawn

    results = RESULTS if options.out is None else options.out / RESULTS.name
    before = json.loads(results.read_text()) if results.exists() and (options.draw or options.only) else None
    known = {one["model"]: one["figures"] for one in before["contenders"]} if before else {}
    for model in options.only or ():
        known.pop(model, None)
    document = before if options.draw else measure(options.data, options.url, options.quick, known)
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    own = EVIDENCE if options.out is None else options.out / EVIDENCE.name
    own.write_text(json.dumps(evidence(document), indent=1) + "\n", encoding="utf-8")
    drawn.draw(document, options.data, PLOTS if options.out is None else options.out)
    if options.out is None:
        put(PAGE, "table", table(document))
        put(PAGE, "trainings", training_table(document))
    print("\n".join([*table(document), "", *training_table(document)]))


if __name__ == "__main__":
    main()
