"""The folder of an imported model: graph, manifest, labels, a golden sample, a card with what is left to be said."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from service.errors import InvalidInput, ManifestInvalid
from service.graph import Array
from service.importing import outputs
from service.importing.propose import Guess, Proposal
from service.importing.source import Source
from service.media.images import open_picture
from service.registry.golden import FILENAME
from service.registry.handle import LoadOptions, ModelHandle
from service.registry.loading import load_version
from service.registry.manifest import read_manifest
from service.runtime.onnx_file import parse_model
from service.runtime.session import OnnxSession
from service.tasks import AnyTask
from service.tasks.base import MediaInput, Upload
from service.tasks.comparison import comparable

VERSION = "1"
MOST_GOLDEN_VALUES = 100_000
"""Numbers in a golden sample of tensors at most (count): beyond them the file is larger than most graphs."""
CHECKED_PREDICTIONS = 3
"""Labels, or boxes, that a golden sample compares (count)."""
TOLERANCE, TOLERANCE_8_BITS = 0.002, 0.05
"""Of scores, for processors that round differently."""

_8_BITS = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger")
_VAGUE = ("model", "best", "last", "export", "exported", "network", "net", "onnx", "saved_model", "encoder", "final")
"""Names of files that say nothing of the model: its folder's does."""


def name_for(path: Path) -> str:
    """A model's name, made of the file's, or of its folder's where that says more."""
    stem = path.stem if path.stem.lower() not in _VAGUE else path.resolve().parent.name or path.stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")
    return name or "imported"


def write(
    folder: Path,
    source: Source,
    proposal: Proposal,
    task: type[AnyTask],
    sample: Upload,
    expected: str | None = None,
) -> tuple[Proposal, dict[str, Any] | None]:
    """Make a model's folder.

    Args:
        folder: of the model; it is not there yet.
        source: the graph.
        proposal: what the folder should be.
        task: that the proposal names.
        sample: a picture, for a task that takes some.
        expected: the label that the sample should get; its being the answer confirms every guess.

    Returns:
        The proposal with what was found out on the way, and the answer to the sample; None where there is none.

    Raises:
        ManifestInvalid: the folder could not be served.
        InvalidInput: the sample cannot be used, or its answer is not what was expected.
    """
    version = folder / VERSION
    version.mkdir(parents=True)
    found = _copy_graph(source, proposal, version)
    proposal = replace(proposal, guesses=(*proposal.guesses, *found))
    if proposal.labels is not None:
        (version / "labels.txt").write_text("\n".join(proposal.labels) + "\n", encoding="utf-8")
    if (vocabulary := source.text("vocabulary.txt")) is not None and proposal.task != "tensor":
        (version / "vocabulary.txt").write_text(vocabulary, encoding="utf-8")
    (folder / "manifest.toml").write_text(manifest_text(proposal), encoding="utf-8")
    handle = load_version(version, read_manifest(folder), task, LoadOptions())
    answer = _write_golden(version, source, proposal, handle, sample)
    if expected is not None:
        _confirm(answer, expected)
        why = f"; confirmed: the sample is {expected!r}"
        proposal = replace(
            proposal,
            guesses=tuple(g if g.sure else replace(g, reason=g.reason + why, sure=True) for g in proposal.guesses),
        )
        (folder / "manifest.toml").write_text(manifest_text(proposal), encoding="utf-8")
    write_card(folder, source, proposal, _proof(version, proposal, sample, expected))
    return proposal, answer


# --- the graph


def _copy_graph(source: Source, proposal: Proposal, version: Path) -> list[Guess]:
    """Copy a graph with the files that have its weights, and add what it computes and does not give."""
    for name in source.session.side_files:
        target = version / name
        if not target.resolve().is_relative_to(version.resolve()) or target.name == "model.onnx":
            raise ManifestInvalid(source.path.name, f"has weights in {name!r}, which would not lie beside the graph.")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path.parent / name, target)
    target = version / "model.onnx"
    original = source.path.read_bytes()
    target.write_bytes(original)
    if len(original) > outputs.MOST_BYTES:
        return []
    model = parse_model(original)
    found = [
        Guess("output", name, "the probabilities as a tensor, of which ZipMap made a list of dictionaries", sure=True)
        for name in outputs.unzip(model)
    ]
    if found:
        target.write_bytes(model.SerializeToString())
    elif proposal.scores and (guess := _add_map(source, proposal, model, target, original)):
        found.append(guess)
    return found


