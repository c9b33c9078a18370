"""State tokens: what comes back is what was packed, or an error that says why not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.errors import InvalidState
from service.state import MAX_TOKEN_CHARS, State, pack, unpack

TOKEN = pack("lstm", "1", State({"h": np.arange(8, dtype=np.float32), "anchor": np.array([1e9])}, {"pending": "lik"}))


@given(
    arrays.arrays(np.float32, arrays.array_shapes(max_side=5), elements=st.floats(-1e9, 1e9, width=32)),
    st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers() | st.none(), max_size=3),
)
def test_unpacking_undoes_packing(array: np.ndarray, extra: dict[str, object]) -> None:
    state = unpack("m", "2", pack("m", "2", State({"h": array}, extra)))
    np.testing.assert_array_equal(state.arrays["h"], array)
    assert state.extra == extra


@given(st.integers(0, len(TOKEN) - 1), st.characters(codec="ascii", exclude_characters="="))
def test_any_changed_character_is_noticed(place: int, character: str) -> None:
    damaged = TOKEN[:place] + character + TOKEN[place + 1 :]
    if damaged != TOKEN:
        with pytest.raises(InvalidState):
            unpack("lstm", "1", damaged)


@given(st.integers(0, len(TOKEN) - 1))
def test_a_truncated_token_is_noticed(length: int) -> None:
    with pytest.raises(InvalidState):
        unpack("lstm", "1", TOKEN[:length])


@given(st.text(max_size=60))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidState):
        unpack("lstm", "1", text)


@pytest.mark.parametrize(("name", "version"), [("gru", "1"), ("lstm", "2")])
def test_a_foreign_token_names_the_model_that_made_it(name: str, version: str) -> None:
    with pytest.raises(InvalidState, match="was made by model lstm@1"):
        unpack(name, version, TOKEN)


def test_numbers_that_are_not_finite_are_refused() -> None:
    """The digest is no signature: somebody may make a token of their own."""
    token = pack("m", "1", State({"h": np.array([np.nan], np.float32)}))
    with pytest.raises(InvalidState):
        unpack("m", "1", token)


def test_an_overlong_token_is_refused_unread() -> None:
    with pytest.raises(InvalidState, match="longer than"):
        unpack("m", "1", "A" * (MAX_TOKEN_CHARS + 1))
