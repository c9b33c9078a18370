"""ABC: what is read of it, what is refused, and that what is written is read back."""

from __future__ import annotations

import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.music.abc import BadTune, Note, header, played, read, write_bar
from service.music.form import placed
from service.music.theory import METERS, MODES, Key, Meter

HEAD = "X:1\nT:A tune\nM:4/4\nL:1/8\nK:D\n"
TONICS = ["C", "G", "D", "A", "E", "F", "Bb", "Eb", "F#"]
KEYS = [tonic + mode for tonic in TONICS for mode in MODES]


def usable(key: str) -> bool:
    try:
        Key.parse(key)
    except ValueError:
        return False
    return True


def notes(music: str) -> list[tuple[int, Fraction]]:
    """MIDI pitch and length in eighths of each note of a tune in D, 4/4."""
    return [(note.midi, note.length * 8) for bar in read(HEAD + music).bars for note in bar.notes]


@pytest.mark.parametrize(
    ("key", "fifths"),
    [("D", 2), ("Dm", -1), ("Ador", 1), ("Amix", 2), ("Ephr", 0), ("Flyd", 0), ("F#", 6), ("Cb", -7), ("A Dorian", 1)],
)
def test_a_key_has_the_signature_of_its_mode(key: str, fifths: int) -> None:
    assert Key.parse(key).fifths == fifths
    assert sum(Key.parse(key).signature) == fifths


