"""CIFAR-10 test accuracy of a running service: all 10,000 official test pictures, each posted as a PNG.

    python benchmarks/cifar10.py --data DIR --url http://127.0.0.1:8000 [--model cifar10-cnn] [--json]

DIR holds the test set either as the official python version (`cifar-10-batches-py/test_batch`, from
https://www.cs.toronto.edu/~kriz/cifar.html) or as `cifar10/test.webp` (100 × 100 tiles, lossless) with
`cifar10/labels.npz`. Only labels and scores of the service's answers are used.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import math
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
IN_FLIGHT = 32


def load(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Test pictures uint8 (10000, 32, 32, 3) and labels (10000,)."""
    official = data / "cifar-10-batches-py" / "test_batch"
    if official.exists():
        with official.open("rb") as file:
            batch = pickle.load(file, encoding="latin1")
        return batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(batch["labels"])
    mosaic = np.asarray(Image.open(data / "cifar10" / "test.webp").convert("RGB"))
    tiles = mosaic.reshape(100, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
    return tiles, np.load(data / "cifar10" / "labels.npz")["test_labels"].astype(int)


def encode(pixels: np.ndarray) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


async def classify(url: str, model: str | None, pictures: np.ndarray, progress: Any) -> list[tuple[str, float]]:
    """Best label and its score for each picture, in order; any answer but 200 ends the run."""
    answers: list[tuple[str, float]] = [("", 0.0)] * len(pictures)
    left = iter(range(len(pictures)))
    params = {"top_k": 1, **({"model": model} if model else {})}
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:

        async def caller() -> None:
            for index in left:
                answer = await client.post(
                    "/v1/image-classification",
                    params=params,
                    content=encode(pictures[index]),
                    headers={"Content-Type": "image/png"},
                )
                answer.raise_for_status()
                best = answer.json()["results"][0]["predictions"][0]
                answers[index] = best["label"], best["score"]
                progress()

        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model")
    parser.add_argument("--json", action="store_true", dest="as_json")
    arguments = parser.parse_args()
    pictures, labels = load(arguments.data)
    begun = time.perf_counter()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("classifying", total=len(pictures))
        answers = asyncio.run(classify(arguments.url, arguments.model, pictures, lambda: bar.advance(task)))
    seconds = time.perf_counter() - begun
    right = np.array([CLASSES.index(label) == truth for (label, _), truth in zip(answers, labels, strict=True)])
    accuracy = float(right.mean())
    margin = 1.96 * math.sqrt(accuracy * (1 - accuracy) / len(right))
    by_class = {name: float(right[labels == number].mean()) for number, name in enumerate(CLASSES)}
    if arguments.as_json:
        json.dump({"accuracy": accuracy, "margin_95": margin, "pictures": len(right), "by_class": by_class}, sys.stdout)
        return
    table = Table("class", "accuracy", box=None)
    for name, value in by_class.items():
        table.add_row(name, f"{value:.2%}")
    Console().print(table)
    print(f"accuracy {accuracy:.2%} ± {margin:.2%} on {len(right):,} pictures, {len(right) / seconds:.0f} a second")


if __name__ == "__main__":
    main()
