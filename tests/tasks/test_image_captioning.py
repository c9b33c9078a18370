"""From a picture to sentences: a decoder whose best sentences are known by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper
from PIL import Image

from service.errors import InferenceFailed, InvalidInput
from service.registry.handle import LoadOptions, ModelHandle
from service.registry.loading import load_version
from service.registry.manifest import read_manifest
from service.registry.registry import Registry
from service.tasks.base import Upload
from service.tasks.image_captioning import MOST_ROWS, Caption, ImageCaptioning, ImageCaptioningInput
from service.tasks.terminal import Table
from tests import graphs
from tests.conftest import running
from tests.parts import told

VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "a", "dog", "cat", "runs", "Dog"]
A, DOG, CAT, RUNS, OTHER_DOG = range(4, 9)
NEVER = -30.0

RED, BLUE = (255, 0, 0), (0, 0, 255)


def table() -> np.ndarray:
    """Logarithms of the probabilities (tokens, tokens) of what follows each token.

    `a` begins; then dog or cat by what the picture shows, 0.8 to 0.2; then `runs`, or 1 in 20 the end; then the end.
    """
    logs = np.full((9, 9), NEVER, np.float32)
    logs[1, A] = 0
    logs[A, [DOG, CAT]] = np.log(0.5)
    logs[DOG, [RUNS, 2]] = logs[CAT, [RUNS, 2]] = np.log([0.95, 0.05])
    logs[RUNS, 2] = 0
    return logs


def encoder(path: Path) -> Path:
    """The first state, (batch, 1), is the mean red of a picture of 2x2; `features` (batch, 1, 2, 2) its red pixels."""
    make = helper.make_node
    return graphs.save(
        path,
        [
            make("Cast", ["image"], ["numbers"], to=T.FLOAT),
            make("Div", ["numbers", "most"], ["colours"]),
            make("Slice", ["colours", "zero", "one", "last"], ["red"]),
            make("Transpose", ["red"], ["features"], perm=[0, 3, 1, 2]),
            make("ReduceMean", ["features"], ["mean"], axes=[2, 3], keepdims=0),
            make("Identity", ["mean"], ["state"]),
        ],
        [("image", T.UINT8, ["batch", 2, 2, 3])],
        [("state", T.FLOAT, ["batch", 1]), ("features", T.FLOAT, ["batch", 1, 2, 2])],
        {"most": np.float32(255), "zero": np.array([0]), "one": np.array([1]), "last": np.array([3])},
    )


def decoder(path: Path, logs: np.ndarray, *, looks: bool = True) -> Path:
    """Logits are a row of the table, and of red pictures dog and cat get what makes 0.5 and 0.5 to 0.8 and 0.2."""
    make = helper.make_node
    nodes = [
        make("Gather", ["table", "token"], ["row"]),
        make("Mul", ["state", "liking"], ["likes"]),
        make("Add", ["row", "likes"], ["logits"]),
        make("Identity", ["state"], ["next_state"]),
    ]
    outputs = [("logits", T.FLOAT, ["batch", 9]), ("next_state", T.FLOAT, ["batch", 1])]
    if looks:
        nodes.append(make("Squeeze", ["features", "axis"], ["attention"]))
        outputs.append(("attention", T.FLOAT, ["batch", 2, 2]))
    liking = np.zeros((1, 9), np.float32)
    liking[0, [DOG, CAT]] = np.log([1.6, 0.4])
    return graphs.save(
        path,
        nodes,
        [
            ("token", T.INT64, ["batch"]),
            ("state", T.FLOAT, ["batch", 1]),
            ("features", T.FLOAT, ["batch", 1, 2, 2]),
        ],
        outputs,
        {"table": logs.astype(np.float32), "liking": liking, **({"axis": np.array([1])} if looks else {})},
    )


def write(
    models: Path, logs: np.ndarray | None = None, *, looks: bool = True, vocabulary: Any = VOCABULARY, **manifest: Any
) -> Path:
    """A captioner's folder."""
    folder = graphs.write_model(
        models / "teller",
        task="image-captioning",
        graph=lambda path: encoder(path.with_name("encoder.onnx")),
        **manifest,
    )
    decoder(folder / "1" / "decoder.onnx", table() if logs is None else logs, looks=looks)
    (folder / "1" / "vocabulary.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "card.md").write_text("# Teller\n\nTells of dogs and cats.\n")
    return folder


def load(folder: Path) -> ModelHandle:
    return load_version(folder / "1", read_manifest(folder), ImageCaptioning, LoadOptions())


@pytest.fixture
def teller(tmp_path: Path) -> Iterator[ModelHandle]:
    handle = load(write(tmp_path))
    yield handle
    assert handle.close(10)


def ask(handle: ModelHandle, *colours: tuple[int, int, int], **fields: Any) -> list[dict[str, Any]]:
    """The results for pictures of one colour each."""
    files = tuple(Upload(graphs.png(colour), filename=f"{place}.png") for place, colour in enumerate(colours))
    answer = handle.predict_now(ImageCaptioningInput(files=files, **fields))
    results: list[dict[str, Any]] = json.loads(answer.to_json())["results"]
    return results


def texts(result: dict[str, Any]) -> list[str]:
    return [caption["text"] for caption in result["captions"]]


# ------------------------------------------------------------------------------------------------------------- captions


def test_the_best_sentence_and_its_score_by_mental_arithmetic(teller: ModelHandle) -> None:
    """1 · 0.8 · 0.95, and three words: the cube root of 0.76. The end does not count."""
    (result,) = ask(teller, RED)
    assert texts(result) == ["a dog runs"]
    assert result["captions"][0]["score"] == pytest.approx(0.76 ** (1 / 3), abs=1e-4)
    assert (result["filename"], result["width"], result["height"]) == ("0.png", 2, 2)
    assert "words" not in result["captions"][0]


def test_captions_come_best_first_and_no_two_are_the_same(teller: ModelHandle) -> None:
    (result,) = ask(teller, RED, captions=4)
    scores = {"a dog runs": 0.76 ** (1 / 3), "a dog": 0.8**0.5, "a cat runs": 0.19 ** (1 / 3), "a cat": 0.2**0.5}
    assert texts(result) == sorted(scores, key=lambda text: -scores[text])
    found = {caption["text"]: caption["score"] for caption in result["captions"]}
    assert found == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize(("beams", "captions"), [(1, 4), (4, 4), (4, 1), (2, 4)])
def test_the_search_keeps_as_many_as_beams_or_captions(teller: ModelHandle, beams: int, captions: int) -> None:
    (wide,) = ask(teller, RED, beams=4, captions=4)
    (result,) = ask(teller, RED, beams=beams, captions=captions)
    assert texts(result) == texts(wide)[:captions]


def test_captions_that_differ_in_case_alone_are_the_same(tmp_path: Path) -> None:
    logs = table()
    logs[A, OTHER_DOG] = np.log(0.7)
    logs[OTHER_DOG] = logs[DOG]
    (result,) = ask(load(write(tmp_path, logs)), BLUE, captions=4)
    assert len({text.casefold() for text in texts(result)}) == len(texts(result)) == 4


def test_a_caption_has_two_words_at_least(tmp_path: Path) -> None:
    logs = table()
    logs[A, 2] = 20
    (result,) = ask(load(write(tmp_path, logs)), RED)
    assert len(result["captions"][0]["text"].split()) >= 2


@pytest.mark.parametrize(("manifest", "words"), [({}, 40), ({"most_words": 5}, 5)])
def test_a_caption_that_never_ends_is_broken_off(tmp_path: Path, manifest: Any, words: int) -> None:
    logs = np.full((9, 9), NEVER, np.float32)
    logs[:, A] = 0
    (result,) = ask(load(write(tmp_path, logs, **manifest)), RED)
    assert result["captions"][0]["text"] == " ".join(["a"] * words)


def test_control_tokens_and_the_unknown_word_are_never_said(tmp_path: Path) -> None:
    logs = table()
    logs[:, [0, 1, 3]] = 50
    for caption in ask(load(write(tmp_path, logs)), RED, captions=4)[0]["captions"]:
        assert "<" not in caption["text"]


def test_pictures_sent_together_get_what_each_gets_alone(teller: ModelHandle) -> None:
    red, blue = ask(teller, RED, BLUE, captions=3)
    assert ask(teller, RED, captions=3)[0]["captions"] == red["captions"]
    assert ask(teller, BLUE, captions=3)[0]["captions"] == blue["captions"]
    assert red["captions"] != blue["captions"]


def test_many_pictures_are_searched_a_slice_at_a_time(teller: ModelHandle) -> None:
    results = ask(teller, *[RED, BLUE] * 12, beams=20)
    assert [texts(result) for result in results] == [texts(result) for result in results[:2]] * 12


def test_a_request_needs_no_more_rows_at_once_than_step_together() -> None:
    files = tuple(Upload(graphs.png(RED)) for _ in range(1000))
    assert ImageCaptioningInput(files=files[:3], beams=4, captions=5).rows == 15
    assert ImageCaptioningInput(files=files, beams=20).rows == MOST_ROWS


def test_a_picture_that_cannot_be_used_does_not_lose_the_others(teller: ModelHandle) -> None:
    files = (Upload(graphs.png(RED)), Upload(b"no picture"))
    answer = json.loads(teller.predict_now(ImageCaptioningInput(files=files)).to_json())
    assert texts(answer["results"][0]) == ["a dog runs"]
    assert "error" in answer["results"][1]


# ---------------------------------------------------------------------------------------------------------- explanation


def test_words_are_the_text_and_their_probabilities_the_score(teller: ModelHandle) -> None:
    (result,) = ask(teller, RED, captions=3, explain=True)
    for caption in result["captions"]:
        assert " ".join(word["word"] for word in caption["words"]) == caption["text"]
        product = np.prod([word["probability"] for word in caption["words"]])
        assert caption["score"] == pytest.approx(product ** (1 / len(caption["words"])), abs=1e-5)


def test_heatmaps_show_where_the_model_looked_in_the_picture_as_it_was_sent(teller: ModelHandle) -> None:
    """The left half is red, and the picture twice as wide as high."""
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8, 0] = 255
    files = (Upload(encoded(pixels)),)
    answer = json.loads(teller.predict_now(ImageCaptioningInput(files=files, explain=True)).to_json())
    for word in answer["results"][0]["captions"][0]["words"]:
        values = np.array(word["heatmap"]["values"])
        assert values.shape == (8, 16)
        assert (values[:, 0] == 1).all()
        assert (values[:, -1] == 0).all()


