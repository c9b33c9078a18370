"""Two ways to a model: in this process, through the task and the runtime that serve requests; or through HTTP.

Both take the same questions and give the same answers: what a task answers has been JSON on either way, and tensors are
exact on either way. `hold` keeps a few conversations going at a time.
"""

from __future__ import annotations

import asyncio
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import orjson
from pydantic import ValidationError

from service.api.open_inference.datatypes import DATATYPES
from service.api.tasks import MODEL_HEADER
from service.client.http import AnswerParser, HttpAnswer, Server, detail
from service.client.samples import BOUNDARY
from service.errors import ServiceError, as_sentence
from service.evaluation.base import Answer, Ask, Conversation, EvaluationFailed, Infer, Item, Question, Subject
from service.graph import Array, Run, Steps
from service.registry.handle import ModelHandle
from service.tasks.base import MediaAnswer, TaskInput, Upload

PATIENCE_S = 300.0
"""Time for one answer, on a machine that may be busy (seconds)."""

CONVERSATIONS = 32
"""Held at a time in process: as many as fit into a batch (count)."""

CONNECTIONS = 16
"""Kept alive through HTTP, with one request on each: enough to keep a server of a few cores busy (count)."""

MAX_QUERY_CHARS = 4096
"""Longer fields, such as the state of a stream of sound, are sent in a form with the file (characters)."""


class Refused(EvaluationFailed):
    """A question got no answer."""


class Transport(Protocol):
    """A way to a model."""

    conversations: int

    async def ask(self, question: Question) -> Answer:
        """The answer to a question.

        Raises:
            Refused: there is none.
        """

    async def close(self) -> None:
        """Let go of what was opened."""


# ----------------------------------------------------------------------------------------------------------- in process


class InProcess:
    """The handle that a server would have: task, batcher and session, without HTTP.

    Args:
        handle: the loaded model.
    """

    conversations = CONVERSATIONS

    def __init__(self, handle: ModelHandle) -> None:
        self._handle = handle

    async def ask(self, question: Question) -> Answer:
        try:
            if isinstance(question, Infer):
                run = Run(question.tensors, question.outputs)
                return (await self._handle.batcher.submit(_one(run), rows=run.rows, timeout_s=PATIENCE_S)).value
            request = task_request(self._handle, question)
            value = (await self._handle.predict(request, timeout_s=PATIENCE_S)).value
        except (ServiceError, ValidationError) as error:
            raise Refused(as_sentence(error)) from error
        return as_answer(value)

    async def close(self) -> None:
        await asyncio.to_thread(self._handle.close, 10.0)


def as_answer(value: bytes | MediaAnswer) -> Answer:
    """What a task has answered, JSON as its bytes, as an evaluation gets it."""
    if isinstance(value, MediaAnswer):
        return _media(value.model.model_dump(), value.content_type, value.data)
    answer: Answer = orjson.loads(value)
    return answer


def _media(model: Mapping[str, Any], content_type: str, data: bytes) -> Answer:
    """An answer that is no JSON, as an evaluation gets it."""
    return {"model": model, "content_type": content_type, "data": data}


def _one(run: Run) -> Steps[Mapping[str, Array]]:
    outputs = yield run
    return outputs


def task_request(handle: ModelHandle, question: Ask) -> TaskInput:
    """A question as the task's request type."""
    files = {} if question.file is None else {"files": (Upload(question.file),)}
    return handle.task.Input.model_validate({**question.fields, **files})


# --------------------------------------------------------------------------------------------------------- through HTTP


