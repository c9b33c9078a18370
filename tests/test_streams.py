"""Streams on the models that ship: whole, in pieces or bit by bit, through HTTP, the answers are the same."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.state import State, pack

POINTS = 600


def series() -> list[float | None]:
    """A daily rhythm with noise, two spikes, a level shift and missing points."""
    noise = random.Random(7)
    values: list[float | None] = [
        50 + 20 * math.sin(i / 288 * 2 * math.pi) + noise.gauss(0, 2) + (30 if i > 450 else 0) for i in range(POINTS)
    ]
    values[200], values[201], values[333] = 160.0, None, -40.0
    return values


async def detect(client: httpx.AsyncClient, values: list[float | None], size: int) -> dict[str, list[float]]:
    """All fields of the answers to pieces of `size` points, put together again."""
    found: dict[str, list[float]] = {"scores": [], "expected": [], "lower": [], "upper": []}
    state = None
    for start in range(0, len(values), size):
        answer = await client.post(
            "/v1/anomaly-detection", json={"values": values[start : start + size], "state": state}
        )
        body = answer.raise_for_status().json()
        state = body["state"]
        assert len(state) <= 64 * 1024
        for name, collected in found.items():
            collected += body[name]
    return found


@pytest.mark.parametrize("size", [7, 1])
async def test_a_series_in_pieces_has_the_scores_of_the_whole(real_client: httpx.AsyncClient, size: int) -> None:
    values = series()
    whole, pieces = await detect(real_client, values, POINTS), await detect(real_client, values, size)
    for name, expected in whole.items():
        tolerance = 1e-4 if name == "scores" else 1e-2  # the others are in the unit of the series, about 50
        assert pieces[name] == pytest.approx(expected, abs=tolerance), name
    assert whole["scores"][200] > 0.5
    assert whole["scores"][333] > 0.5


async def test_the_scale_of_a_series_does_not_matter(real_client: httpx.AsyncClient) -> None:
    values = series()
    scaled = [None if v is None else v * 1e6 + 1e7 for v in values]
    plain = await detect(real_client, values, POINTS)
    assert (await detect(real_client, scaled, POINTS))["scores"] == pytest.approx(plain["scores"], abs=5e-3)


@pytest.mark.parametrize("period", [48, 96])
async def test_a_day_that_does_not_come_is_found(real_client: httpx.AsyncClient, period: int) -> None:
    """No point of it is new: nights have the same values."""
    noise = random.Random(0)
    values: list[float | None] = [
        50 + 30 * max(math.sin(2 * math.pi * i / period), -0.3) + noise.gauss(0, 2) for i in range(14 * period)
    ]
    start, end = 12 * period, 12 * period + period // 2
    values[start:end] = [41 + noise.gauss(0, 2) for _ in range(start, end)]
    scores = (await detect(real_client, values, 500))["scores"]
    assert max(scores[start:end]) >= 0.5
    assert max(scores[4 * period : start]) < 0.5


def noise(points: int) -> list[float]:
    source = random.Random(4)
    return [50 + source.gauss(0, 1) for _ in range(points)]


NOISE = noise(600)


def width(answer: dict[str, Any], at: int) -> float:
    return float(answer["upper"][at] - answer["lower"][at])


@pytest.mark.parametrize("apart", [10, 25, 50, 100])
@pytest.mark.parametrize("points", [1, 2])
async def test_each_of_four_spikes_is_found_and_the_band_stays(
    real_client: httpx.AsyncClient, apart: int, points: int
) -> None:
    values = list(NOISE)
    starts = [200 + apart * k for k in range(4)]
    for start, size in zip(starts, [20, -18, 17, 22], strict=True):
        for i in range(start, start + points):
            values[i] += size
    answer = (await real_client.post("/v1/anomaly-detection", json={"values": values})).raise_for_status().json()
    assert {*starts} <= {*answer["anomalies"]} <= {i for start in starts for i in range(start, start + points)}
    assert width(answer, starts[0] + points + 2) < 1.5 * width(answer, starts[0] - 1)


async def test_a_spike_in_the_next_piece_is_found_too(real_client: httpx.AsyncClient) -> None:
    values = list(NOISE[:320])
    values[300], values[310] = 70, 71
    found = await detect(real_client, [*values], 305)
    assert [i for i, score in enumerate(found["scores"]) if score >= 0.5] == [300, 310]


async def test_a_new_level_is_learnt(real_client: httpx.AsyncClient) -> None:
    values = [value + (15 if i >= 300 else 0) for i, value in enumerate(NOISE)]
    answer = (await real_client.post("/v1/anomaly-detection", json={"values": values})).raise_for_status().json()
    assert 300 in answer["anomalies"]
    assert max(answer["anomalies"]) < 305
    assert answer["expected"][400] == pytest.approx(65, abs=1)


async def test_spikes_that_come_every_hour_are_known_in_time(real_client: httpx.AsyncClient) -> None:
    values = [value + (20 if i % 60 == 30 else 0) for i, value in enumerate(NOISE + NOISE)]
    answer = (await real_client.post("/v1/anomaly-detection", json={"values": values})).raise_for_status().json()
    assert [i for i in answer["anomalies"] if i > 300] == []


@pytest.mark.parametrize(("period", "days"), [(24, 12), (288, 4)])
@pytest.mark.parametrize("gap", [3, 6, 12, 24])
async def test_a_gap_in_a_rhythm_is_no_alarm(real_client: httpx.AsyncClient, period: int, days: int, gap: int) -> None:
    for seed in range(4):
        source = random.Random(seed)
        values: list[float | None] = [
            100 + 20 * math.sin(2 * math.pi * (i / period + seed / 5)) + source.gauss(0, 1)
            for i in range(period * days)
        ]
        start = period * days * 2 // 3 + 5 * seed
        whole = await detect(real_client, values, len(values))
        values[start : start + gap] = [None] * gap
        broken = await detect(real_client, values, len(values))
        alarms = [
            i for i, (new, old) in enumerate(zip(broken["scores"], whole["scores"], strict=True)) if new >= 0.5 > old
        ]
        assert alarms == []


async def test_a_spike_soon_after_a_gap_is_found(real_client: httpx.AsyncClient) -> None:
    values: list[float | None] = [*NOISE]
    values[300:312] = [None] * 12
    values[325] = 75
    assert (await detect(real_client, values, len(values)))["scores"][325] >= 0.5


CASE = Path(__file__).parent / "cases" / "timestamps-gap"


@pytest.mark.parametrize("size", [1000, 7, 1])
async def test_hours_left_out_are_hours_sent_as_null(real_client: httpx.AsyncClient, size: int) -> None:
    """The same series twice: with hours 200 to 205 left out, found by their time stamps, and with them as null."""
    with_nulls = json.loads((CASE / "nulls.json").read_text())
    nulls = (await real_client.post("/v1/anomaly-detection", json=with_nulls)).raise_for_status().json()
    sent, state = json.loads((CASE / "gap.json").read_text()), None
    found: dict[str, list[Any]] = {"scores": [], "expected": [], "lower": [], "is_anomaly": []}
    for start in range(0, len(sent["values"]), size):
        body = {name: sent[name][start : start + size] for name in ("values", "timestamps")}
        answer = await real_client.post("/v1/anomaly-detection", json={**body, "state": state})
        state = answer.raise_for_status().json()["state"]
        for name, collected in found.items():
            collected += answer.json()[name]
    shared = [i for i, value in enumerate(with_nulls["values"]) if value is not None]
    assert found["is_anomaly"] == [nulls["is_anomaly"][i] for i in shared]
    for name in ("scores", "expected", "lower"):
        expected = [nulls[name][i] for i in shared]
        assert [value is None for value in found[name]] == [value is None for value in expected]
        pairs = [(a, b) for a, b in zip(found[name], expected, strict=True) if a is not None]
        assert [a for a, _ in pairs] == pytest.approx([b for _, b in pairs], abs=1e-4)


@pytest.mark.parametrize("stamps", [["01/02/2024 03:00", "01/02/2024 04:00"], [True, None], ["", "x"]])
async def test_a_stamp_that_is_none_is_told_once(real_client: httpx.AsyncClient, stamps: list[Any]) -> None:
    answer = await real_client.post("/v1/anomaly-detection", json={"values": [1, 2], "timestamps": stamps})
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (422, "/problems/validation-failed")
    assert problem["detail"] == "timestamps[0]: send ISO 8601 such as 2024-01-31T13:00:00Z, or Unix seconds."
    assert [error["loc"] for error in problem["errors"]] == [["body", "timestamps", 0]]


TEXT = "I would like to book a table for two people at a restaurant near the stat"


@pytest.mark.parametrize("cuts", [(1,), (7, 8), (20, 41, 60), tuple(range(1, len(TEXT)))])
async def test_a_text_in_pieces_has_the_predictions_of_the_whole(
    real_client: httpx.AsyncClient, cuts: tuple[int, ...]
) -> None:
    path = "/v1/next-word-prediction"
    whole = (await real_client.post(path, json={"text": TEXT})).raise_for_status().json()
    state, answer = None, {}
    for start, end in zip((0, *cuts), (*cuts, len(TEXT)), strict=True):
        sent = await real_client.post(path, json={"text": TEXT[start:end], "state": state})
        answer = sent.raise_for_status().json()
        state = answer["state"]
    assert answer["completing"] == whole["completing"] == "stat"
    assert [p["text"] for p in answer["predictions"]] == [p["text"] for p in whole["predictions"]]
    assert [p["score"] for p in answer["predictions"]] == pytest.approx(
        [p["score"] for p in whole["predictions"]], abs=1e-4
    )


@pytest.mark.parametrize(
    "typed", ["I would\u200b like a ﬁ\u00adsh and cafe\u0301 \U0001f469\U0001f3fd\u200d\U0001f4bb\u2764\ufe0f sta"]
)
async def test_a_text_may_be_cut_inside_what_is_seen_as_one_character(
    real_client: httpx.AsyncClient, typed: str
) -> None:
    path = "/v1/next-word-prediction"
    whole = (await real_client.post(path, json={"text": typed})).raise_for_status().json()
    state, answer = None, {}
    for character in typed:
        sent = await real_client.post(path, json={"text": character, "state": state})
        answer = sent.raise_for_status().json()
        state = answer["state"]
    assert answer["completing"] == whole["completing"] == "sta"
    assert {p["text"]: p["score"] for p in answer["predictions"]} == pytest.approx(
        {p["text"]: p["score"] for p in whole["predictions"]}, abs=1e-4
    )


GO_TO_THE = "I would like to go to the "


@pytest.mark.parametrize(
    ("typed", "plain", "best"),
    [
        (GO_TO_THE + "\u200b", GO_TO_THE, "restaurant"),
        (GO_TO_THE + "\u200e ", GO_TO_THE, "restaurant"),
        ("\ufeff" + GO_TO_THE, GO_TO_THE, "restaurant"),
        ("I would\u200b like to go to\u200b the ", GO_TO_THE, "restaurant"),
        ("I\u00a0would like to go to\u202fthe\u3000", GO_TO_THE, "restaurant"),
        ("\u2067I would\u2069 like to go to the\u2060 ", GO_TO_THE, "restaurant"),
        (GO_TO_THE + "res\u00adtau", GO_TO_THE + "restau", "restaurant"),
        (GO_TO_THE + "ｒｅｓｔａｕ", GO_TO_THE + "restau", "restaurant"),
        ("Where is the o\ufb03", "Where is the offi", "office"),
        ("I don’t know whe", "I don't know whe", "when"),
        ("I donʼt know whe", "I don't know whe", "when"),
        ("a well‑kno", "a well-kno", "known"),
        ("at the cafe\u0301 we ha", "at the caf\u00e9 we ha", "have"),
    ],
)
async def test_characters_that_nobody_sees_or_that_look_alike_change_no_answer(
    real_client: httpx.AsyncClient, typed: str, plain: str, best: str
) -> None:
    answer, expected = [
        (await real_client.post("/v1/next-word-prediction", json={"text": text, "top_k": 20})).raise_for_status().json()
        for text in (typed, plain)
    ]
    assert answer["completing"] == expected["completing"]
    assert [p["text"] for p in answer["predictions"]] == [p["text"] for p in expected["predictions"]]
    assert [p["score"] for p in answer["predictions"]] == pytest.approx(
        [p["score"] for p in expected["predictions"]], abs=1e-6
    )
    assert best in [p["text"] for p in answer["predictions"][:3]]


async def test_a_word_is_completed_in_the_capitals_that_were_typed(real_client: httpx.AsyncClient) -> None:
    answer = await real_client.post("/v1/next-word-prediction", json={"text": "I bought a new iPhon"})
    assert (answer.json()["completing"], answer.json()["predictions"][0]["text"]) == ("iPhon", "iPhone")


async def test_a_text_that_takes_longer_than_its_deadline_is_refused(real_client: httpx.AsyncClient) -> None:
    """100,000 marks are as many tokens, hundreds of runs: no machine does them in a tenth of a second."""
    path, headers = "/v1/next-word-prediction", {"X-Request-Timeout": "0.1"}
    refused = await real_client.post(path, json={"text": "!" * 100_000}, headers=headers)
    assert refused.status_code == 504
    assert (await real_client.post(path, json={"text": "I would "})).status_code == 200


async def test_a_state_goes_to_its_own_model_only(real_client: httpx.AsyncClient) -> None:
    answer = await real_client.post("/v1/anomaly-detection", json={"values": [1.0, 2.0]})
    body = {"text": "hello", "state": answer.json()["state"]}
    refused = await real_client.post("/v1/next-word-prediction", json=body)
    assert refused.status_code == 422
    assert refused.json()["type"].endswith("/invalid-state")
    assert "series-gru" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("number", "status"), [(39_041.0, 200), (-1.0, 422), (0.4, 422), (39_042.0, 422), (1e30, 422), (-1e30, 422)]
)
async def test_a_made_up_state_is_answered_if_it_could_be(
    real_client: httpx.AsyncClient, number: float, status: int
) -> None:
    """The last two numbers of english-lstm's state are words: one that is no word must not break the run."""
    array = np.zeros(1026, np.float32)
    array[-2:] = number
    token = pack("english-lstm", "1", State({"state": array}, {"pending": "", "place": 0}))
    answer = await real_client.post("/v1/next-word-prediction", json={"text": "would ", "state": token})
    assert answer.status_code == status
    assert sum(p["score"] for p in answer.json().get("predictions", ())) <= 1
