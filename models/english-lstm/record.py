"""What a training leaves for people: the figures in card.md and manifest.toml, and how they came about in training.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from texts import Corpus

from training.card import table, write_block, write_metrics

TESTS = {
    "sgd": "Schema-Guided Dialogue test",
    "banking77": "banking77 test",
    "clinc150": "clinc150 test",
    "reviews": "film reviews",
}


def score(folder: Path, data: Path) -> dict[str, Any]:
    """The official test files, once, through the exported ONNX file; the same command that anybody can run."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "perplexity.py"
    command = [sys.executable, str(script), str(folder), "--data", str(data), "--official", "--everyday", "--json"]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return answer


def within(interval: list[float], factor: float = 1) -> str:
    """An interval in words."""
    return " to ".join(f"{factor * value:.1f}" for value in interval)


def wikitext_table(wiki: dict[str, Any]) -> list[str]:
    """Perplexity over the model's words and over the official ones."""
    rows = []
    for part, over in ((wiki, "the model's"), (wiki["official"], "the official")):
        strong = "**" if part is wiki else ""
        what = f"over {over} {part['vocabulary']:,} words"
        rows.append([what, f"{strong}{part['perplexity']:.1f}{strong}", within(part["interval"])])
    return table(["WikiText-2 test, 245,569 tokens", "perplexity", "95 % interval"], rows)


def everyday_table(everyday: dict[str, Any]) -> tuple[list[str], dict[str, float]]:
    """How often a suggestion is right, for the card and for the manifest.

    Keystrokes are of a choice of lines, so the manifest does not claim them: another choice gives another figure.
    """
    rows, claims = [], {}
    for key, name in TESTS.items():
        part = everyday[key]
        shares = [part["top-1"], part["top-3"], part["keystrokes"]["saved"]]
        cells = [f"{one['share']:.1%} ({within(one['interval'], 100)})" for one in shares]
        rows.append([name, f"{part['words']:,}", *cells])
        claims |= {f"{name} {measure} accuracy": round(part[measure]["share"], 4) for measure in ("top-1", "top-3")}
    asked = ["words asked for", "first suggestion is right", "one of three is right", "keystrokes saved"]
    return table(["everyday English", *asked], rows), claims


def record(folder: Path, found: dict[str, Any], saved: dict[str, Any], chosen: dict[str, Any], corpus: Corpus) -> None:
    """Write the figures into card.md and manifest.toml, and how they came about into training.json."""
    everyday, claims = everyday_table(found["everyday"])
    write_block(folder / "card.md", "metrics", [*wikitext_table(found["wikitext2"]), "", *everyday])
    size = f"`model.onnx` has {found['megabytes']:.1f} MB; the vocabulary {len(corpus.vocabulary):,} words."
    write_block(folder / "card.md", "size", [size])
    wiki = found["wikitext2"]
    metrics = {
        "WikiText-2 test perplexity": round(wiki["perplexity"], 2),
        "WikiText-2 test perplexity over the official vocabulary": round(wiki["official"]["perplexity"], 2),
    }
    write_metrics(folder / "manifest.toml", metrics | claims)
    story = {
        "cycles": [*saved["earlier"], cycle_of(saved)],
        **chosen,
        "versions": {m.__name__: m.__version__ for m in (torch, np, onnx, onnxruntime)},
        "tokens": {k: len(v) for k, v in [*corpus.wikitext.items(), *corpus.everyday.items()]},
        "sha256": corpus.digests,
    }
    (folder / "training.json").write_text(json.dumps(story, indent=2) + "\n", encoding="utf8")


def cycle_of(saved: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint tells about its training."""
    return {
        "steps": saved["step"],
        "wall_clock_minutes": round(saved["spent"] / 60, 1),
        "stages": saved["stages"],
    }
