"""Does a model answer alike on different kinds of processors? The answers of one are recorded and compared on another.

    python benchmarks/processors.py --data DIR --record answers.json       # on one processor
    python benchmarks/processors.py --data DIR --against answers.json      # on another, or on an emulated one:
    qemu-x86_64 -cpu Haswell python benchmarks/processors.py --data DIR --against answers.json

Every version of every model is loaded as the service loads it, golden samples included, and answers real inputs one by
one: CIFAR-10 test pictures, evenly spread; lines of everyday English, cut in the middle; a made series with noise, spikes
and missing points; of every other task the inputs of the golden samples. DIR holds what the models' `evaluate.py` read:
`cifar10` and `english_text`. With `--golden` all models answer the inputs of their golden samples, and nothing else: DIR is
not needed, and an emulated processor is done in minutes.

Exit code 1: a model is not served, or an answer differs by more than `--tolerance`, as its task compares answers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from service.cpu import processor_name  # noqa: E402
from service.errors import ManifestInvalid  # noqa: E402
from service.evaluation import load_script  # noqa: E402
from service.registry.golden import golden_request, read_golden  # noqa: E402
from service.registry.handle import LoadOptions, ModelHandle  # noqa: E402
from service.registry.loading import OpenVersion, load_version, open_version  # noqa: E402
from service.registry.manifest import read_manifest  # noqa: E402
from service.runtime.drive import drive  # noqa: E402
from service.runtime.eight_bits import sums_are_cut_off  # noqa: E402
from service.tasks import discover  # noqa: E402
from service.tasks.base import TaskInput, Upload  # noqa: E402

Answer = dict[str, Any]
Loaded = ModelHandle | OpenVersion

FINER = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Tolerances that are tried to tell how alike answers are that agree."""


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """So many of them, evenly spread."""
    return list(items[:: max(1, len(items) // count)][:count])


def pictures(data: Path, count: int) -> tuple[list[Answer], list[str]]:
    """Requests for test pictures of CIFAR-10, and their labels."""
    script = load_script(ROOT / "models" / "cifar10-cnn" / "evaluate.py")
    pixels, labels = script.load(data)
    chosen = spread(range(len(labels)), count)
    return [{"files": (Upload(script.encode(pixels[i])),)} for i in chosen], [script.CLASSES[labels[i]] for i in chosen]


def texts(data: Path, count: int) -> tuple[list[Answer], list[str]]:
    """Requests for the next word in the middle of everyday lines, and the word that was written."""
    lines = load_script(ROOT / "benchmarks" / "perplexity.py").read_everyday(data)
    words = [line.split() for of_one in lines.values() for line in of_one if len(line.split()) > 3]
    chosen = spread(words, count)
    requests = [{"text": " ".join(line[: len(line) // 2]) + " ", "explain": True} for line in chosen]
    return requests, [line[len(line) // 2].strip(".,;:!?\"'").casefold() for line in chosen]


def series(data: Path, count: int) -> tuple[list[Answer], list[str]]:
    """One request for a made series; `data` and `count` do not matter."""
    return [{"values": load_script(ROOT / "benchmarks" / "streams.py").series(600)}], []


def golden_inputs(handle: Loaded, folder: Path) -> list[TaskInput]:
    """The requests of a version's golden samples."""
    return [golden_request(handle.task, sample, folder) for sample in read_golden(folder, folder.name)]


def not_as_expected(handle: Loaded, folder: Path, requests: Sequence[TaskInput], answers: list[Answer]) -> list[str]:
    """Where answers to the golden samples' inputs, widened, are not what the samples expect."""
    triples = zip(read_golden(folder, folder.name), requests, answers, strict=True)
    return [d for s, request, a in triples if (d := handle.task.difference(request, s.output, a, s.tolerance))]


INPUTS: dict[str, Callable[[Path, int], tuple[list[Answer], list[str]]]] = {
    "image-classification": pictures,
    "next-word-prediction": texts,
    "anomaly-detection": series,
}


def ranking(answer: Answer) -> list[Answer]:
    """The labels or words of an answer, the best first; none where the task has no such thing."""
    found: list[Answer] = answer.get("results", [answer])[0].get("predictions", [])
    return found


def best(answer: Answer) -> str | None:
    """The first label or word of an answer; None where the task has no such thing."""
    return next((entry.get("label") or entry["text"] for entry in ranking(answer)), None)


def numbers(answer: Answer) -> dict[str, float]:
    """Every score of an answer, by the name or place that it belongs to; none where only the task can tell."""
    if "scores" in answer:
        return {str(i): score for i, score in enumerate(answer["scores"])}
    return {entry.get("label") or entry["text"]: entry["score"] for entry in ranking(answer)}


def asked(handle: Loaded, requests: Sequence[TaskInput]) -> list[Answer]:
    """The answers to requests, without what only the model itself can read."""
    answers = [orjson.loads(drive(handle.graphs, handle.task.steps(request)).to_json()) for request in requests]
    return [{key: value for key, value in answer.items() if key not in ("model", "state")} for answer in answers]


def compared(
    handle: Loaded, requests: Sequence[TaskInput], before: list[Answer], now: list[Answer], tolerance: float
) -> tuple[str, bool]:
    """A line on how alike recorded answers and those to the widened requests are, and whether all are alike."""
    triples = list(zip(requests, before, now, strict=True))

    def differing(at: float) -> list[str]:
        return [d for request, a, b in triples if (d := handle.task.difference(request, a, b, at))]

    found = differing(tolerance)
    gaps = [
        max(abs(x[n] - y[n]) for n in x.keys() & y.keys())
        for _, a, b in triples
        for x, y in [(numbers(a), numbers(b))]
        if x.keys() & y.keys()
    ]
    line = f"{len(now) - len(found)} of {len(now)} answers alike at a tolerance of {tolerance:g}"
    if not found:
        line += f", all of them at {min([at for at in FINER if not differing(at)], default=tolerance):g}"
    if best(now[0]) is not None:
        line += f"; the best one the same in {sum(best(a) == best(b) for _, a, b in triples)}"
    if gaps:
        line += f"; largest difference of a score {max(gaps):.2g}, median {float(np.median(gaps)):.2g}"
    return line + "".join(f"\n    differs {each}" for each in found[:3]), not found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="needed without --golden")
    parser.add_argument("--golden", action="store_true", help="ask the golden samples' inputs of every model")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--only", metavar="NAME@VERSION", help="one version instead of all; or NAME, all of a model")
    parser.add_argument("--inputs", type=int, default=200, help="pictures, and texts (count)")
    parser.add_argument("--tolerance", type=float, default=0.03)
    parser.add_argument("--record", type=Path, metavar="FILE")
    parser.add_argument("--against", type=Path, metavar="FILE")
    options = parser.parse_args()
    if not (options.golden or options.data):
        parser.error("--data or --golden is needed")
    kernels = "would cut off" if sums_are_cut_off() else "do not cut off"
    print(f"{processor_name()} (or an emulator on it), onnxruntime {onnxruntime.__version__}")
    print(f"kernels for uint8 by int8 {kernels} large sums", flush=True)
    before = json.loads(options.against.read_bytes()) if options.against else {}
    recorded: dict[str, list[Answer]] = {}
    all_alike = True
    for folder in sorted(path.parent for path in options.models.glob("*/*/golden.json")):
        name = f"{folder.parent.name}@{folder.name}"
        if options.only not in (None, name, folder.parent.name):
            continue
        manifest, begun = read_manifest(folder.parent), time.perf_counter()
        task = discover()[manifest.task]
        handle: Loaded
        try:
            if options.golden:  # without what else loading runs: an emulated processor takes minutes for a full batch
                handle = open_version(folder, manifest, task)
            else:
                handle = load_version(folder, manifest, task, LoadOptions())
        except ManifestInvalid as error:
            print(f"{name}: not served: {error}", flush=True)
            all_alike = False
            continue
        make = None if options.golden else INPUTS.get(manifest.task)
        fields, truths = make(options.data, options.inputs) if make else ((), ())
        requests = [handle.task.Input.model_validate(each) for each in fields] or golden_inputs(handle, folder)
        if options.record:
            recorded[name] = asked(handle, requests)
        answers = asked(handle, [handle.task.widened(request) for request in requests])
        wrong = not_as_expected(handle, folder, requests, answers) if options.golden else []
        all_alike = all_alike and not wrong
        right = sum((best(a) or "").casefold() == truth for a, truth in zip(answers, truths, strict=False))
        first_is_right = f", the best one right in {right} of {len(truths)}" if truths else ""
        golden = f"golden samples differ {'; '.join(wrong)}" if wrong else "golden samples right"
        print(f"{name}: {golden}{first_is_right}; {time.perf_counter() - begun:.0f} s", flush=True)
        if name in before and len(before[name]) != len(answers):
            parser.error(f"{options.against} has other --inputs: {len(before[name])}")
        if name in before:
            line, alike = compared(handle, requests, before[name], answers, options.tolerance)
            all_alike = all_alike and alike
            print(f"  {line}", flush=True)
    if options.record:
        options.record.write_text(json.dumps(recorded))
    return 0 if all_alike else 1


if __name__ == "__main__":
    sys.exit(main())
