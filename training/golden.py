"""Golden samples: real inputs, answered by the service's own path through a version's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from service.registry.golden import FILENAME, GoldenSample, golden_request
from service.registry.handle import LoadOptions
from service.registry.loading import load_version
from service.registry.manifest import read_manifest
from service.tasks import discover


def write_golden(
    version: Path, inputs: Sequence[Mapping[str, Any]], *, tolerance: float, fields: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Answer the inputs, write `golden.json`, and load the version once more with it, as serving does.

    Args:
        version: `models/<name>/<version>`, with its graph and all that its task reads.
        inputs: as `golden.json` has them: a request's fields, with a file's path beside `golden.json` for a file.
        tolerance: largest allowed difference of a number, wide enough for other processors.
        fields: of the answer that are kept where it has them (all but `model`, if left out).

    Returns:
        What was written.

    Raises:
        ManifestInvalid: the version cannot be served, or does not answer the same twice.
    """
    manifest = read_manifest(version.parent)
    task = discover()[manifest.task]
    file = version / FILENAME
    file.unlink(missing_ok=True)  # those of a graph before this one
    handle = load_version(version, manifest, task, LoadOptions())
    entries = []
    for given in inputs:
        sample = GoldenSample(input=dict(given), output={}, tolerance=tolerance)
        request = golden_request(handle.task, sample, version)
        answer = orjson.loads(handle.predict_now(request).to_json())
        kept = [key for key in answer if key != "model" and (not fields or key in fields)]
        entries.append({"input": dict(given), "output": {key: answer[key] for key in kept}, "tolerance": tolerance})
    file.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    load_version(version, manifest, task, LoadOptions())
    return entries
