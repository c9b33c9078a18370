"""The card: only what is between the markers changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.evaluation.base import EvaluationFailed
from service.evaluation.card import BEGIN, END, insert

plain = st.text(max_size=60).filter(lambda text: "<!--" not in text)


@given(plain, plain, plain, plain)
def test_only_what_is_between_the_markers_changes(before: str, old: str, after: str, new: str) -> None:
    card = insert(f"{before}{BEGIN}{old}{END}{after}", new)
    assert card == f"{before}{BEGIN}\n{new}\n{END}{after}"
    assert insert(card, new) == card


def test_a_card_without_markers_gets_them_before_its_limits() -> None:
    card = insert("# m\n\nText.\n\n## Limits\n\n- Some.\n", "TABLE")
    assert card == f"# m\n\nText.\n\n## Evaluation\n\n{BEGIN}\nTABLE\n{END}\n\n## Limits\n\n- Some.\n"


def test_a_card_without_limits_gets_them_at_its_end() -> None:
    assert insert("# m\n", "TABLE") == f"# m\n\n## Evaluation\n\n{BEGIN}\nTABLE\n{END}\n"


@pytest.mark.parametrize("card", [BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_card_whose_markers_are_no_pair_is_refused(card: str) -> None:
    with pytest.raises(EvaluationFailed, match="once each, in this order"):
        insert(card, "TABLE")
