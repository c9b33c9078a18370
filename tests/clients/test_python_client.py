"""A client made by openapi-python-client calls every endpoint, and its answers are typed objects.

Which operations there are, and what to send to each, is read from the document: a new endpoint is called as well.
"""

from __future__ import annotations

import importlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, get_args, get_type_hints

import attrs
import numpy as np
import pytest

from tests.api.test_openapi import operations
from tests.clients.conftest import MODELS, sample_file
from tests.test_server import Server

PACKAGE = "gridloop_client"
CAT = (MODELS / "cifar10-cnn/1/golden/cat.png").read_bytes()
SHIP = (MODELS / "cifar10-cnn/1/golden/ship.png").read_bytes()


class Generated:
    """The generated package, and a client of the running server."""

    def __init__(self, server: Server) -> None:
        self.client = self.module("client").Client(base_url=server.url)
        self.types, self.models = self.module("types"), self.module("models")

    def module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{PACKAGE}.{name}")

    def operation(self, tag: str, name: str) -> ModuleType:
        return self.module(f"api.{tag.replace(' ', '_')}.{name}")

    def file(self, data: bytes, name: str | None = None, kind: str | None = None) -> Any:
        return self.types.File(payload=io.BytesIO(data), file_name=name, mime_type=kind)


@pytest.fixture(scope="module")
def generated(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generated]:
    """As a user would: from the address of the document. A warning would be an endpoint that is left out."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "config.json").write_text('{"post_hooks": []}')
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning", "--meta=none"]
    options = [f"--url={server.url}/openapi.json", f"--config={folder / 'config.json'}"]
    made = subprocess.run(
        [*command, *options, f"--output-path={folder / PACKAGE}"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    sys.path.insert(0, str(folder))
    package = Generated(server)
    try:
        with package.client:
            yield package
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]


def bodies(generated: Generated, call: Any, operation: dict[str, Any]) -> Iterator[Any]:
    """A body of the generated types for every way in which an operation can be called; None where it has none."""
    if "requestBody" not in operation:
        yield None
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        if kind == "application/json":
            schema = getattr(generated.models, content["schema"]["$ref"].rpartition("/")[2])
            yield from (schema.from_dict(example["value"]) for example in content["examples"].values())
        elif kind == "multipart/form-data":
            media, data = sample_file(operation)
            (form,) = (part for part in get_args(get_type_hints(call)["body"]) if hasattr(part, "to_multipart"))
            for count in (1, 2):
                yield form(file=[generated.file(data, f"{n}.file", media) for n in range(count)])
        elif "multipart/form-data" in operation["requestBody"]["content"]:
            yield generated.file(sample_file(operation)[1])


CHANGING = ("load", "unload")
"""Operations that change what is served, and so have a test of their own."""
OPERATIONS = [
    (operation["operationId"], path, verb)
    for path, verb, operation in operations()
    if operation["operationId"] not in CHANGING
]


def test_a_model_is_unloaded_and_loaded_again(generated: Generated) -> None:
    tags = {op["operationId"]: op["tags"][0] for _, _, op in operations()}
    for name, is_ready in (("unload", False), ("load", True)):
        call = generated.operation(tags[name], name).sync_detailed
        answer = call(client=generated.client, model_name="folk-gru")
        assert (answer.status_code, answer.content) == (200, b"")
        ready = generated.client.get_httpx_client().get("/v2/models/folk-gru/ready")
        assert (ready.status_code == 200) is is_ready


@pytest.mark.parametrize(("name", "path", "verb"), OPERATIONS, ids=[name for name, _, _ in OPERATIONS])
def test_every_operation_answers_with_the_type_that_the_document_names(
    generated: Generated, document: dict[str, Any], name: str, path: str, verb: str
) -> None:
    """Nothing of the answer is lost, and nothing of it is undocumented."""
    operation = document["paths"][path][verb]
    call = generated.operation(operation["tags"][0], name).sync_detailed
    places = {p["name"]: p["schema"]["examples"][0] for p in operation.get("parameters", []) if p["in"] == "path"}
    (expected,) = list(operation["responses"]["200"]["content"].values())[:1]
    for body in bodies(generated, call, operation):
        answer = call(client=generated.client, **places, **({"body": body} if body is not None else {}))
        assert answer.status_code == 200, answer.content
        if "$ref" in expected["schema"]:
            assert type(answer.parsed).__name__ == expected["schema"]["$ref"].rpartition("/")[2]
            assert answer.parsed.to_dict() == json.loads(answer.content)
            assert list(undocumented(answer.parsed)) == []
        elif expected["schema"].get("type") == "array":
            kind = expected["schema"]["items"]["$ref"].rpartition("/")[2]
            assert {type(item).__name__ for item in answer.parsed} == {kind}
            assert [item.to_dict() for item in answer.parsed] == json.loads(answer.content)
            assert list(undocumented(answer.parsed)) == []
        else:
            assert answer.parsed == answer.content.decode()


def undocumented(value: Any) -> Iterator[str]:
    """Fields of an answer that its generated type does not know; types without any fields are dictionaries."""
    if isinstance(value, list):
        for item in value:
            yield from undocumented(item)
    elif attrs.has(type(value)):
        own = {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}
        if more := own.pop("additional_properties", {}):
            yield from (f"{type(value).__name__}.{name}" for name in more if own)
        for part in own.values():
            yield from undocumented(part)


# --- what the answers say


def test_a_text_is_continued(generated: Generated) -> None:
    call = generated.operation("tasks", "next_word_prediction").sync
    answer = call(client=generated.client, body=generated.models.NextWordInput(text="How are", top_k=3))
    assert [type(word).__name__ for word in answer.predictions] == ["WordPrediction"] * 3
    assert answer.predictions[0].text == "you"
    assert answer.predictions[0].score > 0.5
    assert (answer.model.name, answer.completing) == ("english-lstm", None)


def test_pictures_are_labelled_one_several_or_raw(generated: Generated) -> None:
    call = generated.operation("tasks", "image_classification").sync
    form, file = generated.models.ImageClassificationFilesBody, generated.file
    several = call(
        client=generated.client,
        body=form(file=[file(CAT, "cat.png", "image/png"), file(SHIP, "ship.png", "image/png")]),
        top_k=2,
        explain=True,
    )
    assert [result.filename for result in several.results] == ["cat.png", "ship.png"]
    assert [result.predictions[0].label for result in several.results] == ["cat", "ship"]
    assert [len(result.predictions) for result in several.results] == [2, 2]
    assert type(several.results[0].predictions[0]).__name__ == "LabelPrediction"
    assert several.results[1].heatmap.label == "ship"
    raw = call(client=generated.client, body=file(SHIP), model="cifar10-cnn@1")
    assert (raw.model.version, raw.results[0].predictions[0].label) == ("1", "ship")
    assert raw.results[0].filename is None


def test_a_stream_goes_on_with_the_state_of_the_answer_before(generated: Generated) -> None:
    call, ask = generated.operation("tasks", "anomaly_detection").sync, generated.models.AnomalyDetectionInput
    values = [10.1, 10.3, 9.9, 10.2, None, 10.0, 9.8, 10.1, 10.2, 9.9, 10.0, 10.1, 25.0, 10.0]
    whole = call(client=generated.client, body=ask(values=values))
    first = call(client=generated.client, body=ask(values=values[:10]))
    rest = call(client=generated.client, body=ask(values=values[10:], state=first.state))
    assert 12 in whole.anomalies
    assert rest.is_anomaly == whole.is_anomaly[10:]
    assert first.scores + rest.scores == pytest.approx(whole.scores, abs=1e-5)


def test_tensors_go_as_numbers_and_as_bytes(generated: Generated) -> None:
    call, models = generated.operation("open inference protocol", "infer").sync, generated.models
    values = np.array([[1.0, 2.0, 3.0, 4.0]])
    described = {"name": "values", "shape": [1, 4], "datatype": "FP64"}
    plain = models.InferenceRequest.from_dict({"inputs": [{**described, "data": values.tolist()}]})
    numbers = call(client=generated.client, model_name="series-gru", body=plain)
    head = json.dumps({"inputs": [{**described, "parameters": {"binary_data_size": values.nbytes}}]}).encode()
    binary = call(
        client=generated.client,
        model_name="series-gru",
        body=generated.file(head + values.tobytes()),
        inference_header_content_length=len(head),
    )
    assert (numbers.model_name, numbers.model_version) == ("series-gru", "2")
    expected = next(tensor for tensor in numbers.outputs if tensor.name == "expected")
    assert (expected.shape, expected.datatype) == ([1, 4], "FP64")
    assert [tensor.to_dict() for tensor in numbers.outputs] == [tensor.to_dict() for tensor in binary.outputs]


def test_models_say_what_they_take(generated: Generated) -> None:
    listed = generated.operation("models", "list_models").sync(client=generated.client)
    assert {model.name for model in listed.models} >= {"cifar10-cnn", "english-lstm", "series-gru"}
    one = generated.operation("models", "get_model").sync("series-gru", client=generated.client)
    assert (one.task, one.versions[0].state) == ("anomaly-detection", "ready")
    assert one.card.startswith("# ")
    tensors = generated.operation("open inference protocol", "model_metadata").sync(
        "series-gru", client=generated.client
    )
    assert next(tensor.datatype for tensor in tensors.inputs if tensor.name == "values") == "FP64"


def test_probes_and_metrics_are_typed(generated: Generated) -> None:
    ask = lambda name: generated.operation("operations", name).sync(client=generated.client)  # noqa: E731
    assert (ask("livez").status, ask("readyz").status) == ("alive", "ready")
    assert re.search(r"^gridloop_requests_total", ask("metrics"), re.MULTILINE)


def test_an_error_is_a_typed_object_too(generated: Generated) -> None:
    body = generated.models.NextWordInput(text="How are", top_k=0)
    refused = generated.operation("tasks", "next_word_prediction").sync_detailed(client=generated.client, body=body)
    assert (refused.status_code, type(refused.parsed).__name__) == (422, "Problem")
    assert refused.parsed.errors[0].loc == ["body", "top_k"]
    unknown = generated.operation("models", "get_model").sync("nobody", client=generated.client)
    assert (unknown.status, unknown.type_) == (404, "/problems/model-not-found")
    protocol = generated.operation("open inference protocol", "model_ready").sync("nobody", client=generated.client)
    assert "nobody" in protocol.error


def test_the_documented_client_prints_what_the_page_shows(
    server: Server, generated: Generated, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(MODELS.parent)
    page = (MODELS.parent / "docs" / "clients.md").read_text()
    (code,), (output,) = (
        re.findall(r"```python\n(.*?)```", page, re.DOTALL),
        re.findall(r"```text\n(.*?)```", page, re.DOTALL),
    )
    assert "http://127.0.0.1:8000" in code
    exec(code.replace("http://127.0.0.1:8000", server.url), {})
    assert capsys.readouterr().out == output
