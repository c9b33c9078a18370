"""From a trained network to a served version: the graph in 8 bits, and what validation pictures say of its answers.

Everything is chosen by asking the served version itself, as a caller would: the overlap of suppression, what a score
means, the threshold.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from finetune import Config
from labelled import Augmentation, Labelled
from nanodet import NanoDet, Served

from service.evaluation.object_detection import Found, Truth, found, judge, mean_precision
from service.media.images import Frame, Picture
from service.media.views import View, has_area
from service.registry.handle import LoadOptions
from service.registry.loading import load_version
from service.registry.manifest import read_manifest
from service.tasks import discover
from service.tasks.base import Upload
from service.tasks.object_detection import Chances, ObjectDetectionInput, suppress
from service.uncertainty.fitting import fit_score_line
from training.card import write_tables
from training.export import answers as answers_of
from training.export import open_session, save, torch_to_onnx
from training.quantise import to_float16_storage, to_int8

OPERATORS = ("Conv", "MaxPool", "Add", "Concat", "LeakyRelu", "Resize")
"""That are computed in 8 bits."""
EXACT = tuple(f"heads.{level}.1.weight" for level in range(3))
"""The last layers stay float32: their scores and distances are few, and they are the answer."""
LEAST_SCORE = 0.02
"""What is scored lower says nothing of the scores that people see (0..1)."""
OVERLAPS = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)
"""Of suppression, among which the validation pictures choose."""


def shown(samples: Sequence[Labelled], config: Augmentation) -> np.ndarray:
    """Pictures as the service shows them to the network: uint8 (N, H, W, 3)."""
    return np.stack([_seen(sample, config)[0] for sample in samples])


def _seen(sample: Labelled, config: Augmentation) -> tuple[np.ndarray, View]:
    frame = Frame(config.width, config.height, "stretch" if config.stretch else "letterbox")
    width, height = sample.picture.size
    view = frame.view(width, height)
    return frame.pixels(Picture(sample.picture, width, height), view), view


def write_graph(
    network: NanoDet, version: Path, config: Augmentation, pictures: Sequence[Labelled], *, in_eight_bits: bool
) -> None:
    """Export the network, see that ONNX Runtime computes the same, and store it smaller.

    Args:
        pictures: of the training part, at which the ranges of 8 bits are measured.
    """
    size = (config.height, config.width)
    served = Served(network.to(memory_format=torch.contiguous_format).eval(), size)
    graph = torch_to_onnx(served, {"picture": torch.zeros((2, *size, 3), dtype=torch.uint8)}, ["boxes", "scores"])
    for output, length in zip(graph.graph.output, (4, network.labels), strict=True):
        for axis, size in zip(output.type.tensor_type.shape.dim[1:], (served.best, length), strict=True):
            axis.dim_value = size  # which the exporter does not find out
    pixels = shown(pictures[:4], config)
    with torch.no_grad():
        boxes, scores = served(torch.from_numpy(pixels))
    found = answers_of(open_session(graph), {"picture": pixels})
    difference = apart(np.concatenate([boxes, scores], 2), np.concatenate([found["boxes"], found["scores"]], 2))
    if difference > 1e-3:
        raise SystemExit(f"ONNX Runtime and torch differ by {difference:.1e}")
    print(f"ONNX Runtime and torch differ by {difference:.1e}")
    if in_eight_bits:
        graph = to_int8(
            graph,
            ({"picture": shown([picture], config)} for picture in pictures),
            operators=OPERATORS,
            exact=EXACT,
        )
    (version / "golden.json").unlink(missing_ok=True)  # answers of the graph before this one
    save(to_float16_storage(graph), version / "model.onnx")


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How far the best boxes and scores (N, n, 4 + K) of one are from the nearest of the other, in any number.

    Equal scores may come in another order, and the last of the best 300 may be others.
    """
    ours = ours[:, : ours.shape[1] * 2 // 3]
    distances = np.abs(ours[:, :, None] - theirs[:, None]).max(3)
    return float(distances.min(2).max())


def calibrate(version: Path, validation: Sequence[Labelled], labels: Sequence[str]) -> dict[str, float]:
    """Choose the overlap of suppression, fit what scores mean and choose the threshold; all into the manifest.

    Returns:
        What the validation pictures say of the result, for the card.
    """
    manifest = version.parent / "manifest.toml"
    once = np.ones((1, len(validation)))
    write_tables(manifest, calibration={}, detection={"nms_iou": 1.0})
    all_boxes = answers(version, validation, labels)
    precisions = {}
    for overlap in OVERLAPS:
        judged = judge([_suppressed(record, overlap) for record in all_boxes], labels)
        precisions[overlap] = round(float(mean_precision(judged, once, slice(None))[0]), 4)
    print(f"validation mAP@0.5:0.95 by the overlap of suppression: {precisions}")
    best = max(OVERLAPS, key=lambda overlap: round(precisions[overlap], 3))  # the narrowest of equal ones

    write_tables(manifest, detection={"nms_iou": best})
    judged = judge(answers(version, validation, labels, most=100), labels)
    scores = np.concatenate([each.scores for each in judged])
    right = np.concatenate([each.right[:, 0] for each in judged])
    counted = (scores >= LEAST_SCORE) & (scores < 1)
    line = fit_score_line(np.log(scores[counted] / (1 - scores[counted])), right[counted])
    chances = Chances(slope=round(line.slope, 4), offset=round(line.offset, 4))
    order = np.argsort(-scores, kind="stable")
    hits = right[order].cumsum()
    objects = sum(each.objects.sum() for each in judged)
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / objects
    last = int(np.argmax(2 * precision * recall / np.maximum(precision + recall, 1e-9)))
    threshold = float(np.floor(100 * chances.of(scores[order][last])) / 100)
    kept = chances.of(scores) >= threshold
    write_tables(
        manifest,
        detection={
            "threshold": threshold,
            "nms_iou": best,
            "precision": round(float(right[kept].mean()), 4),
            "recall": round(float(right[kept].sum() / objects), 4),
        },
        calibration={"slope": chances.slope, "offset": chances.offset},
    )
    return {
        "mAP@0.5": float(mean_precision(judged, once, slice(0, 1))[0]),
        "mAP@0.5:0.95": float(mean_precision(judged, once, slice(None))[0]),
        "precision": float(right[kept].mean()),
        "recall": float(right[kept].sum() / objects),
    }


def _suppressed(record: Found, overlap: float) -> Found:
    """What remains of a picture's detections, the best hundred."""
    _, columns = np.unique(record.labels, return_inverse=True)
    kept = suppress(record.boxes, columns, overlap)[:100]
    return dataclasses.replace(
        record, labels=[record.labels[place] for place in kept], scores=record.scores[kept], boxes=record.boxes[kept]
    )


def answers(version: Path, samples: Sequence[Labelled], labels: Sequence[str], most: int = 300) -> list[Found]:
    """What the served version says of pictures: its best candidates for each."""
    manifest = read_manifest(version.parent)
    handle = load_version(version, manifest, discover()[manifest.task], LoadOptions())
    records = []
    for sample in samples:
        buffer = io.BytesIO()
        sample.picture.save(buffer, "PNG", compress_level=1)
        request = ObjectDetectionInput(files=(Upload(buffer.getvalue()),), threshold=0, max_detections=most)
        (result,) = handle.predict_now(request).results  # type: ignore[union-attr]
        records.append(found(_truth(sample, labels), result, {"detections": []}))
    return records


def _truth(sample: Labelled, labels: Sequence[str]) -> Truth:
    return Truth(sample.name, [labels[label] for label in sample.labels], sample.boxes.tolist(), bytes)


def look(
    samples: Sequence[Labelled], labels: Sequence[str], config: Config, overlap: float = 0.6
) -> Callable[[NanoDet], dict[str, float]]:
    """A function that tells the figures of pictures while a network is trained, before it is exported."""
    size = (config.height, config.width)

    @torch.no_grad()
    def figures(network: NanoDet) -> dict[str, float]:
        served, records = Served(network, size), []
        for sample in samples:
            pixels, view = _seen(sample, config)
            with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
                boxes, scores = (values.float().numpy()[0] for values in served(torch.from_numpy(pixels[None].copy())))
            places, columns = np.nonzero(scores > 0.001)
            order = np.argsort(-scores[places, columns], kind="stable")[:1000]
            places, columns = places[order], columns[order]
            corners = view.to_picture(boxes[places])
            kept = np.flatnonzero(has_area(corners))
            kept = kept[suppress(corners[kept], columns[kept], overlap)][:100]
            names = [labels[column] for column in columns[kept]]
            records.append(Found(_truth(sample, labels), names, scores[places, columns][kept], corners[kept], 0))
        judged, one = judge(records, labels), np.ones((1, len(samples)))
        half, whole = (float(mean_precision(judged, one, part)[0]) for part in (slice(0, 1), slice(None)))
        return {"validation_mAP50": half, "validation_mAP": whole}

    return figures
