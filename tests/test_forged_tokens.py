"""State tokens come from anybody: whatever is in one, the answer is 200 or 422, and what is issued is taken back.

The checksum of a token is no signature. So tokens are made here that it does not betray: those of real streams, with
other numbers in their arrays and other things beside them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import TensorProto as T

from service.errors import ManifestInvalid
from service.graph import Signature, TensorSpec
from service.state import MAX_ARRAY_BYTES, MAX_TOKEN_CHARS, Bounds, State, StateRange, pack, unpack
from service.tasks.base import ModelFolder
from service.text.tokeniser import MAX_CHUNK_CHARS
from tests import graphs
from tests.conftest import running

WORDS = ["<eos>", "<unk>", "the", "cat", "sat", "on", "a", "mat", ".", ","]


class Client:
    """A client of the application that can be called from where no event loop runs, as Hypothesis calls tests."""

    def __init__(self, runner: asyncio.Runner, client: httpx.AsyncClient) -> None:
        self._runner, self._client = runner, client

    def post(self, path: str, *, json: Any) -> httpx.Response:
        return self._runner.run(self._client.post(path, json=json))


@contextmanager
def served(models: Path) -> Iterator[Client]:
    with asyncio.Runner() as runner:
        application = running(models)
        yield Client(runner, runner.run(application.__aenter__()))
        runner.run(application.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def real() -> Iterator[Client]:
    with served(Path(__file__).parent.parent / "models") as client:
        yield client


def bigrams(path: Path) -> Path:
    probabilities = np.full((len(WORDS), len(WORDS)), 1 / len(WORDS))
    return graphs.save(
        path,
        graphs.bigram_nodes("surprisal"),
        [("tokens", T.INT64, ["batch", "time"]), ("sequence_lens", T.INT32, ["batch"]), ("state", T.FLOAT, ["batch", 1])],
        [
            ("logits", T.FLOAT, ["batch", len(WORDS)]),
            ("next_state", T.FLOAT, ["batch", 1]),
            ("surprisal", T.FLOAT, ["batch", "time"]),
        ],
        graphs.bigram_constants(probabilities),
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Models that keep any number, and whose ranges nobody has written down."""
    models = tmp_path_factory.mktemp("models")
    graphs.detector_model(models)
    graphs.write_model(models / "age", task="anomaly-detection", graph=graphs.age)
    graphs.write_model(models / "bigrams", task="next-word-prediction", graph=bigrams)
    (models / "bigrams" / "1" / "vocabulary.txt").write_text("\n".join(WORDS) + "\n")
    with served(models) as client:
        yield client


def ask(client: Client, task: str, model: str, state: str | None, **body: Any) -> Any:
    """A request's answer, which keeps the law."""
    response = client.post(f"/v1/{task}", json={"model": model, "state": state, **body})
    assert response.status_code in (200, 422), response.text
    answer = response.json()
    if response.status_code == 200:
        assert len(answer["state"]) <= MAX_TOKEN_CHARS
        if "scores" in answer:
            assert all(isinstance(score, float) and 0 <= score <= 1 for score in answer["scores"])
        else:
            assert all(0 <= each["score"] <= 1 for each in answer["predictions"])
            assert all(math.isfinite(each["surprisal"]) for each in answer.get("tokens") or ())
    return answer


LARGE = (1e9, 1e15, 1e38, 1e140, 1e200, 1e300, 4e300, 1.7e308, math.inf)
NUMBERS = (
    st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, 2.0, 7.0, 127.0, 5e-324, math.nan, *LARGE, *(-x for x in LARGE)])
    | st.floats()
)
MUTATIONS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 10_000), st.sampled_from([1, 1, 1, 2, 10, 10_000]), NUMBERS),
    max_size=4,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def forge(token: str, model: str, version: str, mutations: list[Any], extra: Any) -> str:
    """A token whose checksum is right."""
    found = unpack(model, version, token)
    arrays = {name: array.copy() for name, array in found.arrays.items()}
    names = list(arrays)
    for which, place, many, number in mutations:
        array = arrays[names[which % len(names)]]
        with np.errstate(over="ignore"):
            array[place % len(array) : place % len(array) + many] = number
    return pack(model, version, State(arrays, {**found.extra, **extra}))


