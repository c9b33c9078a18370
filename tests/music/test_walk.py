"""What may come next always leads to full bars, whatever is chosen."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.music.alphabet import FIRST_NOTE, HOLD, LENGTHS, REST, TICKS, UPBEAT, Symbol, length_index, pitch_of
from service.music.composing import recall, remember
from service.music.theory import METERS, Key, Meter
from service.music.walk import LEVELS, Walk


def note(step: int, ticks: int) -> Symbol:
    """A note so many steps above the tonic."""
    return Symbol(FIRST_NOTE + 3 * (step + 10) + 1, LENGTHS.index(ticks))


def walked(walk: Walk, rng: random.Random) -> list[Symbol]:
    """Go on by any symbols that may come next, to the end."""
    taken = []
    while walk.bars_left:
        features = walk.features()
        assert all(0 <= value < levels for value, levels in zip(features, LEVELS, strict=True))
        symbol = Symbol.numbered(rng.choice(np.flatnonzero(walk.allowed()).tolist()))
        walk.take(symbol)
        taken.append(symbol)
    return taken


@given(st.sampled_from(METERS), st.integers(1, 40), st.randoms(use_true_random=False))
def test_any_walk_fills_exactly_the_bars_asked_for(meter: str, bars: int, rng: random.Random) -> None:
    walk = Walk(Key.parse("D"), Meter.parse(meter), bars)
    taken = walked(walk, rng)
    sounding = sum(symbol.ticks for symbol in taken if symbol.pitch != UPBEAT)
    assert sounding == bars * Fraction(meter) * TICKS
    assert all(events for events in walk.measures[:-1])
    assert not walk.measures[-1]


@given(st.sampled_from(METERS), st.integers(1, 4), st.integers(1, 4), st.randoms(use_true_random=False))
def test_a_tune_goes_on_where_the_one_before_ended(meter: str, bars: int, more: int, rng: random.Random) -> None:
    first = Walk(Key.parse("Am"), Meter.parse(meter), bars)
    walked(first, rng)
    then = recall(remember(first), more)
    assert (then.key, then.meter, then.upbeat, then.last) == (first.key, first.meter, first.upbeat, first.last)
    taken = walked(then, rng)
    assert sum(symbol.ticks for symbol in taken) == more * Fraction(meter) * TICKS
    assert taken[0].pitch not in (UPBEAT, HOLD)


def test_only_the_first_symbol_may_be_an_upbeat_and_only_a_bar_line_is_held_over() -> None:
    walk = Walk(Key.parse("D"), Meter.parse("2/4"), 4)
    pitches = {number // len(LENGTHS) for number in np.flatnonzero(walk.allowed())}
    assert UPBEAT in pitches
    assert HOLD not in pitches
    walk.take(note(0, 24))
    pitches = {number // len(LENGTHS) for number in np.flatnonzero(walk.allowed())}
    assert not pitches & {UPBEAT, HOLD}
    walk.take(note(2, 24))
    pitches = {number // len(LENGTHS) for number in np.flatnonzero(walk.allowed())}
    assert HOLD in pitches
    walk.take(Symbol(REST, LENGTHS.index(48)))
    assert HOLD not in {number // len(LENGTHS) for number in np.flatnonzero(walk.allowed())}


def test_a_triplet_is_finished_before_anything_else() -> None:
    walk = Walk(Key.parse("D"), Meter.parse("2/4"), 1)
    walk.take(note(0, 8))
    for _ in range(2):
        assert {number % len(LENGTHS) for number in np.flatnonzero(walk.allowed())} == {LENGTHS.index(8)}
        walk.take(note(1, 8))
    assert walk.left == 24
    assert LENGTHS.index(24) in {number % len(LENGTHS) for number in np.flatnonzero(walk.allowed())}


def test_the_model_is_shown_what_stood_here_before() -> None:
    walk = Walk(Key.parse("D"), Meter.parse("2/4"), 4)
    for step, ticks in ((0, 24), (2, 24), (0, 24)):
        walk.take(note(step, ticks))
    back_one = walk.features()[8:11]
    symbol = note(2, 24)
    assert back_one == [symbol.pitch, symbol.length + 1, 1 + 2], "it begins here, and the bar began alike"
    assert walk.features()[11:14] == [0, 0, 0], "there was no bar two bars earlier"


@pytest.mark.parametrize(("ticks", "nearest"), [(12, 12), (13, 12), (40, 36), (1, 3), (1000, 144)])
def test_a_length_is_shown_as_the_nearest_one(ticks: int, nearest: int) -> None:
    assert LENGTHS[length_index(Fraction(ticks, TICKS))] == nearest


@given(st.integers(-40, 60), st.integers(-2, 2), st.sampled_from(["C", "Bb", "F#m", "Ador"]))
def test_every_note_is_shown_as_some_pitch(step: int, accidental: int, key: str) -> None:
    from service.music.abc import Note

    assert FIRST_NOTE <= pitch_of(Note(step, accidental, Fraction(1, 8)), Key.parse(key)) < LEVELS[0]


@pytest.mark.parametrize(
    "change",
    [
        {"key": "H"},
        {"meter": 3},
        {"upbeat": 1},
        {"upbeat": -3},
        {"upbeat": 48},
        {"upbeat": True},
        {"last": [0, 0]},
        {"last": [5]},
        {"last": [10**9, 0]},
        {"measures": []},
        {"measures": [[[0, 12, 5]]]},
        {"measures": [[[12, 0, 5, 5]]]},
        {"measures": [[[0, 12, 5, 5.0]]]},
        {"measures": [[]] * 99},
        {"more": 1},
    ],
)
def test_a_memory_that_no_walk_leaves_is_refused(change: dict[str, object]) -> None:
    walk = Walk(Key.parse("D"), Meter.parse("2/4"), 1)
    walk.take(note(0, 48))
    told = remember(walk)
    assert recall(told, 2).bars == 2
    with pytest.raises(ValueError, match=r".+"):
        recall({**told, **change}, 2)
