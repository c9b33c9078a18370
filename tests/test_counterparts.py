"""The models that stand beside others for comparison: what comes in pieces is answered as the whole is."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from service.registry.handle import LoadOptions, ModelHandle
from service.registry.loading import load_version
from service.registry.manifest import read_manifest
from service.tasks import discover
from service.tasks.base import Upload

MODELS = Path(__file__).parent.parent / "models"


@cache
def loaded(name: str) -> ModelHandle:
    manifest = read_manifest(MODELS / name)
    return load_version(MODELS / name / "1", manifest, discover()[manifest.task], LoadOptions())


def answer(name: str, **fields: Any) -> dict[str, Any]:
    handle = loaded(name)
    found: dict[str, Any] = orjson.loads(handle.predict_now(handle.task.Input.model_validate(fields)).to_json())
    return found


@pytest.mark.parametrize("size", [1, 7, 300])
def test_a_series_in_pieces_gets_the_scores_of_the_whole(size: int) -> None:
    rng = np.random.default_rng(1)
    values = [None if k in (0, 90, 91) else float(v) for k, v in enumerate(rng.normal(50, 2, 330))]
    values[200] = 90.0
    whole, scores, state = answer("series-cnn", values=values), [], None
    for begin in range(0, len(values), size):
        part = answer("series-cnn", values=values[begin : begin + size], state=state)
        scores += part["scores"]
        state = part["state"]
    assert scores == pytest.approx(whole["scores"], abs=1e-4)
    assert 200 in whole["anomalies"]


TEXT = "I would like to book a table for two people tomorrow evening and then go to the "


def test_a_text_cut_anywhere_gets_the_predictions_of_the_whole() -> None:
    whole, state = answer("english-cnn", text=TEXT), None
    for begin in range(0, len(TEXT), 11):
        part = answer("english-cnn", text=TEXT[begin : begin + 11], state=state)
        state = part["state"]
    assert [one["text"] for one in part["predictions"]] == [one["text"] for one in whole["predictions"]]
    scores = [one["score"] for one in whole["predictions"]]
    assert [one["score"] for one in part["predictions"]] == pytest.approx(scores, abs=1e-4)


def test_words_in_pieces_are_as_surprising_as_in_the_whole() -> None:
    whole, state, told = answer("english-cnn", text=TEXT, explain=True), None, []
    for word in TEXT.split():
        part = answer("english-cnn", text=f"{word} ", state=state, explain=True)
        state = part["state"]
        told += [token["surprisal"] for token in part["tokens"]]
    assert told == pytest.approx([token["surprisal"] for token in whole["tokens"]], abs=0.01)


def test_words_beyond_its_window_are_nothing_to_the_convolutions() -> None:
    ending = "please tell me how I can get from the station to the old town by the river in the evening of the "
    long_ago = answer("english-cnn", text=f"The king of Spain. {ending}")
    other = answer("english-cnn", text=f"My bank account, however! {ending}")
    assert long_ago["predictions"] == [
        {"text": one["text"], "score": pytest.approx(one["score"], abs=1e-5)} for one in other["predictions"]
    ]


def test_a_heatmap_of_the_row_by_row_network_has_a_value_for_each_row() -> None:
    handle = loaded("cifar10-rnn")
    picture = (MODELS / "cifar10-rnn" / "1" / "golden" / "ship.png").read_bytes()
    request = handle.task.Input.model_validate({"files": (Upload(picture),), "explain": True})
    (result,) = orjson.loads(handle.predict_now(request).to_json())["results"]
    assert result["predictions"]
    assert result["heatmap"]