def check(client: Client, task: str, model: str, version: str, begin: Any, then: Any, forged: Any) -> None:
    """Go on from a forged token, and then from what was issued for it."""
    mutations, extra = forged
    first = ask(client, task, model, None, **begin)
    answer = ask(client, task, model, forge(first["state"], model, version, mutations, extra), **then)
    harmless = {"values": [3, 4]} if task == "anomaly-detection" else {"text": "the cat "}
    for _ in range(3):
        if "state" in answer:
            answer = ask(client, task, model, answer["state"], **harmless)
            assert "state" in answer, answer["detail"]


STAMPS = ["2024-01-01T00:00:00", "2024-01-01T00:01:00", "2024-01-01T00:05:00", "2024-01-01T00:06:00"]
SERIES = [{"values": [1, 2, None, 4], "timestamps": STAMPS}, {"values": [5.5] * 40}, {"values": [1e300, -1e300] * 3}]
GRIDS = st.fixed_dictionaries(
    {},
    optional={
        "last": JSON | st.integers(-(2**63), 2**63 - 1),
        "local": st.booleans() | JSON,
        "unit": st.sampled_from([1, 10**3, 10**6, 10**9, 7, None]),
        "spare": st.integers(-5, 3000) | JSON,
        "differences": st.lists(st.tuples(st.integers(-1, 2000), st.integers(-1, 2**63 - 1)), max_size=18) | JSON,
        "more": JSON,
    },
)
IN_ORDER = {"last": 0, "local": False, "unit": None, "spare": 0, "differences": []}
SERIES_EXTRA = (
    st.just({})
    | st.fixed_dictionaries({"grid": GRIDS.map(lambda grid: IN_ORDER | grid) | JSON})
    | st.dictionaries(st.text(max_size=3), JSON, max_size=2)
)
LATER = ["2030-01-01T00:00:00", "2030-01-01T00:01:00", "2030-01-01T00:02:00"]
THEN = st.sampled_from(
    [{"values": [3]}, {"values": [3, None, 4.5], "timestamps": LATER}, {"values": [1e300]}, {"values": [0.0] * 300}]
)


@given(st.sampled_from(SERIES), THEN, st.tuples(MUTATIONS, SERIES_EXTRA))
def test_forged_memories_of_the_real_detector(real: Client, begin: Any, then: Any, forged: Any) -> None:
    check(real, "anomaly-detection", "series-gru", "2", begin, then, forged)


@given(st.sampled_from(["steps", "age"]), st.sampled_from(SERIES), THEN, st.tuples(MUTATIONS, SERIES_EXTRA))
def test_forged_memories_of_tiny_detectors(tiny: Client, model: str, begin: Any, then: Any, forged: Any) -> None:
    if model == "steps":  # which takes neither missing points nor such large ones
        begin = SERIES[1]
    check(tiny, "anomaly-detection", model, "1", begin, then, forged)


TEXT_EXTRA = st.fixed_dictionaries(
    {},
    optional={
        "pending": st.text(max_size=2 * MAX_CHUNK_CHARS) | st.sampled_from(["th", "x" * 255, "\U0001f468" * 255, "\u200b"]) | JSON,
        "place": st.integers(-1, 3) | JSON,
        "more": JSON,
    },
)  # fmt: skip
TEXTS = st.sampled_from([{"text": "the cat sat on "}, {"text": "th"}, {"text": "\n\n"}, {"text": "x" * 300}])
MORE_TEXT = st.sampled_from(
    [
        *({"text": "a "}, {"text": ""}, {"text": "ca", "words": 2}, {"text": ", on the ma", "explain": True}),
        *({"text": "the mat. " * 30}, {"text": "", "words": 3, "top_k": 3}, {"text": "\U0001f468\u200d" * 200}),
    ]
)


@given(TEXTS, MORE_TEXT, st.tuples(MUTATIONS, TEXT_EXTRA))
def test_forged_memories_of_the_real_language_model(real: Client, begin: Any, then: Any, forged: Any) -> None:
    check(real, "next-word-prediction", "english-lstm", "1", begin, then, forged)


