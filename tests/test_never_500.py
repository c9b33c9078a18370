"""Nothing that a client sends is the server's fault: drawn tensors, states, pictures and JSON, to the real application.

Each is answered or refused in the form of its endpoint. So is a model whose manifest is drawn: it is served, or listed with a
sentence that says why not, and never keeps the others from being served.
"""

from __future__ import annotations

import base64
import json
import string
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from service.registry.registry import Registry
from service.state import State, pack
from tests import graphs
from tests.api.test_open_inference import ELEMENTS, LENGTH, Nothing, identity, model
from tests.conftest import running

IMAGES, SERIES, WORDS = "/v1/image-classification", "/v1/anomaly-detection", "/v1/next-word-prediction"

drawn = settings(
    max_examples=100, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, 5e-324, -0.0])
    | st.floats()
    | st.text(max_size=8)
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def told(answer: httpx.Response, *, below_v2: bool = False) -> int:
    """The status of an answer that is well-formed: JSON of finite numbers, or an error in the endpoint's form."""
    event(str(answer.status_code))
    assert answer.status_code < 500 or answer.status_code in (503, 504), answer.text
    if answer.status_code >= 400:
        body = answer.json()
        assert list(body) == ["error"] if below_v2 else body["status"] == answer.status_code
        assert len(answer.content) < 16_384
    return answer.status_code


# --- tensors


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model y = x for every datatype, with rows of any width."""
    folder = tmp_path_factory.mktemp("identities")
    for name, element in ELEMENTS.items():
        model(folder, name, identity(element))
    return folder


@pytest.fixture
async def tensors(identities: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with running(identities, tasks={"nothing": Nothing}) as client:
        yield client


DATATYPES = st.sampled_from([*ELEMENTS, "FP128", "fp32", ""]) | ANYTHING
SHAPES = st.lists(st.integers(-1, 4) | st.sampled_from([2**31, 2**62, 2**63, 10**30]), max_size=4) | ANYTHING
PARAMETERS = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "classification", "shared_memory_region", "sequence_id", "x"]),
    st.integers(-1, 64) | ANYTHING,
    max_size=2,
)
INPUTS = st.fixed_dictionaries(
    {"name": st.just("x") | ANYTHING, "shape": SHAPES, "datatype": DATATYPES},
    optional={"data": st.lists(SCALARS, max_size=12) | ANYTHING, "parameters": PARAMETERS | ANYTHING},
)
MESSAGES = st.fixed_dictionaries(
    {"inputs": st.lists(INPUTS, max_size=2) | ANYTHING},
    optional={
        "id": ANYTHING,
        "outputs": st.lists(
            st.fixed_dictionaries({"name": st.just("y") | ANYTHING}, optional={"parameters": PARAMETERS})
        ),
        "parameters": PARAMETERS,
    },
)


@drawn
@given(datatype=st.sampled_from([*ELEMENTS]), message=MESSAGES)
async def test_any_message_of_tensors_is_answered_or_refused(
    tensors: httpx.AsyncClient, datatype: str, message: Any
) -> None:
    told(await tensors.post(f"/v2/models/{datatype}/infer", content=json.dumps(message)), below_v2=True)


@drawn
@given(
    datatype=st.sampled_from([*ELEMENTS]),
    shape=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    size=st.integers(0, 80),
    tail=st.binary(max_size=80),
    length=st.none() | st.integers(-1, 300) | st.text(string.printable.strip(), max_size=5),
    outputs=PARAMETERS,
)
async def test_any_binary_tensor_is_answered_or_refused(
    tensors: httpx.AsyncClient, datatype: str, shape: list[int], size: int, tail: bytes, length: Any, outputs: Any
) -> None:
    entry = {"name": "x", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [entry], "outputs": [{"name": "y", "parameters": outputs}]}).encode()
    headers = {LENGTH: str(len(head) if length is None else length)}
    told(await tensors.post(f"/v2/models/{datatype}/infer", content=head + tail, headers=headers), below_v2=True)


@drawn
@given(datatype=st.sampled_from([*ELEMENTS]), values=st.lists(SCALARS, min_size=1, max_size=6))
async def test_any_values_of_a_datatype_are_answered_or_refused(
    tensors: httpx.AsyncClient, datatype: str, values: list[Any]
) -> None:
    entry = {"name": "x", "shape": [1, len(values)], "datatype": datatype, "data": values}
    told(await tensors.post(f"/v2/models/{datatype}/infer", content=json.dumps({"inputs": [entry]})), below_v2=True)


# --- states


@pytest.fixture
async def tasks(models: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Every task with a tiny model."""
    graphs.words_model(models)
    async with running(models) as client:
        yield client


FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
SHAPED = st.lists(FLOATS, min_size=1, max_size=3).map(lambda values: np.array(values, np.float32))
EXTRA = st.dictionaries(
    st.sampled_from(["grid", "pending", "place", "last", "x"]),
    st.none() | st.text(max_size=10) | st.integers(-(2**63), 2**63 - 1) | st.lists(st.integers(-5, 2**40), max_size=4),
    max_size=3,
)


@drawn
@given(
    name=st.sampled_from(["state", "other"]), array=SHAPED, extra=EXTRA, values=st.lists(FLOATS | st.none(), max_size=3)
)
async def test_a_forged_state_of_a_series_is_answered_or_refused(
    tasks: httpx.AsyncClient, name: str, array: np.ndarray, extra: Any, values: Any
) -> None:
    token = pack("steps", "1", State({name: array}, extra))
    told(await tasks.post(SERIES, json={"values": [1.0, *values], "timestamps": None, "state": token}))
    stamps = list(range(len(values) + 1))
    told(await tasks.post(SERIES, json={"values": [1.0, *values], "timestamps": stamps, "state": token}))


