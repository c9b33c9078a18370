"""The routes compatible with Azure Anomaly Detector, asked by Microsoft's own client and by plain HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.api.azure_anomaly_detector import judged, on_grid
from service.schemas.azure_anomaly_detector import AzureDetectRequest
from tests import graphs
from tests.conftest import running
from tests.test_server import Server, serving

ENTIRE, LAST = (f"/anomalydetector/v1.1/timeseries/{which}/detect" for which in ("entire", "last"))
MONTHS = [826, 799, 890, 900, 961, 935, 894, 855, 809, 810, 766, 805]
LISTS = (
    *("expectedValues", "upperMargins", "lowerMargins"),
    *("isAnomaly", "isNegativeAnomaly", "isPositiveAnomaly", "severity"),
)


def body(values: list[float], step: timedelta = timedelta(hours=1), **fields: Any) -> dict[str, Any]:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    series = [{"timestamp": (begin + n * step).isoformat(), "value": value} for n, value in enumerate(values)]
    return {"series": series, "granularity": "hourly", **fields}


STEADY = [0.0, 0.5] * 10  # to the tiny detector, which expects the value before, give or take 1


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    graphs.detector_model(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("models")
    graphs.detector_model(models)
    with serving(models, workers=1, api_keys="secret") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"Ocp-Apim-Subscription-Key": "secret"}) as client:
        yield client


async def test_each_point_is_judged_under_the_names_of_that_service(steps: Path) -> None:
    async with running(steps) as client:
        found = (await client.post(ENTIRE, json=body([*STEADY, 90.0]))).json()
        ours = (await client.post("/v1/anomaly-detection", json={"values": [*STEADY, 90.0], "sensitivity": 0.5})).json()
    assert set(found) == {"period", *LISTS}
    assert {len(found[name]) for name in LISTS} == {21}
    assert found["isAnomaly"] == ours["is_anomaly"]
    assert found["isAnomaly"][-1] is True
    assert found["isPositiveAnomaly"] == found["isAnomaly"]
    assert found["isNegativeAnomaly"] == [False] * 21
    assert found["severity"] == [
        score if wrong else 0 for score, wrong in zip(ours["scores"], ours["is_anomaly"], strict=True)
    ]
    assert all(isinstance(each, float) for name in LISTS[:3] for each in found[name])


@pytest.mark.parametrize("sensitivity", [0, 50, 95, 98, 99])
def test_the_band_is_so_many_margins_wide_and_margins_do_not_depend_on_it(
    client: httpx.Client, sensitivity: int
) -> None:
    values = [*STEADY, 3.0, 0.2, -13.0, 0.1, 40.0, 0.1, 500.0]
    found = (client.post(ENTIRE, json=body(values, sensitivity=sensitivity, maxAnomalyRatio=0.49))).json()
    default = (client.post(ENTIRE, json=body(values, maxAnomalyRatio=0.49))).json()
    assert found["upperMargins"] == pytest.approx(default["upperMargins"])
    width = 100 - sensitivity
    expected, upper, lower = (np.array(found[name]) for name in LISTS[:3])
    judged = upper > 0
    outside = (values > expected + width * upper) | (values < expected - width * lower)
    assert found["isAnomaly"] == (outside & judged).tolist()


def test_no_more_points_are_anomalies_than_the_ratio_says_and_these_are_the_worst(client: httpx.Client) -> None:
    values = [*STEADY, 30.0, 0.0, 60.0, 0.0, 90.0]
    many = (client.post(ENTIRE, json=body(values, maxAnomalyRatio=0.49))).json()
    few = (client.post(ENTIRE, json=body(values, maxAnomalyRatio=0.08))).json()
    assert sum(many["isAnomaly"]) > 2 >= sum(few["isAnomaly"]) > 0
    least = min(severity for severity in few["severity"] if severity)
    left_out = [m for m, f in zip(many["severity"], few["severity"], strict=True) if m and not f]
    assert max(left_out) <= least


def test_the_last_point_is_judged_as_in_the_whole_series(client: httpx.Client) -> None:
    for last in (90.0, -90.0, 0.3):
        whole = (client.post(ENTIRE, json=body([*STEADY, last]))).json()
        found = (client.post(LAST, json=body([*STEADY, last]))).json()
        singular = {name.replace("Values", "Value").replace("Margins", "Margin"): whole[name][-1] for name in LISTS}
        assert found == {
            **singular,
            "period": whole["period"],
            "suggestedWindow": 4 * whole["period"] + 1 if whole["period"] > 2 else 12,
        }


def test_a_period_is_found_or_told_back(client: httpx.Client) -> None:
    """Monthly counts of four years: 4 × 12 + 1 points are suggested."""
    stamps = [f"{1972 + n // 12}-{n % 12 + 1:02}-01T00:00:00Z" for n in range(48)]
    series = [{"timestamp": stamp, "value": MONTHS[n % 12]} for n, stamp in enumerate(stamps)]
    found = (client.post(LAST, json={"series": series, "granularity": "monthly"})).json()
    told = (client.post(LAST, json={"series": series, "granularity": "monthly", "period": 6})).json()
    assert (found["period"], found["suggestedWindow"]) == (12, 49)
    assert (told["period"], told["suggestedWindow"]) == (6, 25)


@pytest.mark.parametrize(
    ("mode", "seen"),
    [("auto", None), ("notFill", None), (None, None), ("zero", 0), ("fixed", 7), ("previous", 1), ("linear", 2)],
)
def test_missing_points_are_filled_as_asked(client: httpx.Client, mode: str | None, seen: float | None) -> None:
    """The model sees the points on their grid; what was not sent is not answered."""
    asked = body([1.0] * 13, imputeMode=mode, imputeFixedValue=7.0)
    asked["series"][-1]["value"] = 3.0
    del asked["series"][11]
    series = on_grid(AzureDetectRequest.model_validate(asked), 1000)
    filled = series.values[11]
    assert (None if np.isnan(filled) else filled) == seen
    assert series.sent.tolist() == [*range(11), 12]
    found = (client.post(ENTIRE, json=asked)).json()
    assert {len(found[name]) for name in LISTS} == {12}


@pytest.mark.parametrize(
    ("granularity", "interval", "stamps"),
    [
        ("yearly", None, [f"{1990 + n}-03-01" for n in range(12)]),
        ("monthly", None, ["2025-01-31", "2025-02-28", "2025-03-31", *[f"2025-{n:02}-30" for n in (4,)], "2025-05-31", "2025-06-30",
                           "2025-07-31", "2025-08-31", "2025-09-30", "2025-10-31", "2025-11-30", "2025-12-31"]),
        ("monthly", 3, [f"{2020 + n // 4}-{n % 4 * 3 + 1:02}-01" for n in range(12)]),
        ("weekly", None, [f"2026-01-{n:02}" for n in (1, 8, 15, 22, 29)] + [f"2026-02-{n:02}" for n in (5, 12, 19, 26)]
         + [f"2026-03-{n:02}" for n in (5, 12, 19)]),
        ("daily", None, [f"2026-01-{n:02}" for n in range(1, 13)]),
        ("minutely", 5, [f"2026-01-01T00:{n * 5:02}:00Z" for n in range(12)]),
        ("secondly", None, [f"2026-01-01T00:00:{n:02}Z" for n in range(12)]),
        ("microsecond", None, [f"2026-01-01T00:00:00.{n:06}Z" for n in range(12)]),
        ("none", None, [None] * 12),
        (None, None, [f"2026-01-01T00:00:{n * n % 60 if n < 8 else 50 + n - 8:02}Z" for n in range(12)]),
    ],
)  # fmt: skip
def test_every_granularity_is_read(
    client: httpx.Client, granularity: str, interval: int | None, stamps: list[Any]
) -> None:
    series = [{"timestamp": stamp, "value": 1.0} if stamp else {"value": 1.0} for stamp in stamps]
    answer = client.post(ENTIRE, json={"series": series, "granularity": granularity, "customInterval": interval})
    assert answer.status_code == 200, answer.text


def series_with(place: int, **change: Any) -> dict[str, Any]:
    asked = body([1.0] * 13)
    asked["series"][place] = asked["series"][place] | change
    return asked


@pytest.mark.parametrize(
    ("asked", "code", "told"),
    [
        ({}, "RequiredSeries", "series"),
        ({"series": []}, "InvalidSeries", "at least 12"),
        (body([1.0] * 11), "InvalidSeries", "at least 12"),
        (body([1.0] * 13, granularity="sometimes"), "InvalidGranularity", "granularity"),
        (body([1.0] * 13, customInterval=0), "InvalidCustomInterval", "customInterval"),
        (body([1.0] * 13, period=-1), "InvalidPeriod", "period"),
        (body([1.0] * 13, sensitivity=100), "InvalidModelArgument", "sensitivity"),
        (body([1.0] * 13, maxAnomalyRatio=0.5), "InvalidModelArgument", "maxAnomalyRatio"),
        (body([1.0] * 13, imputeMode="guess"), "InvalidImputeMode", "imputeMode"),
        (body([1.0] * 13, imputeMode="fixed"), "InvalidImputeFixedValue", "imputeFixedValue"),
        (body([1.0] * 13, step=timedelta(minutes=50)), "InvalidSeries", "off the grid of 1 hour"),
        (body([1.0] * 13, step=timedelta(0)), "InvalidSeries", "comes twice"),
        (body([1.0] * 13, step=timedelta(hours=-1)), "InvalidSeries", "goes back"),
        (series_with(4, timestamp="soon"), "InvalidSeries", "series[4].timestamp"),
        (series_with(4, timestamp=None), "InvalidSeries", "series[4].timestamp"),
        (series_with(4, value="much"), "InvalidSeries", "series.4.value"),
        (series_with(12, timestamp="2126-01-01T00:00:00Z"), "InvalidSeries", "steps"),
        (series_with(4, value=1e308), "InvalidSeries", "Scale the series down"),
    ],
)
def test_what_is_wrong_is_called_as_that_service_calls_it(
    client: httpx.Client, asked: dict[str, Any], code: str, told: str
) -> None:
    answer = client.post(ENTIRE, json=asked)
    assert (answer.status_code, answer.json()["code"], answer.headers["x-ms-error-code"]) == (400, code, code)
    assert set(answer.json()) == {"code", "message"}
    assert told in answer.json()["message"]


async def test_the_other_failures_have_its_form_too(steps: Path) -> None:
    async with running(steps, api_keys="secret", max_series_points=20) as client:
        key = {"Ocp-Apim-Subscription-Key": "secret"}
        for headers in ({}, {"Ocp-Apim-Subscription-Key": "wrong"}):
            refused = await client.post(ENTIRE, json=body(STEADY), headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (401, "NotAuthorised")
        assert (await client.post(ENTIRE, json=body(STEADY), headers=key)).status_code == 200
        assert (
            await client.post(ENTIRE, json=body(STEADY), headers={"Authorization": "Bearer secret"})
        ).status_code == 200
        large = await client.post(ENTIRE, json=body([*STEADY, 1.0]), headers=key)
        assert (large.status_code, large.json()["code"]) == (413, "TooLarge")
        broken = await client.post(ENTIRE, content=b"{", headers=key)
        assert (broken.status_code, broken.json()["code"]) == (400, "InvalidJsonFormat")
        other = await client.post("/anomalydetector/v1.1/timeseries/changepoint/detect", json={}, headers=key)
        assert (other.status_code, set(other.json())) == (404, {"code", "message"})
        assert (await client.get(ENTIRE, headers=key)).status_code == 405
        elsewhere = await client.post("/v1/anomaly-detection", json={"values": [1]}, headers=key)
        assert elsewhere.status_code == 401  # that header is for these routes alone


def test_the_older_version_wants_to_know_the_granularity(client: httpx.Client) -> None:
    old = ENTIRE.replace("v1.1", "v1.0")
    assert (client.post(old, json=body(STEADY))).status_code == 200
    missing = client.post(old, json={"series": body(STEADY)["series"]})
    assert missing.json()["code"] == "RequiredGranularity"


def test_huge_numbers_have_margins_all_the_same(client: httpx.Client) -> None:
    found = client.post(ENTIRE, json=body([*STEADY, 1e30, -1e30, 1e30])).json()
    assert all(isinstance(each, float) for name in LISTS[:3] for each in found[name])


@pytest.mark.parametrize("width", [1, 5, 100])
def test_margins_and_anomalies_agree_where_the_latest_points_are_new_together(width: int) -> None:
    """Whatever the score is made of: a client that filters by margins finds the anomalies that are told."""
    rng = np.random.default_rng(width)
    values, expected, spread = rng.normal(0, 5, 500), rng.normal(0, 5, 500), rng.uniform(0.1, 9, 500)
    error = np.abs(values - expected)
    scores = np.maximum(error / (error + spread), rng.uniform(0, 1, 500))
    told = judged(values, expected, expected + width * spread, scores, scores >= 1 - 1 / (width + 1), width, 1.0)
    outside = error > width * told["upperMargins"]
    assert told["isAnomaly"].tolist() == outside.tolist()
    assert (told["upperMargins"] <= spread * (1 + 1e-9)).all()


# --- Microsoft's own client, unchanged


@pytest.fixture(scope="module")
def sdk() -> Any:
    return pytest.importorskip("azure.ai.anomalydetector", reason="needs azure-ai-anomalydetector")


def test_microsofts_client_gets_its_own_types(server: Server, sdk: Any) -> None:
    from azure.core.credentials import AzureKeyCredential
    from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

    def client(key: str) -> Any:
        return sdk.AnomalyDetectorClient(server.url, AzureKeyCredential(key))

    models = sdk.models
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    points = [
        models.TimeSeriesPoint(timestamp=begin + timedelta(hours=n), value=value)
        for n, value in enumerate([*STEADY, 90.0])
    ]
    asked = models.UnivariateDetectionOptions(series=points, granularity=models.TimeGranularity.HOURLY, sensitivity=99)
    with client("secret") as here:
        whole = here.detect_univariate_entire_series(asked)
        last = here.detect_univariate_last_point(asked)
        assert type(whole) is models.UnivariateEntireDetectionResult
        assert [n for n, wrong in enumerate(whole.is_anomaly) if wrong] == [20]
        assert whole.is_positive_anomaly[20]
        assert len(whole.expected_values) == len(whole.upper_margins) == len(whole.severity) == 21
        assert (last.is_anomaly, last.expected_value) == (True, whole.expected_values[-1])
        assert last.suggested_window >= 12
        with pytest.raises(HttpResponseError) as refused:
            here.detect_univariate_entire_series(models.UnivariateDetectionOptions(series=points[:3]))
        assert refused.value.status_code == 400
        assert refused.value.model.code == models.AnomalyDetectorErrorCodes.INVALID_SERIES
    with client("wrong") as stranger, pytest.raises(ClientAuthenticationError):
        stranger.detect_univariate_entire_series(asked)


def test_the_document_shows_both_routes(server: Server) -> None:
    document = httpx.get(f"{server.url}/openapi.json", headers={"Authorization": "Bearer secret"}).json()
    assert {ENTIRE, LAST} <= set(document["paths"])
    example = document["paths"][ENTIRE]["post"]["requestBody"]["content"]["application/json"]["examples"]["example 1"]
    answer = httpx.post(server.url + ENTIRE, json=example["value"], headers={"Ocp-Apim-Subscription-Key": "secret"})
    schema = document["components"]["schemas"]["AzureEntireResult"]
    assert set(answer.json()) == set(schema["properties"]), json.dumps(answer.json())
