"""The language benchmark's own arithmetic: keystrokes, the official vocabulary, intervals; and that it asks the service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.evaluation import load_script

ROOT = Path(__file__).resolve().parents[1]
LINES = ["I don't know, Mr. Smith; how are you?", "can i check-in online", "Book a table for 2 (two) at Chang's!", ""]


bench = load_script(ROOT / "benchmarks" / "perplexity.py")


@pytest.fixture(scope="module")
def model() -> Any:
    return bench.LanguageModel(ROOT / "models" / "english-lstm")


def strip(answers: dict[str, list[str]]) -> Any:
    """Suggestions written down by the text before the cursor; letters after its last space are being completed."""
    typed: dict[int, str] = {}

    def answer(questions: Sequence[Any]) -> None:
        for asked in questions:
            text = typed.get(id(asked), "") + asked.text
            typed[id(asked)], asked.state = text, "state"
            asked.words = tuple(answers.get(text, ["nothing"]))
            asked.completing = text.split(" ")[-1] or None

    return answer


@pytest.mark.parametrize(
    ("line", "answers", "keys", "words"),
    [
        ("how are you", {}, 11, (2, 0, 0)),
        # h, [how ], [are ], [you]
        ("how are you", {"h": ["hi", "how"], "how ": ["is", "was", "are"], "how are ": ["you"]}, 4, (2, 1, 2)),
        # H, [how], comma, space, y, [you]: no space is given where a mark follows
        ("How, you", {"H": ["HOW"], "How, y": ["you"]}, 6, (1, 0, 0)),
        # a suggestion that is only the beginning of the word helps nobody
        ("a carpet", {"a ": ["car", "carp"]}, 8, (1, 0, 0)),
        # taking "a" at the end would be one keystroke, as typing it is
        ("it a", {"it ": ["a"]}, 4, (1, 1, 1)),
        ("x", {}, 1, (0, 0, 0)),
        ("", {}, 0, (0, 0, 0)),
    ],
)
def test_keystrokes_are_counted_as_somebody_types(
    line: str, answers: dict[str, list[str]], keys: int, words: tuple[int, int, int]
) -> None:
    (found,) = bench.keystrokes(strip(answers), [line]).tolist()
    assert found == [len(line), keys, *words]


def test_writers_do_not_disturb_one_another(model: Any) -> None:
    """The runs of many writers share batches, and each still types as if alone."""
    together = bench.keystrokes(bench.strip_of(model), LINES, writers=4)
    alone = bench.keystrokes(bench.strip_of(model), LINES, writers=1)
    assert together.tolist() == alone.tolist()
    assert 0 < together[:, 1].sum() < 0.8 * together[:, 0].sum()


async def test_the_strip_shows_what_the_service_suggests(model: Any, real_client: httpx.AsyncClient) -> None:
    """At every character of a line, in pieces with the state as in one request."""
    line, asked, answer = LINES[0], bench.Asked("", None), bench.strip_of(model)
    for end in range(1, len(line) + 1):
        asked.text = line[end - 1]
        answer([asked])
        body = {"text": line[:end], "top_k": 3}
        served = (await real_client.post("/v1/next-word-prediction", json=body)).raise_for_status().json()
        assert list(asked.words) == [p["text"] for p in served["predictions"]], line[:end]
        assert asked.completing == served["completing"]


def test_the_official_figure_leaves_out_the_words_that_are_not_official(model: Any) -> None:
    """Checked at single places, on both sides of a run's end, against the softmax of the text before them."""
    words = model.vocabulary.words
    official = set(words[:20_000])
    tokens = [words[i] for i in np.random.default_rng(0).integers(2, 2000, bench.RUN_TOKENS + 40)]
    bits, states = bench.surprisals(model, tokens)
    outside = bench.outside_share(model, tokens, states, official)
    assert bits.shape == outside.shape == (len(tokens),)
    ids = [model.vocabulary.number[token] for token in [bench.END, *tokens]]
    fresh = np.zeros((1, model.state_size), np.float32)
    for place in (0, 1, 100, bench.RUN_TOKENS - 1, bench.RUN_TOKENS, len(tokens) - 1):
        (logits,) = model.run(["logits"], [ids[: place + 1]], [place + 1], fresh)
        p = np.exp(logits[0].astype(np.float64) - logits.max())
        p /= p.sum()
        assert outside[place] == pytest.approx(p[20_000:].sum(), abs=1e-5)
        assert bits[place] == pytest.approx(-np.log2(p[ids[place + 1]]), rel=1e-3)


def test_perplexity_is_the_mean_over_all_tokens_whatever_the_articles(model: Any) -> None:
    tokens = ["the", "capital", "of", "France", ".", bench.END]
    whole = bench.wikitext(model, [tokens], None)
    parts = bench.wikitext(model, [tokens[:2], tokens[2:]], set(model.vocabulary.words))
    assert whole["perplexity"] == parts["perplexity"] == parts["official"]["perplexity"]
    low, high = parts["interval"]
    assert low < parts["perplexity"] < high


def test_an_interval_is_as_wide_as_the_binomial_one_when_lines_are_single_words() -> None:
    hits = np.arange(400) % 2
    low, high = bench.interval(hits, np.ones(400))
    assert (low, high) == pytest.approx((0.451, 0.549), abs=0.006)
    assert bench.interval(np.full(5, 2), np.full(5, 4)) == (0.5, 0.5)
