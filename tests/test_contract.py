"""The OpenAPI document keeps its word: requests that Schemathesis makes of it, right and wrong ones, to a started server.

Every operation gets its examples, a request for each limit and each way to miss it (the coverage phase), and some that are
drawn, the same ones every time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks

from tests import graphs
from tests.test_server import Server, serving

DOCUMENT = Path(__file__).parent.parent / "docs" / "openapi.json"
DRAWN = 25
"""Requests that are drawn for each operation (count)."""

api = schemathesis.openapi.from_path(DOCUMENT)

# Not among them: that every request which fits the schema is taken (a picture that is none, or an unknown model fits it), and that
# every other is refused (`"explain": 0` is taken for false).
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.unsupported_method,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("models")
    graphs.colour_model(models)
    graphs.detector_model(models)
    graphs.words_model(models)
    with serving(models, workers=1, log_level="error") as running:
        yield running


@api.parametrize()
@settings(max_examples=DRAWN, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_every_operation_answers_as_documented(case: schemathesis.Case, server: Server) -> None:
    """A documented status and content type, a body that fits its schema, and nothing that is the server's fault."""
    case.call_and_validate(base_url=server.url, checks=CHECKS)
