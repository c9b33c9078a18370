"""Recordings to words: a graph that hears levels, whose answers are mental arithmetic, and the published model.

To the small graph a level of 1,000 is "one", 2,000 is "two", and nothing is nothing; it answers a step of 10 ms late.
"""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from service.errors import InvalidInput, InvalidState, ManifestInvalid, TooLarge, UnsupportedMedia
from service.limits import Limits
from service.registry.handle import LoadOptions, ModelHandle
from service.registry.loading import load_version
from service.registry.repository import read_folder
from service.state import State, pack, unpack
from service.tasks.base import Upload
from service.tasks.speech_recognition import SpeechRecognition, SpeechRecognitionInput
from tests import graphs
from tests.conftest import running
from tests.parts import told

RATE, STEP = 8000, 80
MANIFEST = """
task = "speech-recognition"
architecture = "rnn"
[sound]
rate = 8000
step = 80
flush = 2
[reading]
quiet = 0.95
pause = 3
lag = 2
back = 4
frame_delay = 1
[state_ranges]
h = [{ least = -40000, most = 40000 }]
"""


def hears_levels(path: Path, columns: int = 3) -> Path:
    """The mean of each step, one step late, compared with 0, 1,000 and 2,000."""
    nodes = [
        helper.make_node("Reshape", ["samples", "by_steps"], ["steps"]),  # (batch, T, 80)
        helper.make_node("ReduceMean", ["steps"], ["now"], axes=[2], keepdims=0),
        helper.make_node("Concat", ["h", "now"], ["all"], axis=1),  # (batch, 1 + T)
        helper.make_node("Slice", ["all", "nought", "minus_one", "one"], ["late"]),
        helper.make_node("Slice", ["all", "minus_one", "end", "one"], ["next_h"]),
        helper.make_node("Unsqueeze", ["late", "two"], ["column"]),
        helper.make_node("Sub", ["column", "levels"], ["away"]),
        helper.make_node("Div", ["away", "width"], ["scaled"]),
        helper.make_node("Mul", ["scaled", "scaled"], ["squared"]),
        helper.make_node("Neg", ["squared"], ["logits"]),
        helper.make_node("LogSoftmax", ["logits"], ["log_probs"], axis=-1),
        helper.make_node("Identity", ["log_probs"], ["frame_log_probs"]),
    ]
    float_ = TensorProto.FLOAT
    return graphs.save(
        path,
        nodes,
        [("samples", float_, ["batch", "samples"]), ("h", float_, ["batch", 1])],
        [
            ("log_probs", float_, ["batch", "steps", columns]),
            ("frame_log_probs", float_, ["batch", "steps", columns]),
            ("next_h", float_, ["batch", 1]),
        ],
        {
            "by_steps": np.array([0, -1, STEP]),
            "nought": np.array([0]),
            "one": np.array([1]),
            "two": np.array([2]),
            "minus_one": np.array([-1]),
            "end": np.array([2**40]),
            "levels": 1000 * np.arange(columns, dtype=np.float32),
            "width": np.float32(300),
        },
    )


def write_model(models: Path, manifest: str = MANIFEST, labels: str = "one\ntwo\n") -> Path:
    folder = models / "levels"
    hears_levels(folder / "1" / "model.onnx")
    (folder / "1" / "labels.txt").write_text(labels)
    (folder / "manifest.toml").write_text(manifest)
    return folder


def load(folder: Path, limits: Limits | None = None, version: str = "1") -> ModelHandle:
    found = read_folder(folder)
    assert found.manifest is not None, found.problem
    return load_version(folder / version, found.manifest, SpeechRecognition, LoadOptions(limits=limits or Limits()))


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return load(write_model(tmp_path_factory.mktemp("models")))


def levels(*said: float, each: int = 4) -> np.ndarray:
    """Sound of 16 bits: so many steps of each level."""
    return np.repeat(np.array(said), each * STEP).astype(np.int16)


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    return file.getvalue()


def ask(handle: ModelHandle, *files: bytes, **fields: Any) -> dict[str, Any]:
    uploads = tuple(Upload(data, filename=f"{i}.wav") for i, data in enumerate(files))
    request = SpeechRecognitionInput.model_validate({**fields, "files": uploads})
    answer: dict[str, Any] = json.loads(handle.predict_now(request).to_json())
    return answer