def encoded(pixels: np.ndarray) -> bytes:
    """Pixels as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_decoder_that_does_not_tell_where_it_looks_cannot_explain(tmp_path: Path) -> None:
    handle = load(write(tmp_path, looks=False))
    assert texts(ask(handle, RED)[0]) == ["a dog runs"]
    with pytest.raises(InvalidInput, match="does not tell where it looks"):
        ask(handle, RED, explain=True)


# --------------------------------------------------------------------------------------------------------------- models


def reason(folder: Path) -> str:
    """Why the model cannot be served."""
    registry = Registry(folder.parent, tasks={"image-captioning": ImageCaptioning})
    registry.load()
    return registry.get(folder.name).reason


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (VOCABULARY[:-1], "has 8 tokens, but the decoder has 9"),
        ([*VOCABULARY[:2], "<end>", *VOCABULARY[3:]], "has no line </s>"),
        ([*VOCABULARY[:-1], "two words"], "line 9 is no word: 'two words'"),
        ([f"<{word}>" if word[0] != "<" else word for word in VOCABULARY], "and no word"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, vocabulary: list[str], message: str
) -> None:
    assert message in reason(write(tmp_path, vocabulary=vocabulary))


def test_what_the_decoder_reads_must_come_from_the_encoder(tmp_path: Path) -> None:
    folder = write(tmp_path)
    graphs.save(
        folder / "1" / "encoder.onnx",
        [
            helper.make_node("Cast", ["image"], ["numbers"], to=T.FLOAT),
            helper.make_node("ReduceMean", ["numbers"], ["mean"], axes=[1, 2], keepdims=0),
            helper.make_node("Identity", ["mean"], ["state"]),
        ],
        [("image", T.UINT8, ["batch", 2, 2, 3])],
        [("state", T.FLOAT, ["batch", 3])],
    )
    assert "input features float32 (batch, 1, 2, 2) should be an output of the encoder" in reason(folder)


def test_logits_that_are_no_numbers_fail_as_the_models_fault(tmp_path: Path) -> None:
    handle = load(write(tmp_path, np.full((9, 9), np.nan, np.float32)))
    with pytest.raises(InferenceFailed):
        ask(handle, RED)


# -------------------------------------------------------------------------------------------- golden samples, terminal


def golden_difference(handle: ModelHandle, change: Any, tolerance: float = 0.01, **fields: Any) -> str | None:
    """What differs where an expected answer is the model's own, changed."""
    request = ImageCaptioningInput(files=(Upload(graphs.png(RED)),), **fields)
    expected = json.loads(handle.predict_now(request).to_json())
    got = json.loads(handle.predict_now(handle.task.widened(request)).to_json())
    change(expected["results"][0]["captions"])
    return handle.task.difference(request, expected, got, tolerance)


