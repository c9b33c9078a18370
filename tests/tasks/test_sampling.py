"""Drawing: the same everywhere for a seed, in the right shares, and only from what is allowed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.decoding.sampling import MAX_SEED, Draws, choose, surprisal
from service.state import OutOfRange

ALL = np.ones(4, bool)
LOGITS = np.log(np.array([0.5, 0.25, 0.2, 0.05], np.float32))


def shares(temperature: float, top_p: float, allowed: np.ndarray = ALL) -> list[float]:
    """How often each symbol is chosen by a thousand numbers evenly spread."""
    chosen = [choose(LOGITS, allowed, temperature, top_p, (n + 0.5) / 1000).number for n in range(1000)]
    return [chosen.count(number) / 1000 for number in range(4)]


def test_a_seed_gives_these_numbers_in_every_version() -> None:
    draws = Draws(7)
    assert [draws(), draws()] == [0.625095466604667, 0.8972138009695755]
    assert Draws(MAX_SEED)() == Draws(MAX_SEED)()


def test_symbols_are_chosen_as_often_as_their_probability_says() -> None:
    assert shares(1.0, 1.0) == pytest.approx([0.5, 0.25, 0.2, 0.05], abs=0.002)


def test_temperature_sharpens_and_flattens() -> None:
    squared = np.array([0.25, 0.0625, 0.04, 0.0025])
    assert shares(0.5, 1.0) == pytest.approx(squared / squared.sum(), abs=0.002)
    assert shares(0, 1.0) == [1, 0, 0, 0]
    assert shares(1e-300, 1.0) == [1, 0, 0, 0]


def test_only_the_likeliest_that_reach_top_p_are_chosen() -> None:
    assert shares(1.0, 0.7) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.002)
    assert shares(1.0, 1e-9) == [1, 0, 0, 0]


def test_only_what_is_allowed_is_chosen() -> None:
    assert shares(1.0, 1.0, np.array([False, True, True, False])) == pytest.approx([0, 5 / 9, 4 / 9, 0], abs=0.002)


def test_surprisal_is_that_among_the_allowed_whatever_temperature_and_top_p() -> None:
    allowed = np.array([True, True, False, False])
    assert choose(LOGITS, allowed, 0.1, 0.5, 0.5).surprisal == pytest.approx(np.log2(1.5))
    assert surprisal(LOGITS, allowed, 1) == pytest.approx(np.log2(3))
    assert surprisal(LOGITS, allowed, 3) == pytest.approx(np.log2(16)), "it counts itself, allowed or not"


@given(st.integers(0, MAX_SEED), st.floats(0, 2), st.floats(0.01, 1), st.floats(0, 1, exclude_max=True))
def test_the_choice_is_allowed_and_always_the_same(seed: int, temperature: float, top_p: float, draw: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, 50).astype(np.float32)
    allowed = rng.random(50) < 0.5
    allowed[0] = True
    first = choose(logits, allowed, temperature, top_p, draw)
    assert allowed[first.number]
    assert first == choose(logits, allowed, temperature, top_p, draw)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    logits = LOGITS.copy()
    logits[1] = bad
    with pytest.raises(OutOfRange):
        choose(logits, ALL, 1.0, 1.0, 0.5)
    with pytest.raises(OutOfRange):
        surprisal(logits, ALL, 1)
