"""Does a model answer alike on different kinds of processors? The answers of one are recorded and compared on another.

    python benchmarks/processors.py --data DIR --record answers.json       # on one processor
    python benchmarks/processors.py --data DIR --against answers.json      # on another, or on an emulated one:
    qemu-x86_64 -cpu Haswell python benchmarks/processors.py --data DIR --against answers.json

Every version of every model is loaded as the service loads it, golden samples included, and answers real inputs one by
one: CIFAR-10 test pictures, evenly spread; lines of everyday English, cut in the middle; a made series with noise, spikes
and missing points. DIR holds what the models' `evaluate.py` read: `cifar10` and `english_text`.

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
from service.registry.handle import LoadOptions, ModelHandle  # noqa: E402
from service.registry.loading import load_version  # noqa: E402
from service.registry.manifest import read_manifest  # noqa: E402
from service.runtime.eight_bits import sums_are_cut_off  # noqa: E402
from service.tasks import discover  # noqa: E402
from service.tasks.base import TaskInput, Upload  # noqa: E402

Answer = dict[str, Any]


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


INPUTS: dict[str, Callable[[Path, int], tuple[list[Answer], list[str]]]] = {
    "image-classification": pictures,
    "next-word-prediction": texts,
    "anomaly-detection": series,
}


def best(answer: Answer) -> str | None:
    """The first label or word of an answer; None where the task has no such thing."""
    ranking = answer["results"][0]["predictions"] if "results" in answer else answer.get("predictions")
    return (ranking[0].get("label") or ranking[0]["text"]) if ranking else None


def numbers(answer: Answer) -> dict[str, float]:
    """Every score of an answer, by the name or place that it belongs to."""
    if "scores" in answer:
        return {str(i): score for i, score in enumerate(answer["scores"])}
    ranking = answer["results"][0]["predictions"] if "results" in answer else answer["predictions"]
    return {entry.get("label") or entry["text"]: entry["score"] for entry in ranking}


def asked(handle: ModelHandle, requests: Sequence[TaskInput]) -> list[Answer]:
    """The answers to requests, without what only the model itself can read."""
    answers = [orjson.loads(handle.predict_now(request).to_json()) for request in requests]
    return [{key: value for key, value in answer.items() if key not in ("model", "state")} for answer in answers]


def compared(
    handle: ModelHandle, requests: Sequence[TaskInput], before: list[Answer], now: list[Answer], tolerance: float
) -> tuple[str, bool]:
    """A line on how alike recorded answers and those to the widened requests are, and whether all are alike."""
    triples = list(zip(requests, before, now, strict=True))
    found = [d for request, a, b in triples if (d := handle.task.difference(request, a, b, tolerance))]
    gaps = [
        max(abs(x[n] - y[n]) for n in x.keys() & y.keys()) for _, a, b in triples for x, y in [(numbers(a), numbers(b))]
    ]
    line = f"{len(now) - len(found)} of {len(now)} answers alike at a tolerance of {tolerance:g}; "
    if best(now[0]) is not None:
        line += f"the best one the same in {sum(best(a) == best(b) for _, a, b in triples)}; "
    line += f"largest difference of a score {max(gaps):.2g}, median {float(np.median(gaps)):.2g}"
    return line + "".join(f"\n    differs {each}" for each in found[:3]), not found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--only", metavar="NAME@VERSION", help="one version instead of all")
    parser.add_argument("--inputs", type=int, default=200, help="pictures, and texts (count)")
    parser.add_argument("--tolerance", type=float, default=0.03)
    parser.add_argument("--record", type=Path, metavar="FILE")
    parser.add_argument("--against", type=Path, metavar="FILE")
    options = parser.parse_args()
    kernels = "would cut off" if sums_are_cut_off() else "do not cut off"
    print(f"{processor_name()} (or an emulator on it), onnxruntime {onnxruntime.__version__}")
    print(f"kernels for uint8 by int8 {kernels} large sums", flush=True)
    before = json.loads(options.against.read_bytes()) if options.against else {}
    recorded: dict[str, list[Answer]] = {}
    all_alike = True
    for folder in sorted(path.parent for path in options.models.glob("*/*/golden.json")):
        name = f"{folder.parent.name}@{folder.name}"
        if options.only not in (None, name):
            continue
        manifest, begun = read_manifest(folder.parent), time.perf_counter()
        try:
            handle = load_version(folder, manifest, discover()[manifest.task], LoadOptions())
        except ManifestInvalid as error:
            print(f"{name}: not served: {error}", flush=True)
            all_alike = False
            continue
        make = INPUTS.get(manifest.task)  # of the other tasks the golden samples are all that is compared
        fields, truths = make(options.data, options.inputs) if make else ((), ())
        requests = [handle.task.Input.model_validate(each) for each in fields]
        if options.record:
            recorded[name] = asked(handle, requests)
        answers = asked(handle, [handle.task.widened(request) for request in requests])
        right = sum((best(a) or "").casefold() == truth for a, truth in zip(answers, truths, strict=False))
        first_is_right = f", the best one right in {right} of {len(truths)}" if truths else ""
        print(f"{name}: golden samples right{first_is_right}; {time.perf_counter() - begun:.0f} s", flush=True)
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
