"""Sample requests for a model: its golden samples, else the examples in the server's OpenAPI document."""

from __future__ import annotations

import base64
import json
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from service.client.http import Server
from service.client.load import Request

BOUNDARY = "gridloop-bench-7f3a91c2e05b"
"""Between the files of a form."""


class Sample(NamedTuple):
    """A request's content: what stands behind the path, the content type and the body."""

    query: Mapping[str, Any]
    content_type: str
    body: bytes


def golden_samples(folder: Path, task: str) -> list[Sample]:
    """The golden samples of a version folder as requests; empty where there are none that can be read.

    Args:
        folder: `models/<name>/<version>`.
        task: the endpoint's name.
    """
    # Not at the top: the client process and `--help` need none of this.
    from service.errors import ServiceError
    from service.registry.golden import golden_request, read_golden
    from service.tasks import AnyTask, discover
    from service.tasks.base import MediaInput

    kind = discover().get(task)
    if kind is None or not kind.has_route:
        return []
    try:
        # The class stands for an instance, which would need the graph: only its `Input` is looked at.
        requests = [golden_request(cast(AnyTask, kind), sample, folder) for sample in read_golden(folder, str(folder))]
    except (ServiceError, ValueError, OSError):
        return []
    samples = []
    for request in requests:
        fields = request.model_dump(mode="json", exclude_unset=True)
        if not isinstance(request, MediaInput):
            samples.append(Sample({}, "application/json", json.dumps(fields, ensure_ascii=False).encode()))
        elif len(request.files) == 1:
            samples.append(Sample(fields, "application/octet-stream", request.files[0].data))
        else:
            part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{{}}"\r\n\r\n'
            parts = [part.format(number).encode() + file.data for number, file in enumerate(request.files)]
            body = b"\r\n".join([*parts, f"--{BOUNDARY}--\r\n".encode()])
            samples.append(Sample(fields, f"multipart/form-data; boundary={BOUNDARY}", body))
    return samples


def documented_samples(openapi: Mapping[str, Any], task: str) -> list[Sample]:
    """The examples of a task in the server's own OpenAPI document; empty when it has none.

    Args:
        openapi: the document.
        task: the endpoint's name.
    """
    operation = openapi.get("paths", {}).get(f"/v1/{task}", {}).get("post", {})
    content = operation.get("requestBody", {}).get("content", {})
    examples = content.get("application/json", {}).get("examples", {})
    samples = [Sample({}, "application/json", json.dumps(example["value"]).encode()) for example in examples.values()]
    parts = content.get("multipart/form-data", {}).get("schema", {}).get("properties", {})
    sample = parts.get("file", {}).get("items", {}).get("x-sample", "")
    data_url = re.fullmatch(r"data:([\w/+.-]+);base64,(.+)", sample)
    if data_url:
        samples.append(Sample({}, data_url[1], base64.b64decode(data_url[2])))
    return samples


def wire_requests(server: Server, task: str, model: str, samples: Sequence[Sample]) -> list[Request]:
    """The samples as requests to one model."""
    requests = []
    for query, content_type, body in samples:
        if content_type == "application/json":
            target, body = f"/v1/{task}", json.dumps({**json.loads(body), "model": model}, ensure_ascii=False).encode()
        else:
            shown = {name: str(value).lower() if isinstance(value, bool) else value for name, value in query.items()}
            target = f"/v1/{task}?{urllib.parse.urlencode({**shown, 'model': model})}"
        requests.append(Request(server.request(target, content_type, body), model))
    return requests
