"""Stacking and splitting are inverse, for fixed and for ragged rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.graph import Run, Signature, TensorSpec
from service.runtime.tensors import batch_key, pad_rows, split, stack

FIXED = Signature({"x": TensorSpec("x", "float32", ("batch", 3))}, {"x": TensorSpec("x", "float32", ("batch", 3))})
RAGGED = Signature(
    {
        "x": TensorSpec("x", "int64", ("batch", "time")),
        "sequence_lens": TensorSpec("sequence_lens", "int32", ("batch",)),
        "state": TensorSpec("state", "float32", ("batch", 2)),
    },
    {"x": TensorSpec("x", "int64", ("batch", "time")), "next_state": TensorSpec("next_state", "float32", ("batch", 2))},
)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6).flatmap(
        lambda rows: st.tuples(*(arrays.arrays(np.float32, (n, 3), elements=st.floats(-1, 1, width=32)) for n in rows))
    )
)
def test_split_undoes_stack(parts: tuple[np.ndarray, ...]) -> None:
    runs = [Run({"x": part}) for part in parts]
    for part, share in zip(parts, split(stack(runs, FIXED), runs, FIXED), strict=True):
        np.testing.assert_array_equal(part, share["x"])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_split_undoes_stack_for_rows_of_unequal_length(lengths: list[int]) -> None:
    runs = [ragged(length) for length in lengths]
    stacked = stack(runs, RAGGED)
    assert stacked["x"].shape == (len(lengths), max(lengths))
    shares = split({"x": stacked["x"], "next_state": stacked["state"]}, runs, RAGGED)
    for run, share in zip(runs, shares, strict=True):
        np.testing.assert_array_equal(run.tensors["x"], share["x"])
        np.testing.assert_array_equal(run.tensors["state"], share["next_state"])


def ragged(length: int) -> Run:
    return Run(
        {
            "x": np.arange(length)[None] + 7,
            "sequence_lens": np.array([length], np.int32),
            "state": np.full((1, 2), length, np.float32),
        }
    )


def test_lengths_share_a_batch_within_a_power_of_two() -> None:
    """Padding then at most doubles the work: 5, 7 and 8 go together, 4 and 9 do not join them."""
    keys = {length: batch_key(ragged(length), RAGGED) for length in (4, 5, 7, 8, 9)}
    assert keys[5] == keys[7] == keys[8]
    assert len({keys[4], keys[8], keys[9]}) == 3


def test_dtype_shape_and_outputs_all_keep_runs_apart() -> None:
    x = np.zeros((1, 3), np.float32)
    different = [
        Run({"x": x}),
        Run({"x": x.astype(np.float64)}),
        Run({"x": np.zeros((1, 4), np.float32)}),
        Run({"x": x}, ("y",)),
        Run({"z": x}),
    ]
    assert len({batch_key(run, FIXED) for run in different}) == len(different)


def test_rows_are_padded_with_copies_of_the_last() -> None:
    assert pad_rows({"x": np.array([[1], [2]])}, 4)["x"].ravel().tolist() == [1, 2, 2, 2]
