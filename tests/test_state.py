"""State tokens: what comes back is what was packed, or an error that says why not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service import state
from service.errors import InvalidState
from service.state import MAX_TOKEN_CHARS, State, pack, unpack

TOKEN = pack("lstm", "1", State({"h": np.arange(8, dtype=np.float32), "anchor": np.array([1e9])}, {"pending": "lik"}))


@given(
    arrays.arrays(np.float32, arrays.array_shapes(max_side=5), elements=st.floats(-1e9, 1e9, width=32)),
    st.dictionaries(
        st.text(max_size=5), st.text(max_size=20) | st.integers(-(2**63), 2**63 - 1) | st.none(), max_size=3
    ),
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
    """The checksum is no signature: somebody may make a token of their own."""
    token = pack("m", "1", State({"h": np.array([np.nan], np.float32)}))
    with pytest.raises(InvalidState):
        unpack("m", "1", token)


@pytest.mark.parametrize(
    "header",
    [
        b'{"model":' + b"[" * 30_000,
        b'{"model":["lstm","1"],"arrays":' + b"[" * 9_000 + b"]" * 9_000 + b',"extra":{}}',
        b'{"model":["lstm","1"],"arrays":[["h","<f4",[99999999999999999999]]],"extra":{}}',
        b'{"model":["lstm","1"],"arrays":[["h","<f4",[-1]]],"extra":{}}',
        b'{"model":["lstm","1"],"arrays":[["h","<f4",["a"]]],"extra":{}}',
        b'{"model":["lstm","1"],"arrays":[[["h"],["<f4"],[0]]],"extra":{}}',
        b'{"model":["lstm","1"],"arrays":[],"extra":5}',
        b'{"model":5}',
        b"[]",
        b"\xff",
        b"",
    ],
    ids=range(11),
)
def test_a_forged_header_is_refused(header: bytes) -> None:
    body = len(header).to_bytes(4, "little") + header
    with pytest.raises(InvalidState):
        unpack("lstm", "1", state._text(state._checksum(body) + body))


def test_an_overlong_token_is_refused_unread() -> None:
    with pytest.raises(InvalidState, match="longer than"):
        unpack("m", "1", "A" * (MAX_TOKEN_CHARS + 1))
