"""What a graph's classes are called: from the exporter's metadata, from files beside the graph, or by their count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.importing.source import Source, literal
from service.runtime.onnx_file import attributes_of

COCO = 80
"""Classes of detectors trained on COCO (count)."""
IMAGENET = (1000, 1001)
"""Classes of classifiers trained on ImageNet, without and with a background (count)."""

_KEYS = ("names", "labels", "label", "classes", "class_names", "id2label", "categories")
"""Of metadata, and of JSON files beside a graph."""
_FILES = ("labels.txt", "classes.txt", "class_names.txt", "synset.txt")
_DOCUMENTS = ("config.json", "labels.json", "classes.json", "metadata.json")


@dataclass(frozen=True, slots=True)
class Labels:
    """Names of classes, and where they come from.

    Attributes:
        names: by index.
        source: where they were found, as the end of "labels are from".
        sure: whether they were made for this graph.
    """

    names: tuple[str, ...]
    source: str
    sure: bool = True


def find(source: Source, count: int | None, *, detector: bool = False) -> Labels | None:
    """The labels of so many classes; None where the count is not known and nothing tells.

    Args:
        source: the graph.
        count: of classes; None takes the first that are found.
        detector: whether they are those of boxes.
    """
    for found in _candidates(source):
        if count is None or len(found.names) == count:
            return found
    if count is None:
        return None
    if detector and count == COCO:
        return Labels(coco(), "their count, 80: COCO's", sure=False)
    return Labels(tuple(f"class {index}" for index in range(count)), _numbered(count), sure=False)


def coco() -> tuple[str, ...]:
    """COCO's 80 labels, as detectors number them."""
    return tuple(Path(__file__).with_name("coco.txt").read_text(encoding="utf-8").split("\n")[:COCO])


def _numbered(count: int) -> str:
    if count in IMAGENET:
        background = ", with a background first" if count == IMAGENET[1] else ""
        return f"no list, so numbers; {count} classes are usually ImageNet's{background}"
    return "no list, so numbers: nothing names them"


def _candidates(source: Source) -> Iterator[Labels]:
    """Every list of labels that the file has or that lies beside it, the surest first."""
    for key in _KEYS:
        if names := names_in(source.metadata.get(key, "")):
            yield Labels(names, f"{key!r} in the file's metadata")
    if characters := source.metadata.get("character"):
        spelt = ("blank", *characters.split("\n"))
        yield Labels((*spelt, " "), "'character' in the file's metadata, between CTC's blank and the space")
        yield Labels(spelt, "'character' in the file's metadata, after CTC's blank")
    for node in source.model.graph.node:
        settings = attributes_of(node)
        texts = settings.get("classlabels_strings") or settings.get("cats_strings")
        numbers = settings.get("classlabels_int64s") or settings.get("classlabels_ints")
        if texts:
            yield Labels(
                tuple(_one_line(text.decode(errors="replace")) for text in texts),
                f"the graph's operator {node.op_type}",
            )
        elif numbers:
            yield Labels(tuple(map(str, numbers)), f"the graph's operator {node.op_type}")
    stem = source.path.stem.lower()
    own = [f"{stem}.txt", f"{stem}.names", f"{stem}.labels", f"{stem}_labels.txt"]
    named = [name for name in source.beside if name.endswith(".names")]
    for name in dict.fromkeys([*own, *_FILES, *named]):
        if names := lines(source.text(name)):
            yield Labels(names, f"{name} beside the file", sure=name in (*own, "labels.txt"))
    for name in _DOCUMENTS:
        text = source.text(name)
        document = literal(text) if text else None
        if names := names_in(document):
            yield Labels(names, f"{name} beside the file", sure=False)
        if isinstance(document, dict):
            for key in _KEYS:
                if names := names_in(document.get(key)):
                    yield Labels(names, f"{key!r} in {name} beside the file", sure=name == "config.json")


def names_in(value: Any) -> tuple[str, ...]:
    """Labels in what an exporter writes: a list, a mapping from indices, either of them as text; none elsewhere."""
    if isinstance(value, str):
        value = literal(value) if value.strip()[:1] in ("[", "{", "(") else _split(value)
    if isinstance(value, Mapping):
        try:
            by_index = {int(index): name for index, name in value.items()}
        except (TypeError, ValueError):
            return ()
        value = [by_index.get(index) for index in range(len(by_index))]
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) and name for name in value):
        return ()
    return tuple(_one_line(name) for name in value)


def _split(text: str) -> Sequence[str]:
    for separator in ("\n", ",", ";"):
        if separator in text.strip():
            return [name.strip() for name in text.strip().split(separator)]
    return []


def lines(text: str | None) -> tuple[str, ...]:
    """The lines of a file of labels; none of an empty one."""
    return tuple((text or "").rstrip("\n").split("\n")) if (text or "").strip() else ()


def _one_line(name: str) -> str:
    return " ".join(name.split()) or "?"