def test_the_same_answer_does_not_differ(teller: ModelHandle) -> None:
    assert golden_difference(teller, lambda captions: None, explain=True) is None


def test_another_caption_another_score_and_another_order_differ(teller: ModelHandle) -> None:
    assert "a cat sits" in str(golden_difference(teller, lambda captions: captions[0].update(text="a cat sits")))
    assert "score" in str(golden_difference(teller, lambda captions: captions[0].update(score=0.5)))
    assert "before" in str(golden_difference(teller, lambda captions: captions.reverse(), captions=2))


def test_captions_that_are_nearly_tied_may_change_places(tmp_path: Path) -> None:
    """Of a blue picture, dogs and cats are equally probable."""
    handle = load(write(tmp_path))
    request = ImageCaptioningInput(files=(Upload(graphs.png(BLUE)),), beams=4, captions=2)
    expected = json.loads(handle.predict_now(request).to_json())
    got = json.loads(handle.predict_now(handle.task.widened(request)).to_json())
    for caption in expected["results"][0]["captions"]:
        caption["text"] = caption["text"].replace("dog", "x").replace("cat", "dog").replace("x", "cat")
    assert handle.task.difference(request, expected, got, 0.01) is None


def test_a_terminal_shows_captions_with_their_scores(teller: ModelHandle) -> None:
    request = ImageCaptioningInput(files=(Upload(graphs.png(RED), filename="red.png"),), explain=True)
    answer = json.loads(teller.predict_now(request).to_json())
    captions, words = teller.task.shown(request, answer)
    assert captions == Table(("caption", "score"), [("a dog runs", "0.913")], "red.png")
    assert isinstance(words, Table)
    assert list(words.rows) == [("a", "1.000"), ("dog", "0.800"), ("runs", "0.950")]