def in_pieces(
    handle: ModelHandle, samples: np.ndarray, places: Sequence[int], rate: int = RATE, **fields: Any
) -> list[dict[str, Any]]:
    """The results of a stream cut at these places."""
    results, state = [], None
    edges = [0, *sorted(places), len(samples)]
    for place, (start, end) in enumerate(itertools.pairwise(edges)):
        final = place == len(edges) - 2
        data = wav(samples[start:end], rate)
        answer = ask(handle, data, final=final, **fields, **({} if state is None else {"state": state}))
        state = answer["state"]
        assert (state is None) == final
        results += answer["results"]
    return results


def test_words_are_told_with_their_times(handle: ModelHandle) -> None:
    answer = ask(handle, wav(levels(0, 1000, 0, 2000, 2000, 0, 1000)), timestamps=True)
    (result,) = answer["results"]
    assert answer["model"] == {"name": "levels", "version": "1"} and answer["state"] is None
    assert result["text"] == "one two one"
    assert result["filename"] == "0.wav" and result["sample_rate"] == RATE
    assert result["duration_s"] == pytest.approx(0.28)
    assert [(w["word"], w["start_s"], w["end_s"]) for w in result["words"]] == [
        ("one", 0.04, 0.08),
        ("two", 0.12, 0.20),
        ("one", 0.24, 0.28),
    ]
    assert all(word["score"] > 0.9 for word in result["words"])
    assert result["alternatives"] == [{"text": "one two one", "score": result["score"]}]


def test_words_are_left_out_unless_asked_for(handle: ModelHandle) -> None:
    assert "words" not in ask(handle, wav(levels(0, 1000, 0)))["results"][0]


def test_alternatives_are_all_different_and_best_first(handle: ModelHandle) -> None:
    """1,500 may be either."""
    result = ask(handle, wav(levels(0, 1500, 0, 1000, 0)), alternatives=10)["results"][0]
    told = [entry["text"] for entry in result["alternatives"]]
    scores = [entry["score"] for entry in result["alternatives"]]
    assert {"one one", "two one"} <= set(told[:8]) and told[0] == result["text"]
    assert len(set(told)) == len(told) <= 10
    assert scores == sorted(scores, reverse=True) and sum(scores) <= 1 + 1e-6


def test_where_nothing_is_said_the_text_is_empty_and_its_score_says_how_surely(handle: ModelHandle) -> None:
    silent = ask(handle, wav(levels(0, each=100)), timestamps=True)["results"][0]
    assert silent["text"] == "" and silent["words"] == [] and silent["score"] > 0.99
    doubtful = ask(handle, wav(levels(0, 430, 0, each=1)))["results"][0]
    assert doubtful["text"] == "" and 0.5 < doubtful["score"] < 0.9


def test_several_recordings_are_answered_each_for_itself(handle: ModelHandle) -> None:
    answer = ask(handle, wav(levels(0, 1000)), b"no sound", wav(levels(2000, 0)))
    one, refused, two = answer["results"]
    assert (one["text"], two["text"]) == ("one", "two")
    assert refused["error"]["type"] == "/problems/unsupported-media-type"
    assert "'1.wav'" in refused["error"]["detail"] and answer["state"] is None


said = st.lists(st.sampled_from([0, 0, 1000, 2000, 1500, 700]), min_size=1, max_size=30)