@drawn
@given(name=st.sampled_from(["state", "other"]), array=SHAPED, extra=EXTRA, typed=st.text(max_size=6))
async def test_a_forged_state_of_a_text_is_answered_or_refused(
    tasks: httpx.AsyncClient, name: str, array: np.ndarray, extra: Any, typed: str
) -> None:
    token = pack("words", "1", State({name: array}, extra))
    told(await tasks.post(WORDS, json={"text": typed, "state": token, "explain": True, "words": 2}))


@drawn
@given(place=st.integers(0, 200), instead=st.text(max_size=4))
async def test_a_mutated_state_is_refused(tasks: httpx.AsyncClient, place: int, instead: str) -> None:
    token = (await tasks.post(SERIES, json={"values": [1.0, 2.0]})).json()["state"]
    place %= len(token)
    mutated = token[:place] + instead + token[place + 1 :]
    status = told(await tasks.post(SERIES, json={"values": [1.0], "state": mutated}))
    assert status == (200 if mutated in (token, "") else 422)


# --- pictures

SPECIMENS = {
    form: graphs.png((9, 99, 199), (24, 17), form) for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
}


@pytest.mark.parametrize("form", SPECIMENS)
@settings(drawn, max_examples=60)
@given(
    place=st.floats(0, 1, exclude_max=True),
    instead=st.binary(max_size=12),
    removed=st.integers(0, 12),
    cut=st.floats(0.3, 1),
)
async def test_a_mutated_picture_is_answered_or_refused(
    tasks: httpx.AsyncClient, form: str, place: float, instead: bytes, removed: int, cut: float
) -> None:
    whole = SPECIMENS[form]
    at = int(place * len(whole))
    mutated = (whole[:at] + instead + whole[at + removed :])[: max(1, int(cut * len(whole)))]
    told(await tasks.post(IMAGES, content=mutated, headers={"Content-Type": f"image/{form.lower()}"}))
    told(await tasks.post(IMAGES, files={"file": mutated}))
    url = f"data:image/{form.lower()};base64,".encode() + base64.b64encode(mutated)
    told(await tasks.post(IMAGES, content=url, headers={"Content-Type": "text/plain"}))


# --- JSON


@drawn
@given(
    path=st.sampled_from([SERIES, WORDS]),
    fields=st.dictionaries(
        st.sampled_from(
            [
                "values",
                "timestamps",
                "sensitivity",
                "state",
                "model",
                "text",
                "top_k",
                "complete",
                "words",
                "explain",
                "x",
            ]
        ),
        ANYTHING,
        max_size=5,
    ),
)
async def test_any_fields_are_answered_or_refused(tasks: httpx.AsyncClient, path: str, fields: Any) -> None:
    told(await tasks.post(path, content=json.dumps(fields)))


@drawn
@given(path=st.sampled_from([IMAGES, SERIES, WORDS]), body=st.binary(max_size=40), kind=st.text(max_size=20))
async def test_any_bytes_of_any_type_are_answered_or_refused(
    tasks: httpx.AsyncClient, path: str, body: bytes, kind: str
) -> None:
    told(await tasks.post(path, content=body, headers={"Content-Type": kind.encode()}))


# --- manifests

KEYS = st.sampled_from(
    [
        "task", "description", "architecture", "licence", "required", "default_version", "labels", "preprocessing",
        "preprocessing.resize", "preprocessing.mean", "preprocessing.std", "batching", "batching.max_batch_size", "calibration",
        "metrics", "metrics.accuracy", "inputs", "inputs.image", "limits", "x", "preprocessing.size", "output",
    ]
)  # fmt: skip
VALUES = st.sampled_from(
    [
        "true", "-1", "0", "10000000000000000000000", "nan", "inf", "1e400", '""', '"a"', '"../../etc"', '"\\u0000"', "[]", "[1]", "[[1]]",
        "{}", "{a = 1}", "1979-05-27", "1979-05-27T07:32:00Z", "07:32:00", '"image-classification"', "[0.1, 0.2, 0.3]", "[0, 0, 0]", "[nan]",
    ]
)  # fmt: skip
LINES = (
    st.builds("{} = {}".format, KEYS, VALUES)
    | st.text(max_size=12)
    | st.sampled_from(["[", "[preprocessing]", "[[x]]"])
)


@settings(drawn, max_examples=50, suppress_health_check=list(HealthCheck))
@given(lines=st.lists(LINES, min_size=1, max_size=4), with_task=st.booleans(), of_the_version=st.booleans())
def test_any_manifest_is_served_or_explained(
    two_models: Path, lines: list[str], with_task: bool, of_the_version: bool
) -> None:
    folder = two_models / "drawn"
    text = "\n".join(['task = "image-classification"', *lines] if with_task or of_the_version else lines)
    plain = 'task = "image-classification"\n'
    (folder / "manifest.toml").write_text(plain if of_the_version else text, "utf-8", "surrogatepass")
    (folder / "1" / "manifest.toml").unlink(missing_ok=True)
    if of_the_version:
        (folder / "1" / "manifest.toml").write_text("\n".join(lines), "utf-8", "surrogatepass")
    registry = Registry(two_models)
    registry.load()
    assert registry.get("colours").is_ready
    found = registry.get("drawn")
    event("served" if found.is_ready else "explained")
    reasons = [version.reason for version in found.versions.values() if version.state == "failed"]
    for reason in filter(None, (found.problem, *reasons)):
        assert str(two_models) not in reason
        assert "the server's log has the cause" not in reason  # which is said of what nobody has thought of


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    graphs.colour_model(models)
    graphs.colour_model(models, "drawn")
    return models
