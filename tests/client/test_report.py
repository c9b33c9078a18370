"""What is told of a load, to people and to machines."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from service.client.load import LoadResult
from service.client.report import LoadReport


def outcome(**given: Any) -> LoadResult:
    usual = {"requests": 10, "answers": 12, "rate": 5.0, "errors": {}, "examples": {}, "client_cores": 0.1}
    times = {"mean_ms": 10.0, "p50_ms": 9.0, "p95_ms": 11.0, "p99_ms": 12.0, "steps_ms": {"queue": 3.0, "infer": 5.0}}
    return LoadResult(**{**usual, **times, **given})


def test_what_the_server_does_not_account_for_is_http_and_network():
    assert outcome().rest_ms == pytest.approx(2.0)
    assert outcome(steps_ms={}).rest_ms is None


def report_of(**given: Any) -> LoadReport:
    seen = outcome(**given)
    return LoadReport("http://127.0.0.1:8000", "m@1", "t", 1, "golden samples", 4, 2.0, seen, rows=60, runs=20)


def test_a_report_is_good_only_without_any_error():
    assert report_of().is_good
    assert not report_of(errors={"status 503": 1}).is_good
    assert not report_of(requests=0).is_good


def test_a_report_for_machines_has_null_for_what_is_not_a_number():
    document = json.loads(json.dumps(report_of(requests=0, p50_ms=math.nan, steps_ms={}).as_json(), allow_nan=False))
    assert document["p50_ms"] is None
    assert document["rest_ms"] is None
    assert document["rows_per_run"] == 3


def test_a_report_for_people_names_each_kind_of_error_with_an_example():
    text = "\n".join(report_of(errors={"status 503": 7}, examples={"status 503": "Too many wait."}).lines())
    assert "7 × status 503: Too many wait." in text