def _add_map(source: Source, proposal: Proposal, model: Any, target: Path, original: bytes) -> Guess | None:
    """Add a classifier's activation map, if it can be and proves right on the trial."""
    trial, scores = proposal.trial, proposal.scores
    came = trial.outputs.get(scores) if trial else None
    if trial is None or came is None:
        return None
    why = outputs.add_activation_map(source, model, scores, int(np.prod(came.shape[1:])))
    if why is None:
        return None
    target.write_bytes(model.SerializeToString())
    (name,) = source.signature.inputs
    dtype = source.session.signature.inputs[name].dtype
    try:
        given = OnnxSession(target).run({name: trial.given.astype(dtype)})
        right = outputs.explains(given[scores], given[outputs.ACTIVATION_MAP], source.signature.activations.get(scores))
    except Exception:  # ONNX Runtime raises a dozen unrelated classes here
        right = False
    if not right:
        target.write_bytes(original)
        return None
    return Guess("explain", f"output {outputs.ACTIVATION_MAP!r} is added", f"{why}; its mean is the logits", sure=True)


# --- the golden sample


def _write_golden(
    version: Path, source: Source, proposal: Proposal, handle: ModelHandle, sample: Upload
) -> dict[str, Any] | None:
    """Answer a sample and keep both; None where there is nothing to ask."""
    given: dict[str, Any]
    eight_bits = bool(source.operators.intersection(_8_BITS))
    tolerance = TOLERANCE_8_BITS if eight_bits else TOLERANCE
    task = handle.task
    if issubclass(task.Input, MediaInput):
        if not task.recognises(sample.data):
            return None
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", sample.filename or "sample.png")
        (version / "golden").mkdir()
        (version / "golden" / name).write_bytes(sample.data)
        given = {"image": f"golden/{name}"} | _fields(proposal.task)
        answer = _asked(handle, {**_fields(proposal.task), "files": (replace(sample, filename=name),)})
        if proposal.task == "object-detection" and not _entries(answer):  # the best of what is below the threshold
            given["threshold"] = 0.0
            answer = _asked(
                handle, {**_fields(proposal.task), "threshold": 0.0, "files": (replace(sample, filename=name),)}
            )
    elif task.name == "tensor":
        if not proposal.inputs:
            return None
        given = {"inputs": {name: array.tolist() for name, array in proposal.inputs.items()}}
        answer = _asked(handle, given)
        kept = {name: values for name, values in answer["outputs"].items() if _count(values) <= MOST_GOLDEN_VALUES}
        if sum(array.size for array in proposal.inputs.values()) > MOST_GOLDEN_VALUES or not kept:
            return answer
        answer["outputs"] = kept
        tolerance *= max([1.0, *(_largest(values) for values in kept.values())])
    else:
        given = next(iter(task.examples()), {})
        answer = _asked(handle, given)
    expected = comparable(answer)
    entry = {"input": given, "output": expected, "tolerance": tolerance}
    (version / FILENAME).write_text(json.dumps([entry], indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return answer


def _fields(task: str) -> dict[str, Any]:
    return {
        "image-classification": {"top_k": CHECKED_PREDICTIONS},
        "object-detection": {"max_detections": CHECKED_PREDICTIONS},
    }.get(task, {})


def _asked(handle: ModelHandle, fields: Mapping[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = orjson.loads(handle.predict_now(handle.task.Input.model_validate(fields)).to_json())
    return answer


def _count(values: Any) -> int:
    return sum(map(_count, values)) if isinstance(values, list) else 1


def _largest(values: Any) -> float:
    if isinstance(values, list):
        return max(map(_largest, values), default=0.0)
    return abs(float(values)) if isinstance(values, int | float) else 0.0


def _entries(answer: Mapping[str, Any]) -> list[Any]:
    """What an answer to one picture says of it: labels, boxes or segments."""
    (result,) = answer["results"]
    if "error" in result:
        raise InvalidInput(result["error"]["detail"])
    found = [result[key] for key in ("predictions", "detections", "segments") if key in result]
    return list(found[0]) if found else []


def _confirm(answer: Mapping[str, Any] | None, expected: str) -> None:
    """See that a sample's answer is what it should be.

    Raises:
        InvalidInput: it is another.
    """
    entries = _entries(answer) if answer and "results" in answer else []
    is_ranking = bool(entries) and "box" not in entries[0] and "fraction" not in entries[0]
    labels = [entry["label"] for entry in (entries[:1] if is_ranking else entries)]
    if expected not in labels:
        said = f"{labels[0]!r}" if is_ranking else ", ".join(map(repr, labels)) or "nothing"
        raise InvalidInput(
            f"The sample should be {expected!r}, and the answer is {said}. One of the guesses is wrong: try another "
            "scale, such as --set preprocessing.mean=0 --set preprocessing.std=1, other labels or another resize."
        )


# --- manifest and card


def manifest_text(proposal: Proposal) -> str:
    """The manifest as TOML; a comment says of each key that was guessed how."""
    why = {guess.key: guess.reason for guess in proposal.open if guess.key}
    plain = {key: value for key, value in proposal.manifest.items() if not isinstance(value, Mapping)}
    tables = {key: value for key, value in proposal.manifest.items() if isinstance(value, Mapping)}
    lines = [_line(key, value, why.get(key)) for key, value in plain.items()]
    for name, table in tables.items():
        lines += ["", f"[{_key(name)}]", *(_line(key, value, why.get(f"{name}.{key}")) for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any, guessed: str | None) -> str:
    line = f"{_key(key)} = {_toml(value)}"
    return f"{line}    # guessed: {' '.join(guessed.split())}" if guessed else line


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _toml(value: Any) -> str:
    """A value as TOML: texts, numbers, booleans, lists, tables."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):  # a JSON text is one of TOML but for this character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return repr(value)


def write_card(folder: Path, source: Source, proposal: Proposal, proof: str) -> None:
    """Write the card of an imported model: what is known, what was guessed, what only its maker can say.

    Args:
        folder: of the model.
        source: the file that was imported.
        proposal: what was made of it.
        proof: what its golden sample proves.
    """
    tensors = [
        (f"`{spec.name}` ({way})", spec.dtype, f"({', '.join('?' if a is None else str(a) for a in spec.shape)})")
        for way, specs in (("in", source.session.signature.inputs), ("out", source.session.signature.outputs))
        for spec in specs.values()
    ]
    read = [(guess.about, guess.value, guess.reason) for guess in proposal.guesses if guess.sure]
    open_ones = [(guess.about, guess.value, guess.reason, guess.otherwise) for guess in proposal.open]
    text = _CARD.format(
        name=folder.name,
        file=source.path.name,
        guessed=_GUESSED + _table(("what", "guessed", "because", "otherwise"), open_ones) if open_ones else _NOTHING,
        read=_table(("what", "found", "because"), read),
        exporter=source.exporter or "not named in the file",
        opsets=source.opsets,
        digest=hashlib.sha256(source.path.read_bytes()).hexdigest(),
        tensors=_table(("tensor", "type", "shape"), tensors),
        proof=proof,
    )
    (folder / "card.md").write_text(text, encoding="utf-8")


def _proof(version: Path, proposal: Proposal, sample: Upload, expected: str | None) -> str:
    """What the golden sample proves, as the card says it."""
    if not (version / FILENAME).exists():
        return _NO_PROOF
    if expected is not None:
        return f"The golden sample is `{sample.filename}`, which is known to show {expected!r}; and so it is answered."
    return _PROOF.format(what="random numbers" if proposal.inputs else f"`{sample.filename}`")


_CARD = """# {name}

Imported from `{file}`. **To be filled in: what it is for, and for whom.**

## Guessed

{guessed}

## Read from the file, or said by who imported it

{read}

Exporter: {exporter}; {opsets}. SHA-256 of the file: `{digest}`.

{tensors}

{proof}

## To be filled in

* **Data**: what it was trained on, and the licence of that.
* **Licence** of the weights: write it into `manifest.toml` too (`licence = "…"`).
* **How good it is**: on which held-out data, measured how. `gridloop evaluate` measures it, and `[metrics]` claims it.
* **Where it fails**: what it has not seen, and what must not be decided by it.
"""
_GUESSED = """**Nobody has confirmed these.** A wrong one gives answers that look right and are not: compare some with
those of the framework that the model comes from.

"""
_NOTHING = "Nothing that is left to be confirmed."
_PROOF = """The golden sample is the model's own answer to {what}: it proves that answers stay what they were at
import, not that they are right. Replace it by a real input and the answer of the framework the model comes from."""
_NO_PROOF = """There is no golden sample, so nothing is compared: add a real input and the answer of the framework that
the model comes from."""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)])


def pixels_of(sample: Upload, most: int) -> Array:
    """A picture's pixels, uint8 (height, width, 3), to try a graph with.

    Raises:
        InvalidInput, TooLarge, UnsupportedMedia: it cannot be read.
    """
    picture = open_picture(sample.data, "The sample", max_pixels=most, least=None).pixels
    return np.asarray(picture if isinstance(picture, np.ndarray) else picture.convert("RGB"))
