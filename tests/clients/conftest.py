"""A running server with the models that ship, for clients that were generated from its document."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.test_server import Server, serving

MODELS = Path(__file__).parent.parent.parent / "models"


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    with serving(MODELS, workers=1) as running:
        yield running


@pytest.fixture(scope="package")
def document(server: Server) -> dict[str, Any]:
    """What the server says of itself."""
    described: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()
    return described


def sample_file(operation: dict[str, Any]) -> tuple[str, bytes]:
    """The file that a document gives as a sample, and its content type."""
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    head, _, data = form["properties"]["file"]["items"]["x-sample"].partition(",")
    return head.removeprefix("data:").removesuffix(";base64"), base64.b64decode(data)