@pytest.mark.parametrize("key", ["H", "d", "D#", "Gbphr", "Dx", "", "DM"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Key.parse(key)


def test_signature_and_accidentals_give_the_pitches() -> None:
    assert [pitch for pitch, _ in notes("DFAd ^FG_GF")] == [62, 66, 69, 74, 66, 67, 66, 66]


def test_an_accidental_holds_to_the_end_of_the_bar_in_every_octave() -> None:
    assert [pitch for pitch, _ in notes("=F4 f4|F8")] == [65, 77, 66]


@pytest.mark.parametrize(
    ("music", "lengths"),
    [
        ("A2 B/ c/2 d3/2 e//", [2, 0.5, 0.5, 1.5, 0.25]),
        ("A>B c<d e>>f", [1.5, 0.5, 0.5, 1.5, 1.75, 0.25]),
        ("(3ABc (3:2:2A2B", [2 / 3, 2 / 3, 2 / 3, 4 / 3, 2 / 3]),
        ("z2 [DFA]2 {gf}A2 z8|", [2, 2, 2, 8]),
    ],
)
def test_lengths_are_those_of_the_standard(music: str, lengths: list[float]) -> None:
    assert [float(length) for _, length in notes(music)] == pytest.approx(lengths)


def test_a_chord_counts_by_its_highest_note() -> None:
    assert notes("[DAd]2") == [(74, 2)]


def test_what_is_no_music_is_passed_over() -> None:
    text = HEAD + '% a comment\n"D"!trill!.A2 ~B2 "^slow" vc2 ud2 | % another\nw: some words\nP:B\ne8 |]\n'
    assert [bar.length for bar in read(text).bars] == [1, 1]


@pytest.mark.parametrize(
    ("music", "where", "why"),
    [
        ("ABcd efga|A&B", 2, "not understood"),
        ("ABcd efga|[K:G]A8", 2, "the key changes"),
        ("ABcd efga|[M:3/4]A6", 2, "the meter changes"),
        ("ABcd efga|(3AB|", 2, "tuplet"),
        ("ABcd efga|A0", 2, "no length"),
        ("A99999", 1, "no length"),
        ("ABcd efg>", 1, "breaks off"),
        ("A^^^B", 1, "no pitch"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_bar(music: str, where: int, why: str) -> None:
    with pytest.raises(BadTune, match=why) as refused:
        read(HEAD + music)
    assert refused.value.bar == where


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ABc|", "no K:"),
        ("K:D\nABc|", "no M:"),
        ("M:7/8\nK:D\nABc|", "M: is not usable"),
        ("M:4/4\nK:H\nABc|", "K: is not usable"),
        ("M:4/4\nL:1/0\nK:D\nABc|", "L: is not usable"),
        (HEAD + "V:2\nABc|", "voices"),
        (HEAD + "ABc|\nX:2\nK:D\nABc|", "more than one tune"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadTune, match=why):
        read(text)


def test_a_header_must_be_what_was_asked_for() -> None:
    with pytest.raises(BadTune, match="its K: says D, and `key` says G"):
        read(HEAD + "A8|", key=Key.parse("G"))
    with pytest.raises(BadTune, match="its M: says 4/4, and `meter` says 6/8"):
        read(HEAD + "A8|", meter=Meter.parse("6/8"))
    assert read(HEAD + "A8|", Key.parse("D"), Meter.parse("C")).bars


def test_an_upbeat_and_bars_that_a_repeat_divides_have_their_places() -> None:
    text = "X:1\nM:6/8\nL:1/8\nK:D\nA|d3 f3|e3 d2:|\n|:B|A6|[1A3 d2:|[2A6|]"
    tune = read(text)
    places = [(bar.start * 8, bar.counts) for bar in placed(tune.bars, tune.meter.length)]
    assert places == [(5, False), (0, True), (0, True), (5, False), (0, True), (0, True), (0, True)]


def test_a_bar_of_another_length_is_named() -> None:
    tune = read(HEAD + "A8|A7|A8|")
    with pytest.raises(BadTune, match="bar 2: lasts 7/8 of a whole note"):
        list(placed(tune.bars, tune.meter.length))


def test_repeats_are_played_twice_with_their_endings() -> None:
    bars = read(HEAD + "|:A8|[1B8:|[2c8||d8|:e8:|f8|]").bars
    assert [bar.notes[0].midi for bar in played(bars)] == [69, 71, 69, 73, 74, 76, 76, 78]


keys = st.sampled_from([Key.parse(key) for key in KEYS if usable(key)])
lengths = st.sampled_from([Fraction(part, 96) for part in (3, 6, 9, 12, 18, 24, 36, 48, 72, 96)])


@st.composite
def bars(draw: st.DrawFn, key: Key) -> list[Note]:
    made = []
    for _ in range(draw(st.integers(1, 8))):
        step, length = draw(st.one_of(st.none(), st.integers(-9, 20))), draw(lengths)
        accidental = 0 if step is None else key.signature[step % 7] + draw(st.integers(-1, 1))
        triplet = draw(st.booleans()) and length in (Fraction(1, 8), Fraction(1, 16))
        note = Note(step, accidental, length * Fraction(2, 3) if triplet else length)
        made += [note] * (3 if triplet else 1)
    return made


@given(st.data(), keys, st.sampled_from(METERS), st.sampled_from([Fraction(1, 16), Fraction(1, 8), Fraction(1, 4)]))
def test_what_is_written_is_read_back(data: st.DataObject, key: Key, meter: str, unit: Fraction) -> None:
    wanted = data.draw(bars(key))
    text = header(key, Meter.parse(meter), unit, "x") + write_bar(wanted, key, Meter.parse(meter), unit) + " |]\n"
    (bar,) = read(text).bars
    assert bar.notes == wanted


@pytest.mark.skipif(shutil.which("abc2midi") is None, reason="abc2midi of Debian's abcmidi is not installed")
@pytest.mark.parametrize("key", ["D", "Gm", "F#m", "Ador", "Eb"])
def test_abc2midi_reads_the_pitches_that_were_written(key: str, tmp_path: Path) -> None:
    parsed = Key.parse(key)
    wanted = [
        Note(step, parsed.signature[step % 7] + beside, Fraction(1, 8))
        for step, beside in zip((0, 7, 3, 10, 3, 5, 12, 5), (1, 0, -1, 0, 0, 1, 1, 0), strict=True)
    ]
    tune = tmp_path / "tune.abc"
    tune.write_text(
        header(parsed, Meter.parse("4/4"), Fraction(1, 8), "x")
        + write_bar(wanted, parsed, Meter.parse("4/4"), Fraction(1, 8))
        + " |]\n"
    )
    done = subprocess.run(["abc2midi", tune, "-o", tmp_path / "tune.mid"], capture_output=True, text=True, check=True)
    assert "rror" not in done.stdout
    assert "arning" not in done.stdout
    data = (tmp_path / "tune.mid").read_bytes()
    pitches = [data[at + 1] for at in range(len(data) - 2) if data[at] == 0x90 and data[at + 2] > 0]
    assert [pitch for pitch in pitches if pitch >= 48][: len(wanted)] == [note.midi for note in wanted]