async def test_the_endpoint_answers_as_its_schema_says(tmp_path: Path) -> None:
    write(tmp_path)
    async with running(tmp_path) as client:
        answer = await client.post(
            "/v1/image-captioning",
            params={"captions": 2, "explain": True},
            content=graphs.png(RED),
            headers={"Content-Type": "image/png"},
        )
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["model"] == {"name": "teller", "version": "1"}
        for caption in body["results"][0]["captions"]:
            Caption.model_validate(caption)
        for wrong in ({"beams": 0}, {"beams": 21}, {"captions": 11}, {"beam": 3}):
            refused = await client.post("/v1/image-captioning", params=wrong, files={"file": graphs.png(RED)})
            assert refused.status_code == 422


# --------------------------------------------------------------------------------------------------------- word by word


@pytest.mark.parametrize("beams", [1, 2, 4])
def test_the_words_told_are_those_of_the_best_captions(teller: ModelHandle, beams: int) -> None:
    files = tuple(Upload(data) for data in (graphs.png(RED), b"no picture", graphs.png(BLUE)))
    events, answer = told(teller, ImageCaptioningInput(files=files, beams=beams, explain=True))
    for image, result in enumerate(answer["results"]):
        words = [part.data for part in events if part.data["image"] == image]
        expected = result["captions"][0]["words"] if "captions" in result else []
        assert [{**word, "image": image, "place": place} for place, word in enumerate(expected)] == words


def test_a_word_is_told_as_soon_as_no_other_caption_can_win(teller: ModelHandle) -> None:
    """A dog or a cat: with two beams that is open until a caption is done."""
    after = {}
    for beams in (1, 2):
        events, _ = told(teller, ImageCaptioningInput(files=(Upload(graphs.png(RED)),), beams=beams))
        after[beams] = {part.data["word"]: part.runs for part in events}
    assert after[1] == {"a": 2, "dog": 3, "runs": 4}  # the encoder first
    assert after[2]["a"] == 3
    assert after[2]["dog"] > 4