class Http:
    """A running server, asked over a few kept-alive connections; no proxy, no redirect.

    Args:
        server: its address and key.
        subject: the model that must answer.
    """

    conversations = CONNECTIONS

    def __init__(self, server: Server, subject: Subject) -> None:
        self._server, self._subject = server, subject
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, question: Question) -> Answer:
        is_infer = isinstance(question, Infer)
        wire = self._infer_request(question) if isinstance(question, Infer) else self._task_request(question)
        answer = await self._send(wire)
        if answer.status != 200:
            raise Refused(f"the server answered {answer.status}: {detail(answer.body)}")
        content_type = _header(answer, "content-type")
        if content_type.partition(";")[0] == "application/json":
            body: Answer = orjson.loads(answer.body)
        else:
            name, _, version = _header(answer, MODEL_HEADER).partition("@")
            body = _media({"name": name, "version": version}, content_type, answer.body)
        if is_infer:
            return {tensor["name"]: _array(tensor) for tensor in body["outputs"]}
        told = body.get("model", {})
        if (told.get("name"), told.get("version")) != (self._subject.name, self._subject.version):
            raise Refused(f"another model answered: {told.get('name')}@{told.get('version')}")
        return body

    async def _send(self, wire: bytes) -> HttpAnswer:
        """Write a request and read its answer; once again where a kept-alive connection has meanwhile been closed."""
        kept = bool(self._idle)
        try:
            reader, writer = self._idle.pop() if kept else await self._connect()
        except OSError as error:
            raise Refused(f"the server takes no connection: {error.strerror or error}") from error
        parser = AnswerParser()
        answer: HttpAnswer | None = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                writer.write(wire)
                await writer.drain()
                while answer is None:
                    data = await reader.read(1 << 18)
                    if not data:
                        raise ConnectionResetError("the server closed the connection")
                    answer = parser.feed(data)
        except TimeoutError:
            writer.close()
            raise Refused(f"the server did not answer within {PATIENCE_S:g} s") from None
        except OSError as error:
            writer.close()
            if kept:
                return await self._send(wire)
            raise Refused(f"the connection was lost: {error}") from error
        except ValueError as error:
            writer.close()
            raise Refused(f"the server does not speak HTTP as it should: {error}") from error
        if answer.closes:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return answer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await self._server.address.open_streams()

    def _task_request(self, question: Ask) -> bytes:
        target, model = f"/v1/{self._subject.task}", f"{self._subject.name}@{self._subject.version}"
        if question.file is None:
            return self._wire(target, "application/json", orjson.dumps({**question.fields, "model": model}))
        shown = {k: str(v).lower() if isinstance(v, bool) else v for k, v in question.fields.items() if v is not None}
        shown["model"] = model
        query = urllib.parse.urlencode(shown)
        if len(query) <= MAX_QUERY_CHARS:
            return self._wire(f"{target}?{query}", "application/octet-stream", question.file)
        parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in shown.items()]
        parts.append(b'name="file"\r\n\r\n' + question.file)
        lead = f"--{BOUNDARY}\r\nContent-Disposition: form-data; ".encode()
        body = b"".join(lead + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--\r\n".encode()
        return self._wire(target, f"multipart/form-data; boundary={BOUNDARY}", body)

    def _infer_request(self, question: Infer) -> bytes:
        inputs = [
            {
                "name": name,
                "shape": array.shape,
                "datatype": DATATYPES[str(array.dtype)].name,
                "data": np.ascontiguousarray(array).reshape(-1),
            }
            for name, array in question.tensors.items()
        ]
        body = {"inputs": inputs, "outputs": [{"name": name} for name in question.outputs]}
        target = f"/v2/models/{self._subject.name}/versions/{self._subject.version}/infer"
        return self._wire(target, "application/json", orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY))

    def _wire(self, target: str, content_type: str, body: bytes) -> bytes:
        return self._server.request(target, content_type, body, {"X-Request-Timeout": f"{PATIENCE_S:g}"})

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()


def _header(answer: HttpAnswer, name: str) -> str:
    """One header of an answer; empty where it has none of that name."""
    found = re.search(rf"\r\n{name}:[ \t]*([^\r]*)".encode(), answer.head, re.IGNORECASE)
    return found[1].decode("latin-1").strip() if found else ""


_DTYPES = {datatype.name: datatype.dtype for datatype in DATATYPES.values()}


def _array(tensor: Mapping[str, Any]) -> Array:
    """A tensor of an answer, exact: its numbers were written with as many digits as its type needs."""
    return np.array(tensor["data"], _DTYPES[tensor["datatype"]]).reshape(tensor["shape"])


# -------------------------------------------------------------------------------------------------------- conversations


async def hold(items: Sequence[Item], transport: Transport, advance: Callable[[int], None]) -> list[Any]:
    """Hold all conversations, a few at a time.

    Args:
        items: in any number; their data are read when their turn comes.
        transport: which way.
        advance: told how many questions were answered.

    Returns:
        The record of each item, in their order.

    Raises:
        Refused: a question got no answer; the message names the item.
    """
    records: list[Any] = [None] * len(items)
    turn = iter(range(len(items)))

    async def hold_some() -> None:
        for place in turn:
            records[place] = await _converse(items[place], transport, advance)

    tasks = [asyncio.create_task(hold_some()) for _ in range(min(transport.conversations, len(items)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await transport.close()
    return records


async def _converse(item: Item, transport: Transport, advance: Callable[[int], None]) -> Any:
    conversation: Conversation = item.talk()
    asked = 0
    try:
        question = next(conversation)
        while True:
            try:
                answer = await transport.ask(question)
            except Refused as error:
                raise Refused(f"{item.name}: {error}") from error
            asked += 1
            if asked <= item.questions:
                advance(1)
            question = conversation.send(answer)
    except StopIteration as stop:
        advance(max(0, item.questions - asked))
        return stop.value
    finally:
        conversation.close()