@given(TEXTS, MORE_TEXT, st.tuples(MUTATIONS, TEXT_EXTRA))
@example({"text": "the "}, {"text": "cat "}, ([(0, 0, 1, 1e6)], {}))  # the graph refuses to run
def test_forged_memories_of_a_tiny_language_model(tiny: Client, begin: Any, then: Any, forged: Any) -> None:
    check(tiny, "next-word-prediction", "bigrams", "1", begin, then, forged)


def test_values_that_a_graph_cannot_remember_are_refused_before_a_token_is_issued(tiny: Client) -> None:
    """The state of this one is the last value in float32."""
    response = tiny.post("/v1/anomaly-detection", json={"model": "steps", "values": [1e39]})
    assert response.status_code == 422
    assert "Scale the series down" in response.json()["detail"]


def test_numbers_that_cost_time_are_refused(real: Client) -> None:
    """With 1e300 points seen, which one more does not change, the detector would look for a period at each point."""
    first = ask(real, "anomaly-detection", "series-gru", None, values=[1, 2, 3])
    forged = forge(first["state"], "series-gru", "2", [(1, 0, 1, 1e300)], {})
    response = real.post("/v1/anomaly-detection", json={"state": forged, "values": [1] * 2000})
    assert response.status_code == 422
    assert response.json()["type"] == "/problems/invalid-state"


# --------------------------------------------------------------------------------------------------------- the bounds


def bounds(*ranges: dict[str, Any], width: int = 3, dtype: type = np.float32) -> Callable[[list[float]], bool]:
    made = Bounds((width,), np.dtype(dtype), [StateRange(**each) for each in ranges])
    return lambda values: made.hold(np.array(values, dtype))


def test_without_ranges_every_finite_number_is_possible() -> None:
    holds = bounds()
    assert holds([0, -3e38, 3e38])
    assert not holds([0, 0, math.inf])
    assert not holds([math.nan, 0, 0])
    assert not holds([0, 0])


def test_ranges_hold_for_their_columns() -> None:
    holds = bounds({"columns": [0, 1], "least": 0, "whole": True}, {"columns": [1, 3], "least": -1, "most": 1})
    assert holds([7, -1, 1])
    assert not holds([7.5, 0, 0])
    assert not holds([-1, 0, 0])
    assert not holds([7, 0, 1.5])


def test_whole_numbers_have_ranges_too() -> None:
    holds = bounds({"least": 0, "most": 1e300, "whole": True}, dtype=np.int64)
    assert holds([0, 1, 2**63 - 1])
    assert not holds([0, 1, -1])


@pytest.mark.parametrize(
    ("width", "dtypes", "ranges", "reason"),
    [
        (3, ("float32", "float64"), {}, "both should be the same float or int"),
        (3, ("bool", "bool"), {}, "both should be the same float or int"),
        (MAX_ARRAY_BYTES // 4 + 1, ("float32",) * 2, {}, "a token holds 45,056"),
        (3, ("float32",) * 2, {"c": []}, r"\[state_ranges\] has 'c'; the graph's states are: h"),
        (3, ("float32",) * 2, {"h": [StateRange(columns=(2, 4))]}, r"has columns = \[2, 4\], but there are 3"),
    ],
)
def test_a_state_that_cannot_travel_is_refused_at_load(
    width: int, dtypes: tuple[str, str], ranges: Any, reason: str
) -> None:
    before, after = dtypes
    signature = Signature(
        {"h": TensorSpec("h", before, ("batch", width))}, {"next_h": TensorSpec("next_h", after, ("batch", width))}
    )
    with pytest.raises(ManifestInvalid, match=reason):
        _ = ModelFolder("m", "1", Path(), signature, state_ranges=ranges).state_bounds


def test_the_largest_state_fits_in_a_token() -> None:
    array = np.zeros(MAX_ARRAY_BYTES // 8)
    pending = "\U0001f468" * (MAX_CHUNK_CHARS - 1)
    assert len(pack("m" * 64, "1" * 64, State({"state": array}, {"pending": pending, "place": 2}))) <= MAX_TOKEN_CHARS