@given(said, st.integers(1, 5), st.lists(st.floats(0, 1), max_size=6), st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_recording_in_pieces_has_the_words_of_the_whole(
    handle: ModelHandle, said: list[int], each: int, cuts: list[float], noisy: bool
) -> None:
    samples = levels(*said, each=each)
    if noisy:
        samples = samples + np.random.default_rng(len(said)).normal(0, 150, len(samples)).astype(np.int16)
    whole = ask(handle, wav(samples), timestamps=True)["results"][0]
    pieces = in_pieces(handle, samples, [max(1, int(cut * len(samples))) for cut in cuts], timestamps=True)
    assert " ".join(filter(None, (piece["text"] for piece in pieces))) == whole["text"]
    words = [word for piece in pieces for word in piece["words"]]
    assert [(w["word"], w["start_s"], w["end_s"]) for w in words] == [
        (w["word"], w["start_s"], w["end_s"]) for w in whole["words"]
    ]
    assert [w["score"] for w in words] == pytest.approx([w["score"] for w in whole["words"]], abs=1e-5)
    assert math.prod(piece["score"] for piece in pieces) == pytest.approx(whole["score"], rel=1e-3, abs=1e-5)


@given(st.sampled_from([4000, 11_025, 22_050, 44_100, 48_000, 192_000]), st.lists(st.floats(0, 1), max_size=4))
@settings(deadline=None, max_examples=25)
def test_pieces_are_the_whole_at_every_rate(handle: ModelHandle, rate: int, cuts: list[float]) -> None:
    samples = np.repeat([0, 1000, 0, 2000, 0], rate // 10).astype(np.int16)
    whole = ask(handle, wav(samples, rate), timestamps=True)["results"][0]
    assert whole["text"] == "one two" and whole["duration_s"] == pytest.approx(0.5, abs=0.01)
    pieces = in_pieces(handle, samples, [max(1, int(cut * len(samples))) for cut in cuts], rate, timestamps=True)
    assert " ".join(filter(None, (piece["text"] for piece in pieces))) == "one two"
    words = [word for piece in pieces for word in piece["words"]]
    assert [(w["word"], w["start_s"], w["end_s"]) for w in words] == [
        (w["word"], w["start_s"], w["end_s"]) for w in whole["words"]
    ]


def test_a_word_is_told_once_it_cannot_change(handle: ModelHandle) -> None:
    first, state = (ask(handle, wav(levels(0, 1000)), final=False)[name] for name in ("results", "state"))
    assert first[0]["text"] == ""
    second = ask(handle, wav(levels(0, 0, 0)), final=False, state=state)
    assert second["results"][0]["text"] == "one" and second["results"][0]["duration_s"] == pytest.approx(0.12)
    assert ask(handle, wav(levels()), state=second["state"])["results"][0]["text"] == ""


def test_a_long_segment_without_a_pause_fits_a_token(handle: ModelHandle) -> None:
    """At 192 kHz, where the resampler keeps most; and never more than a request may send back."""
    rate = 192_000
    samples = np.repeat(np.tile([1000, 2000], 200), rate // 50).astype(np.int16)
    state = None
    for start in range(0, len(samples), rate // 3 + 77):
        answer = ask(handle, wav(samples[start : start + rate // 3 + 77], rate), final=False, state=state)
        state = answer["state"]
        assert len(state) <= 64 * 1024
    rest = ask(handle, wav(samples[:0], rate), state=state)["results"][0]["text"]
    assert len(rest.split()) > 10 and set(rest.split()) == {"one", "two"}


def test_a_stream_keeps_to_one_rate_and_one_recording_a_request(handle: ModelHandle) -> None:
    state = ask(handle, wav(levels(0, 1000)), final=False)["state"]
    with pytest.raises(InvalidInput, match="16,000 samples a second.*8,000"):
        ask(handle, wav(levels(0, 1000), 16_000), state=state)
    with pytest.raises(InvalidInput, match="2 were sent"):
        ask(handle, wav(levels(0)), wav(levels(0)), final=False)


def test_tokens_that_no_stream_leaves_behind_are_refused(handle: ModelHandle) -> None:
    token = ask(handle, wav(levels(0, 1000)), final=False)["state"]
    kept = unpack("levels", "1", token)
    for change in (
        {"rate": 0},
        {"rate": 10**9},
        {"samples": -1},
        {"held": "AAAA"},
        {"rest": "//8="},
        {"rest": "AADAfw=="},  # NaN
        {"steps": "AAAA"},
        {"steps": "AAAAQAAAAEAAAABAAAAAQAAAAEAAAABA"},  # a probability above 1
        {"read": 10**6},
        {"said_until": 1.5},
        {"more": 1},
    ):
        forged = pack("levels", "1", State(kept.arrays, {**kept.extra, **change}))
        with pytest.raises(InvalidState):
            ask(handle, wav(levels(0)), state=forged)
    with pytest.raises(InvalidState):
        ask(handle, wav(levels(0)), state=token[:-1])


@given(
    first=st.integers(0, 2**53), said_until=st.integers(0, 2**53), samples=st.integers(0, 2**53), read=st.integers(0, 7)
)
@settings(deadline=None, max_examples=40)
def test_counts_that_do_not_belong_together_break_nothing(
    handle: ModelHandle, first: int, said_until: int, samples: int, read: int
) -> None:
    kept = unpack("levels", "1", ask(handle, wav(levels(0, 1000)), final=False)["state"])
    counts = {"first": first, "said_until": said_until, "samples": samples, "read": read}
    forged = pack("levels", "1", State(kept.arrays, {**kept.extra, **counts}))
    try:
        result = ask(handle, wav(levels(0, 2000, 0)), state=forged, timestamps=True)["results"][0]
    except InvalidState:
        return
    assert len(result["words"]) == len(result["text"].split())


def test_limits_are_those_of_the_whole_request(tmp_path: Path) -> None:
    handle = load(write_model(tmp_path), Limits(max_audio_s=2))
    second = wav(levels(0, each=100))
    assert len(ask(handle, second, second)["results"]) == 2
    with pytest.raises(TooLarge, match="3 seconds, more than the 2 seconds.*GRIDLOOP_MAX_AUDIO_S"):
        ask(handle, second, second, second)
    with pytest.raises(TooLarge):
        ask(handle, wav(levels(0, each=201)))


def test_nothing_and_what_is_no_recording_is_refused(handle: ModelHandle) -> None:
    with pytest.raises(InvalidInput, match="No recording was sent"):
        ask(handle)
    with pytest.raises(InvalidInput, match="no sound in it"):
        ask(handle, wav(levels()))
    with pytest.raises(UnsupportedMedia, match="a picture"):
        ask(handle, b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(
    ("labels", "manifest", "problem"),
    [
        ("one\n", MANIFEST, "has 1 labels, but log_probs has 3 columns"),
        ("one\ntwo\n", MANIFEST.replace("rate = 8000", "rate = 9000"), r"\[sound\] rate"),
        ("one\ntwo\n", MANIFEST.replace("pause = 3", "pauses = 3"), r"\[reading\] pauses is not known"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, labels: str, manifest: str, problem: str
) -> None:
    with pytest.raises(ManifestInvalid, match=problem):
        load(write_model(tmp_path, manifest, labels))


def test_a_golden_sample_tells_another_word_and_forgives_a_step_of_time(handle: ModelHandle) -> None:
    request = SpeechRecognitionInput(timestamps=True)
    word = {"word": "one", "start_s": 0.04, "end_s": 0.08, "score": 0.99}
    expected = {"results": [{"text": "one", "score": 0.98, "words": [word]}]}
    near = {"results": [{"text": "one", "score": 0.981, "words": [{**word, "end_s": 0.09}]}], "state": None}
    assert handle.task.difference(request, expected, near, 0.01) is None
    far = {"results": [{"text": "one", "score": 0.98, "words": [{**word, "end_s": 0.11}]}]}
    assert "end_s" in str(handle.task.difference(request, expected, far, 0.01))
    other = {"results": [{"text": "two", "score": 0.98, "words": [{**word, "word": "two"}]}]}
    assert "text" in str(handle.task.difference(request, expected, other, 0.01))


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    write_model(tmp_path)
    async with running(tmp_path) as client:
        yield client


URL = "/v1/speech-recognition"


async def test_a_recording_is_sent_as_the_body_or_as_part_of_a_form(client: httpx.AsyncClient) -> None:
    data = wav(levels(0, 1000, 0))
    for headers in (
        {"content-type": "audio/wav"},
        {"content-type": "application/octet-stream"},
        {"content-type": "audio/x-wav"},
    ):
        answer = await client.post(URL, params={"timestamps": "true"}, content=data, headers=headers)
        assert answer.status_code == 200 and answer.json()["results"][0]["text"] == "one"
    form = await client.post(
        URL, files=[("file", ("a.wav", data)), ("file", ("b.wav", data))], data={"alternatives": "2"}
    )
    assert [result["filename"] for result in form.json()["results"]] == ["a.wav", "b.wav"]


async def test_a_stream_goes_on_by_its_state_in_a_form(client: httpx.AsyncClient) -> None:
    first = await client.post(
        URL, params={"final": "false"}, content=wav(levels(0, 1000)), headers={"content-type": "audio/wav"}
    )
    state = first.json()["state"]
    second = await client.post(URL, files={"file": ("b.wav", wav(levels(0, 2000, 0)))}, data={"state": state})
    assert second.status_code == 200 and second.json()["results"][0]["text"] == "one two"
    broken = await client.post(URL, files={"file": ("b.wav", wav(levels(0)))}, data={"state": state[:-2]})
    assert broken.status_code == 422 and broken.json()["type"].endswith("/invalid-state")


async def test_samples_without_a_header_are_read_as_their_content_type_says(client: httpx.AsyncClient) -> None:
    data = levels(0, 1000, 0).astype(">i2").tobytes()
    kind = "audio/L16; rate=8000; channels=1"
    answer = await client.post(URL, content=data, headers={"content-type": kind})
    assert answer.status_code == 200 and answer.json()["results"][0]["text"] == "one"
    form = await client.post(URL, files={"file": ("a.raw", data, kind)})
    assert form.json()["results"][0]["text"] == "one"


@pytest.mark.parametrize(
    ("params", "status"), [({"alternatives": "11"}, 422), ({"final": "perhaps"}, 422), ({"words": "1"}, 422)]
)
async def test_wrong_fields_are_refused(client: httpx.AsyncClient, params: dict[str, str], status: int) -> None:
    answer = await client.post(URL, params=params, content=wav(levels(0)), headers={"content-type": "audio/wav"})
    assert answer.status_code == status


async def test_what_is_no_recording_is_415(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, content=b"#!AMR\n123", headers={"content-type": "audio/amr"})
    assert answer.status_code == 415 and "AMR" in answer.json()["detail"] and "FLAC" in answer.json()["detail"]


# ---------------------------------------------------------------------------------------------------- the published model

DIGITS = Path(__file__).parents[2] / "models" / "digits-ctc"
PIN = DIGITS / "1" / "golden" / "four-two-seven.flac"


@pytest.fixture(scope="module")
def digits() -> ModelHandle:
    return load(DIGITS)


def pin(rate: int = RATE) -> np.ndarray:
    """ "four two seven", float64 at a rate."""
    samples, _ = soundfile.read(PIN)
    return np.asarray(soxr.resample(samples, RATE, rate) if rate != RATE else samples)


def encoded(sound: np.ndarray, rate: int, container: str, subtype: str | None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.clip(sound, -1, 1 - 2**-15), rate, subtype, format=container)
    return file.getvalue()


@pytest.mark.parametrize(
    ("container", "subtype", "rates"),
    [
        ("WAV", "PCM_16", [8000, 11_025, 12_345, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000]),
        ("WAV", "PCM_U8", [8000]),
        ("WAV", "PCM_24", [44_100]),
        ("WAV", "PCM_32", [16_000]),
        ("WAV", "FLOAT", [48_000]),
        ("WAV", "ALAW", [8000]),
        ("WAV", "ULAW", [8000, 16_000]),
        ("FLAC", "PCM_16", [8000, 44_100]),
        ("OGG", "VORBIS", [16_000, 44_100]),
        ("OGG", "OPUS", [8000, 48_000]),
        ("MP3", "MPEG_LAYER_III", [16_000, 44_100]),
    ],
)
def test_digits_are_heard_in_every_format_and_at_every_rate(
    digits: ModelHandle, container: str, subtype: str, rates: Sequence[int]
) -> None:
    for rate in rates:
        assert ask(digits, encoded(pin(rate), rate, container, subtype))["results"][0]["text"] == "four two seven", rate


@pytest.mark.parametrize("change", [lambda x: x * 0.1, lambda x: x * 10, lambda x: x + 0.1, lambda x: -x])
def test_digits_are_heard_at_every_level_and_with_an_offset(digits: ModelHandle, change: Any) -> None:
    assert ask(digits, encoded(change(pin()), RATE, "WAV", None))["results"][0]["text"] == "four two seven"
    stereo = np.stack([change(pin()), 0.5 * change(pin())], axis=1)
    assert ask(digits, encoded(stereo, RATE, "FLAC", None))["results"][0]["text"] == "four two seven"


@given(st.sampled_from([8000, 16_000, 44_100]), st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(deadline=None, max_examples=12)
def test_digits_in_pieces_are_those_of_the_whole(digits: ModelHandle, rate: int, cuts: list[float]) -> None:
    samples = np.rint(pin(rate) * 32767).astype(np.int16)
    fields = {"timestamps": True, "alternatives": 1}
    whole = ask(digits, wav(samples, rate), **fields)["results"][0]
    pieces = in_pieces(digits, samples, [int(cut * len(samples)) for cut in cuts], rate, **fields)
    assert " ".join(filter(None, (piece["text"] for piece in pieces))) == whole["text"] == "four two seven"
    words = [word for piece in pieces for word in piece["words"]]
    for word, expected in zip(words, whole["words"], strict=True):
        assert word == {**expected, "score": pytest.approx(expected["score"], abs=1e-4)}


def test_words_are_where_they_were_said(digits: ModelHandle) -> None:
    """Silence of 0.1 s, "four" to 0.6, of 0.2 s, "two" to 1.06, of 0.15 s, "seven" to 1.95."""
    words = ask(digits, PIN.read_bytes(), timestamps=True)["results"][0]["words"]
    sound = np.abs(pin())
    for word in words:
        first, last = (int(word[edge] * RATE) for edge in ("start_s", "end_s"))
        assert sound[first:last].max() > 0.05
    edges = [word[edge] for word in words for edge in ("start_s", "end_s")]
    assert edges == sorted(edges)


def test_nothing_is_heard_in_silence_and_noise(digits: ModelHandle) -> None:
    rng = np.random.default_rng(0)
    for sound in (
        np.zeros(16_000),
        np.zeros(10),
        rng.standard_normal(40_000) * 0.1,
        rng.standard_normal(40_000) * 0.001,
        np.cumsum(rng.standard_normal(40_000)) * 0.001,
        0.3 * np.sin(np.arange(40_000) * 0.05),
    ):
        result = ask(digits, encoded(sound, RATE, "WAV", None), timestamps=True)["results"][0]
        assert result["text"] == "" and result["words"] == [] and 0 < result["score"] <= 1


# --------------------------------------------------------------------------------------------------------- word by word


def test_the_words_told_are_those_of_the_texts(handle: ModelHandle) -> None:
    sounds = [wav(levels(1000, 0, 2000, 0, 1000)), b"no sound", wav(levels(2000, 0))]
    files = tuple(Upload(data) for data in sounds)
    events, answer = told(handle, SpeechRecognitionInput(files=files))
    for place, result in enumerate(answer["results"]):
        words = [part.data["word"] for part in events if part.data["recording"] == place]
        assert " ".join(words) == result.get("text", "")
    assert [part.data["place"] for part in events] == [0, 1, 2, 0]


def test_words_that_other_alternatives_may_still_change_are_not_told(handle: ModelHandle) -> None:
    request = SpeechRecognitionInput(files=(Upload(wav(levels(1000, 0, 2000, 0))),), alternatives=3)
    events, answer = told(handle, request)
    assert (events, answer["results"][0]["text"]) == ([], "one two")


# -------------------------------------------------------------------------------------------------------------- frames


def test_frames_are_what_the_network_heard_step_by_step(handle: ModelHandle) -> None:
    """Steps of 10 ms, a label each: what is not a word belongs to the first column."""
    result = ask(handle, wav(levels(1000, 0, 2000)), explain=True)["results"][0]
    frames = result["frames"]
    rows = np.array(frames["probabilities"])
    assert (frames["labels"], frames["start_s"], frames["step_s"]) == (["", "one", "two"], 0.0, 0.01)
    assert rows.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert len(rows) == 12 + 2  # and the silence after the end
    assert rows.argmax(axis=1).tolist() == [0, 1, 1, 1, 1, 0, 0, 0, 0, 2, 2, 2, 2, 0]
    assert "frames" not in ask(handle, wav(levels(1000)))["results"][0]


def test_frames_of_pieces_go_on_where_those_before_ended(handle: ModelHandle) -> None:
    sound = levels(1000, 0, 2000, 0)
    first = ask(handle, wav(sound[:960]), final=False, explain=True)
    rest = ask(handle, wav(sound[960:]), state=first["state"], explain=True)
    whole = ask(handle, wav(sound), explain=True)["results"][0]["frames"]["probabilities"]
    pieces = [answer["results"][0]["frames"] for answer in (first, rest)]
    assert pieces[1]["start_s"] == pytest.approx(len(pieces[0]["probabilities"]) * 0.01)
    assert np.array(pieces[0]["probabilities"] + pieces[1]["probabilities"]) == pytest.approx(np.array(whole), abs=1e-5)
