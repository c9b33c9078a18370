"""Music composition with a tiny recurrent network of random weights.

Its tunes are no music, but every rule of the task holds for them: a model can only choose among what is right.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper

from service.errors import InvalidInput, InvalidState, ManifestInvalid, TooLarge
from service.evaluation.music_composition import KEYS, divergence, faults, heard_before, line_of, style_distance
from service.limits import Limits
from service.music.abc import read
from service.music.alphabet import SYMBOLS
from service.music.theory import METERS
from service.music.walk import WIDTH
from service.registry.handle import LoadOptions, ModelHandle
from service.registry.loading import load_version
from service.registry.manifest import read_manifest
from service.tasks.base import MediaAnswer
from service.tasks.music_composition import MusicComposition, MusicInput
from tests import graphs
from tests.conftest import running
from tests.parts import told

HIDDEN = 4
Ask = Callable[..., dict[str, Any]]


def composer(path: Path, width: int = WIDTH, symbols: int = SYMBOLS) -> Path:
    """A GRU of four units with random weights over the features, and logits that are random sums of its outputs."""
    rng = np.random.default_rng(5)
    make = helper.make_node
    return graphs.save(
        path,
        [
            make("Cast", ["features"], ["numbers"], to=T.FLOAT),
            make("Transpose", ["numbers"], ["by_time"], perm=[1, 0, 2]),
            make("Unsqueeze", ["state", "zero"], ["before"]),
            make(
                "GRU",
                ["by_time", "w", "r", "b", "sequence_lens", "before"],
                ["outputs", "after"],
                hidden_size=HIDDEN,
                linear_before_reset=1,
            ),
            make("Squeeze", ["outputs", "one"], ["units"]),
            make("Transpose", ["units"], ["by_row"], perm=[1, 0, 2]),
            make("MatMul", ["by_row", "spread"], ["logits"]),
            make("Squeeze", ["after", "zero"], ["next_state"]),
        ],
        [
            ("features", T.INT32, ["batch", "time", width]),
            ("sequence_lens", T.INT32, ["batch"]),
            ("state", T.FLOAT, ["batch", HIDDEN]),
        ],
        [("logits", T.FLOAT, ["batch", "time", symbols]), ("next_state", T.FLOAT, ["batch", HIDDEN])],
        {
            "w": rng.normal(0, 0.03, (1, 3 * HIDDEN, width)).astype(np.float32),
            "r": rng.normal(0, 0.5, (1, 3 * HIDDEN, HIDDEN)).astype(np.float32),
            "b": np.zeros((1, 6 * HIDDEN), np.float32),
            "spread": rng.normal(0, 3, (HIDDEN, symbols)).astype(np.float32),
            "zero": np.array([0]),
            "one": np.array([1]),
        },
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    graphs.write_model(folder / "piper", task="music-composition", graph=composer)
    return folder


@pytest.fixture(scope="module")
def handle(models: Path) -> ModelHandle:
    folder = models / "piper"
    return load_version(folder / "1", read_manifest(folder), MusicComposition, LoadOptions())


@pytest.fixture(scope="module")
def ask(handle: ModelHandle) -> Ask:
    def asked(**fields: Any) -> dict[str, Any]:
        answer: dict[str, Any] = orjson.loads(handle.predict_now(MusicInput.model_validate(fields)).to_json())
        return answer

    return asked


def heard(abc: str) -> list[tuple[int, Fraction]]:
    """The notes of a tune: MIDI pitch and length; a rest is pitch 0."""
    tune = read(abc)
    return [(0 if note.step is None else note.midi, note.length) for bar in tune.bars for note in bar.notes]


PROMPT = "X:1\nT:The start\nM:6/8\nL:1/8\nK:G\nD|G2A BAG|\n"


# ------------------------------------------------------------------------------------------------------------ the tune


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KEYS),
    st.sampled_from([*METERS, "C", "C|"]),
    st.integers(1, 24),
    st.integers(0, 2**53 - 1),
    st.sampled_from([0, 0.5, 1.0, 2.0]),
    st.sampled_from([0.3, 0.95, 1.0]),
)
def test_every_tune_has_its_key_its_meter_and_full_bars(
    ask: Ask, key: str, meter: str, bars: int, seed: int, temperature: float, top_p: float
) -> None:
    answer = ask(key=key, meter=meter, bars=bars, seed=seed, temperature=temperature, top_p=top_p)
    assert faults(answer["abc"], key, meter, bars) == ""
    assert (answer["bars"], answer["seed"]) == (bars, seed)
    assert answer["surprisal"] >= 0
    assert answer["prompt_surprisal"] is None
    tune = read(answer["abc"])
    assert (str(tune.key), str(tune.meter)) == (key, meter)


def test_the_same_seed_gives_the_same_tune_and_another_seed_another(ask: Ask) -> None:
    first, again, other = (ask(key="D", meter="6/8", seed=seed) for seed in (7, 7, 8))
    assert first == again
    assert first["abc"] != other["abc"]


def test_a_seed_that_was_drawn_is_told(ask: Ask) -> None:
    drawn = ask(key="D", meter="6/8", bars=4)
    assert drawn == ask(key="D", meter="6/8", bars=4, seed=drawn["seed"])


def test_key_and_meter_are_drawn_by_the_seed(ask: Ask) -> None:
    kinds = set()
    for seed in range(12):
        tune = read(ask(bars=1, seed=seed)["abc"])
        kinds.add((str(tune.key), str(tune.meter)))
    assert len(kinds) > 3
    assert {key for key, _ in kinds} <= {"D", "G", "A"}


def test_at_temperature_0_no_seed_matters(ask: Ask) -> None:
    tunes = {ask(key="D", meter="3/4", bars=4, temperature=0, seed=s)["abc"].split("K:")[1] for s in range(3)}
    assert len(tunes) == 1


def test_many_callers_at_once_get_what_each_would_get_alone(models: Path, ask: Ask) -> None:
    async def at_once() -> list[str]:
        async with running(models) as client:
            asked = [{"key": "D", "meter": "2/4", "bars": 2, "seed": seed} for seed in range(8)]
            answers = await asyncio.gather(*(client.post("/v1/music-composition", json=one) for one in asked))
            return [answer.raise_for_status().json()["abc"] for answer in answers]

    assert asyncio.run(at_once()) == [ask(key="D", meter="2/4", bars=2, seed=seed)["abc"] for seed in range(8)]


@pytest.mark.skipif(shutil.which("abc2midi") is None, reason="abc2midi of Debian's abcmidi is not installed")
@pytest.mark.parametrize(("key", "meter"), [("D", "6/8"), ("F#m", "4/4"), ("Ador", "9/8"), ("Eb", "C|")])
def test_abc2midi_reads_every_tune_without_a_word(ask: Ask, tmp_path: Path, key: str, meter: str) -> None:
    for seed in range(3):
        tune = tmp_path / f"{seed}.abc"
        tune.write_text(ask(key=key, meter=meter, seed=seed, top_p=1)["abc"])
        done = subprocess.run(
            ["abc2midi", tune, "-o", tune.with_suffix(".mid")], capture_output=True, text=True, check=True
        )
        assert "rror" not in done.stdout, done.stdout
        assert "arning" not in done.stdout, done.stdout


# -------------------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize(
    "prompt",
    [
        PROMPT,
        PROMPT + "c2",
        PROMPT + "c2 d2",
        PROMPT + "c2B ABc",
        "X:1\nM:6/8\nL:1/8\nK:G\n|:D|G2A BAG|c2A A2:|\n",
        "X:1\nM:6/8\nL:1/8\nK:G\nG2A BAG|(3ABc d2 z2-|",
        'X:1\nM:6/8\nL:1/16\nK:G\n"G"G4A2 {c}B2>A2G2|',
        "X:1\nM:6/8\nK:G\nG2A B^c2-|c3- c3-|",
        "M:6/8\nL:1/8\nK:G\n",
    ],
)
def test_the_answer_begins_with_the_notes_of_the_prompt(ask: Ask, prompt: str) -> None:
    begun = heard(prompt)
    for seed in range(3):
        answer = ask(prompt=prompt, bars=8, seed=seed)
        notes = heard(answer["abc"])
        assert notes[: len(begun)] == begun
        assert len(notes) > len(begun)
        assert (answer["prompt_surprisal"] is None) == (not begun)
        if ":|" not in prompt:
            assert sum(bar.length for bar in read(answer["abc"]).bars) == 8 * Fraction(6, 8)


def test_an_answer_can_be_gone_on_from_as_a_prompt(ask: Ask) -> None:
    for seed in range(12):
        first = ask(key="Em", meter="3/4", bars=6, seed=seed)["abc"]
        if read(first).bars[0].length < Fraction(3, 4):
            first = first.replace("|]", "||")
        then = ask(prompt=first.replace("|]", "|"), bars=9, seed=seed)["abc"]
        assert heard(then)[: len(heard(first))] == heard(first)


def test_a_last_bar_that_an_upbeat_completes_ends_a_section(ask: Ask) -> None:
    abc = ask(prompt=PROMPT + "c2B AG|", bars=6, seed=2)["abc"]
    assert "c2B AG||\n" in abc
    lengths = [bar.length * 8 for bar in read(abc).bars]
    assert lengths[:4] == [1, 6, 5, 1]
    assert sum(lengths) == 6 * 6


def test_a_tie_at_the_end_of_the_prompt_holds_the_note(ask: Ask) -> None:
    for seed in range(4):
        notes = heard(ask(prompt="M:2/4\nL:1/8\nK:D\nA2 ^c2-|", bars=4, seed=seed)["abc"])
        assert notes[1][0] == notes[2][0] == 73


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"prompt": ""}, "`prompt` is empty"),
        ({"prompt": "GABc|"}, "no K: field"),
        ({"prompt": PROMPT, "key": "D"}, "its K: says G, and `key` says D"),
        ({"prompt": PROMPT, "meter": "9/8"}, "its M: says 6/8, and `meter` says 9/8"),
        ({"prompt": PROMPT + "A7|"}, "bar 3: lasts 7/8"),
        ({"prompt": PROMPT + "A2|A6|"}, "bar 3: lasts 1/4"),
        ({"prompt": PROMPT + "A6|" * 7, "bars": 8}, "8 bars"),
        ({"prompt": PROMPT + "A6|" * 9, "bars": 8}, "ask for more"),
        ({"prompt": PROMPT + "A///"}, "bar 3: breaks off"),
        ({"prompt": "M:6/8\nK:G\nA/5|A6|"}, "bar 1"),
        ({"prompt": PROMPT, "state": "x"}, "Send `prompt` or `state`"),
    ],
)
def test_a_prompt_that_cannot_be_gone_on_from_is_refused(ask: Ask, fields: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        ask(**fields)


def test_a_long_prompt_is_read_in_pieces_and_one_too_long_not_at_all(models: Path, ask: Ask) -> None:
    long = PROMPT + "GABcde|" * 60
    assert ask(prompt=long, bars=70, seed=1)["prompt_surprisal"] > 0
    folder = models / "piper"
    small = load_version(
        folder / "1", read_manifest(folder), MusicComposition, LoadOptions(limits=Limits(max_text_chars=100))
    )
    with pytest.raises(TooLarge):
        small.predict_now(MusicInput(prompt=long, bars=70))


def test_a_state_goes_on_in_the_same_key_and_meter_with_the_new_bars_alone(ask: Ask) -> None:
    for seed in range(6):
        first = ask(key="Bb", meter="9/8", bars=3, seed=seed)
        then = ask(state=first["state"], bars=5, seed=seed)
        assert faults(then["abc"], "Bb", "9/8", 5) == ""
        upbeats = [read(one["abc"]).bars[0].length % Fraction(9, 8) for one in (first, then)]
        assert upbeats[0] == upbeats[1]
        assert ask(state=then["state"], bars=1, seed=seed)["bars"] == 1


def test_a_state_is_refused_for_another_key_and_when_damaged(ask: Ask) -> None:
    token = ask(key="Bb", meter="9/8", bars=1, seed=1)["state"]
    with pytest.raises(InvalidInput, match="in Bb, 9/8"):
        ask(state=token, key="C")
    assert ask(state=token, key="Bb", meter="9/8", bars=1, seed=1)
    with pytest.raises(InvalidState):
        ask(state=token[:-1] + ("A" if token[-1] != "A" else "B"))


# ---------------------------------------------------------------------------------------------------------- the edge


@pytest.fixture
async def client(models: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with running(models) as found:
        yield found


async def test_midi_is_the_same_tune_and_tells_the_seed(client: httpx.AsyncClient, handle: ModelHandle) -> None:
    body = {"key": "D", "meter": "6/8", "bars": 4, "seed": 7}
    answer = await client.post("/v1/music-composition", json={**body, "format": "midi"})
    assert answer.headers["content-type"] == "audio/midi"
    assert answer.headers["x-seed"] == "7"
    assert answer.content[:4] == b"MThd"
    same = handle.predict_now(MusicInput.model_validate({**body, "format": "midi"}))
    assert isinstance(same, MediaAnswer)
    assert answer.content == same.data
    tune = (await client.post("/v1/music-composition", json=body)).json()["abc"]
    assert answer.content.count(b"\x90") >= sum(pitch > 0 for pitch, _ in heard(tune)) // 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"key": "H"}, "key"),
        ({"key": "D#"}, "key"),
        ({"meter": "7/8"}, "meter"),
        ({"bars": 0}, "bars"),
        ({"bars": 257}, "bars"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**53}, "seed"),
        ({"seed": True}, "seed"),
        ({"format": "wav"}, "format"),
        ({"tempo": 120}, "tempo"),
    ],
)
async def test_a_wrong_field_is_named(client: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    answer = await client.post("/v1/music-composition", json=body)
    assert answer.status_code == 422
    assert [error["loc"][-1] for error in answer.json()["errors"]] == [field]


def test_a_terminal_shows_the_tune_and_its_seed(handle: ModelHandle, ask: Ask) -> None:
    request = MusicInput(key="D", meter="6/8", bars=1, seed=7)
    first, last = handle.task.shown(request, ask(key="D", meter="6/8", bars=1, seed=7))
    assert str(first).startswith("X:1\n")
    assert str(last).startswith("seed 7, ")


def test_an_abc_file_is_the_prompt() -> None:
    reader = MusicComposition.file_reader
    assert reader is not None
    assert reader.read(PROMPT.encode(), "start.abc", {}).fields == {"prompt": PROMPT}
    assert reader.read("T:Für".encode("latin-1"), "old.abc", {}).fields == {"prompt": "T:Für"}


def test_a_graph_or_a_manifest_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "narrow"
    graphs.write_model(folder, task="music-composition", graph=lambda path: composer(path, width=7))
    with pytest.raises(ManifestInvalid, match="last axes"):
        load_version(folder / "1", read_manifest(folder), MusicComposition, LoadOptions())
    folder = tmp_path / "odd"
    graphs.write_model(folder, task="music-composition", graph=composer)
    with (folder / "manifest.toml").open("a") as manifest:
        manifest.write("\n[keys]\nH = 1\n")
    with pytest.raises(ManifestInvalid, match="no key"):
        load_version(folder / "1", read_manifest(folder), MusicComposition, LoadOptions())


# ------------------------------------------------------------------------------------------------------- measures


@pytest.mark.parametrize(
    ("abc", "fault"),
    [
        ("X:1\nM:6/8\nL:1/8\nK:D\nA|def fed|e2d c2|]", ""),
        ("X:1\nM:6/8\nL:1/8\nK:D\ndef fed|e2d c3|]", ""),
        ("X:1\nM:6/8\nL:1/8\nK:D\ndef fed|e2d c2|]", "bar 2 is not 3/4 long"),
        ("X:1\nM:6/8\nL:1/8\nK:D\ndef fed|]", "1 bars instead of 2"),
        ("X:1\nM:6/8\nL:1/8\nK:G\ndef fed|e2d c3|]", "K:G and M:6/8 instead of D and 6/8"),
        ("X:1\nM:6/8\nL:1/8\nK:D\ndef fe&|e2d c3|]", "bar 1 is not understood"),
    ],
)
def test_what_is_not_right_with_a_tune_is_found(abc: str, fault: str) -> None:
    assert faults(abc, "D", "6/8", 2) == fault


def test_style_and_form_are_counted() -> None:
    line = line_of(read("X:1\nM:2/4\nL:1/8\nK:G\nG2B2|d4|G2B2|d2G2|"))
    assert list(line.pitches[:3]) == [0, 4, 7]
    assert heard_before(line) == (1, 4)
    assert style_distance([line], [line]) == 0
    assert divergence(Counter("aa"), Counter("bb")) == 1


# ---------------------------------------------------------------------------------------------------------- bar by bar


@settings(max_examples=40)
@given(
    st.integers(1, 12),
    st.integers(0, 2**53 - 1),
    st.sampled_from([None, PROMPT, "X:1\nM:3/4\nL:1/8\nK:D\nD2|G3A Bc|d4 B2-|", "X:1\nM:4/4\nL:1/8\nK:G\n|:G4 B2"]),
)
def test_what_is_told_of_a_tune_is_the_tune(handle: ModelHandle, bars: int, seed: int, prompt: str | None) -> None:
    """Header and bars one after another: none of them changes once it is told, ties and line breaks included."""
    fields = {"prompt": prompt} if prompt else {"meter": "6/8"}
    events, answer = told(handle, MusicInput(bars=bars + 3, seed=seed, **fields))
    assert [part.event for part in events] == ["head", *["bar"] * (len(events) - 1)]
    assert "".join(part.data["abc"] for part in events) == answer["abc"]
    assert [part.data["number"] for part in events[1:]] == list(range(1, len(events)))
    assert events[0].data["seed"] == answer["seed"] == seed


def test_a_bar_is_told_before_the_next_one_is_composed(handle: ModelHandle) -> None:
    events, _ = told(handle, MusicInput(key="D", meter="2/4", bars=8, seed=1))
    assert (events[0].event, events[0].runs) == ("head", 0)
    times = [part.runs for part in events[:-1]]  # the last two bars may be known at once
    assert len(set(times)) == len(times) >= 8


def test_the_surprisals_of_the_bars_are_those_of_the_tune(handle: ModelHandle) -> None:
    events, answer = told(handle, MusicInput(key="D", meter="4/4", bars=6, seed=3))
    bars = [part.data for part in events if part.event == "bar"]
    notes = [sum(character.isalpha() for character in data["abc"]) for data in bars]
    whole = sum(data["surprisal"] * count for data, count in zip(bars, notes, strict=True)) / sum(notes)
    assert whole == pytest.approx(answer["surprisal"])


# --------------------------------------------------------------------------------------------------------- surprisals


@pytest.mark.parametrize("prompt", [None, PROMPT])
def test_the_surprisals_of_the_notes_are_those_of_the_tune(ask: Ask, prompt: str | None) -> None:
    """Their mean is the tune's, there is one for each note written, and without `explain` there are none."""
    fields = {"bars": 6, "seed": 3, **({"prompt": prompt} if prompt else {"key": "D", "meter": "4/4"})}
    answer = ask(**fields, explain=True)
    notes = [bits for bar in answer["surprisals"] for bits in bar]
    assert sum(notes) / len(notes) == pytest.approx(answer["surprisal"])
    assert min(notes) >= 0
    before = answer["prompt_surprisals"]
    assert len(notes) + len(before) == len(heard(answer["abc"]))
    assert (sum(before) / len(before) if before else None) == (
        pytest.approx(answer["prompt_surprisal"]) if prompt else None
    )
    plain = ask(**fields)
    assert not {"surprisals", "prompt_surprisals"} & plain.keys()
    assert plain["abc"] == answer["abc"]
