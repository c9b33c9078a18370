"""Next-word prediction, tested against two tiny language models in real ONNX graphs.

`bigram` knows the probabilities written below and nothing else, so that expectations are mental arithmetic. `recurrent`
has random weights: its answers mean nothing, but they depend on every token it ever read, which is what laws need.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from service.errors import InvalidInput, InvalidState, ManifestInvalid, TooLarge
from service.graph import Run, Signature, TensorSpec, next_run
from service.tasks.base import Limits, ModelFolder
from service.tasks.next_word_prediction import (
    MAX_EXPLAINED_TOKENS,
    MAX_RUN_TOKENS,
    NextWordInput,
    NextWordOutput,
    NextWordPrediction,
)
from service.text.normal_form import normalise
from service.text.tokeniser import MAX_CHUNK_CHARS, join, tokenise
from service.text.vocabulary import Vocabulary, proportional
from tests import graphs
from tests.parts import listened
from tests.text.test_normal_form import EMOJI

# What follows each word, with its probability; the rest of a row's mass goes to <unk>.
BIGRAMS: dict[str, dict[str, float]] = {
    "<eos>": {"The": 0.3, "the": 0.1, "I": 0.2, "Tom": 0.1, "How": 0.1, "what": 0.05},
    "The": {"capital": 0.6, "cat": 0.2},
    "the": {"capital": 0.4, "cat": 0.4, "United": 0.1},
    "capital": {"of": 0.5, "offer": 0.05, ".": 0.3},
    "of": {"the": 0.4, "The": 0.1, "France": 0.2, ",": 0.2},
    "I": {"would": 0.4, "did": 0.1, "didn't": 0.1, "didn": 0.2, "'m": 0.1},
    "would": {"like": 0.5, "likely": 0.1, "liked": 0.05, "@-@": 0.1},
    "like": {"to": 0.6, "it": 0.2, "<eos>": 0.1},
    "to": {"France": 0.5, "the": 0.25, "@-@": 0.1},
    "it": {".": 0.5, "?": 0.25, "too": 0.2},
    "France": {".": 0.5, "too": 0.4},
    "too": {"<eos>": 0.5, ".": 0.4},
    "How": {"are": 0.9},
    "Tom": {"capita": 0.5, "capital": 0.1},
    "are": {"you": 0.8, "area": 0.1},
    "you": {"?": 0.9},
    ".": {"The": 0.5, "I": 0.2, '"': 0.2},
    '"': {"the": 0.5, "The": 0.1},
    "United": {"States": 0.6, "states": 0.2, "stated": 0.1},
    "@-@": {"like": 0.6, ",": 0.3},
}
# In the order of their frequency inside a sentence, so that "the" comes before "The".
WORDS = (  # noqa: SIM905
    "<eos> <unk> , . the of to I it like too capital cat would what are you area offer did didn't didn 'm "
    "likely liked France United States states stated Tom How The ? @-@ \" I'm don't 't ' - 1 000 @,@ capita"
).split()


@dataclass
class Model:
    """A task and the session that answers its runs, one after another."""

    task: NextWordPrediction
    session: onnxruntime.InferenceSession
    runs: list[Run] = field(default_factory=list)

    def ask(self, text: str = "", busy: bool = False, **options: Any) -> NextWordOutput:
        steps = self.task.steps(NextWordInput(text=text, **options))
        try:
            run = next_run(steps, None)
            while True:
                run = run.chosen(busy=busy)
                self.runs.append(run)
                names = list(run.outputs)
                run = next_run(steps, dict(zip(names, self.session.run(names, dict(run.tensors)), strict=True)))
        except StopIteration as stop:
            answer: NextWordOutput = stop.value
            return answer

    def scores(self, text: str = "", **options: Any) -> dict[str, float]:
        return {p.text: pytest.approx(p.score, abs=1e-6) for p in self.ask(text, **options).predictions}


def _open(folder: Path, nodes: list[Any], constants: dict[str, np.ndarray], states: int, words: list[str]) -> Model:
    info = helper.make_tensor_value_info
    inputs = [
        info("tokens", TensorProto.INT64, ["batch", "time"]),
        info("sequence_lens", TensorProto.INT32, ["batch"]),
        info("state", TensorProto.FLOAT, ["batch", states]),
        info("explain", TensorProto.BOOL, ["batch"]),
    ]
    outputs = [
        info("logits", TensorProto.FLOAT, ["batch", len(words)]),
        info("next_state", TensorProto.FLOAT, ["batch", states]),
        info("surprisal", TensorProto.FLOAT, ["batch", "time"]),
    ]
    graph = helper.make_graph(
        nodes, "tiny", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in constants.items()]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (folder / "vocabulary.txt").write_text("\n".join(words) + "\n", encoding="utf8")
    return Model(NextWordPrediction(_folder(folder, session)), session)


def _folder(path: Path, session: onnxruntime.InferenceSession, **changes: Any) -> ModelFolder:
    dtypes = {"tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(float)": "float32", "tensor(bool)": "bool"}

    def specs(values: Any) -> dict[str, TensorSpec]:
        return {v.name: TensorSpec(v.name, dtypes[v.type], tuple(v.shape)) for v in values}

    signature = Signature(specs(session.get_inputs()), specs(session.get_outputs()))
    return ModelFolder(**{"name": "tiny", "version": "1", "path": path, "signature": signature} | changes)


@pytest.fixture(scope="session")
def bigram(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The state is the number of the last word; 0, the number of `<eos>`, in a fresh stream."""
    number = {word: i for i, word in enumerate(WORDS)}
    table = np.full((len(WORDS), len(WORDS)), 1e-9)
    for word, following in BIGRAMS.items():
        for then, p in following.items():
            table[number[word], number[then]] = p
    table[:, number["<unk>"]] += 1 - table.sum(1)
    nodes, constants = graphs.bigram_nodes("surprisal"), graphs.bigram_constants(table)
    return _open(tmp_path_factory.mktemp("bigram"), nodes, constants, 1, WORDS)


@pytest.fixture(scope="session")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """An Elman network with random weights; `surprisal` is simply the first of its units, as nothing here reads it."""
    rng = np.random.default_rng(0)
    units, words = 8, WORDS
    constants = {
        "table": rng.normal(size=(len(words), units)).astype(np.float32),
        "w": rng.normal(size=(1, units, units)).astype(np.float32),
        "r": rng.normal(size=(1, units, units)).astype(np.float32) * np.float32(0.5),
        "zero": np.array([0]),
        "one": np.array([1]),
        "three": np.array([3]),
        "zero_i32": np.array(0, np.int32),
        "one_i32": np.array(1, np.int32),
        "up": rng.normal(size=(units, len(words))).astype(np.float32),
    }
    make = helper.make_node
    nodes = [
        make("Transpose", ["tokens"], ["by_time"], perm=[1, 0]),
        make("Gather", ["table", "by_time"], ["x"]),
        make("Unsqueeze", ["state", "zero"], ["before"]),
        make("Max", ["sequence_lens", "one_i32"], ["lens"]),
        make("RNN", ["x", "w", "r", "", "lens", "before"], ["y", "after"], hidden_size=units),
        make("Squeeze", ["after", "zero"], ["h"]),
        make("Greater", ["sequence_lens", "zero_i32"], ["any"]),
        make("Unsqueeze", ["any", "one"], ["any_column"]),
        make("Where", ["any_column", "h", "state"], ["next_state"]),
        make("MatMul", ["next_state", "up"], ["logits"]),
        make("Gather", ["y", "zero_of_units"], ["first"], axis=3),
        make("Squeeze", ["first", "one"], ["by_row"]),
        make("Transpose", ["by_row"], ["surprisal"], perm=[1, 0]),
    ]
    constants["zero_of_units"] = np.array(0)
    return _open(tmp_path_factory.mktemp("recurrent"), nodes, constants, units, words)


# ---------------------------------------------------------------------------------------------------------- tokeniser


@pytest.mark.parametrize(
    ("typed", "tokens"),
    [
        ("I don't know, Mr. Smith.", "I don't know , Mr. Smith ."),
        ("Tom's role-playing game", "Tom 's role @-@ playing game"),
        ("$1,000.50 at 5:30 p.m.", "$ 1 @,@ 000 @.@ 50 at 5 : 30 p.m."),
        ("It’s 5 o’clock…", "It's 5 o'clock ..."),
        ("So do I. J. Doe left the U.S. (in 1999)!", "So do I . J. Doe left the U.S. ( in 1999 ) !"),
        ("“the players' game”", '" the players \' game "'),
        ("one\n\n two\r\nthree\n", "one <eos> two <eos> three <eos>"),
        ("a\tb\u00a0c  d", "a b c d"),
        ("<unk> <eos> @-@", "< unk > < eos > @ - @"),
        ("e\u0301te\u0301", "été"),
        ("", ""),
    ],
)
def test_typed_text_becomes_the_tokens_of_wikitext(typed: str, tokens: str) -> None:
    assert tokenise(typed) == tokens.split()


@pytest.mark.parametrize(
    "typed",
    [
        "I don't know, Mr. Smith; it's Tom's role-playing game.",
        "The players' fee is $1,000.50 (about 40%) at 5:30 p.m.",
        'She said: "How are you?" and left...',
        "This and/or that, so do I!\nA new paragraph.",
    ],
)
def test_joining_the_tokens_gives_what_was_typed(typed: str) -> None:
    assert join(tokenise(typed)) == typed


words = st.text("abcdeXYZ", min_size=1, max_size=5)
pieces = st.builds(
    lambda word, tail, mark: word + tail + mark,
    words,
    st.sampled_from(["", "", "'s", "n't", "-ab", "'ll"]),
    st.sampled_from(["", "", ",", ".", "?", "...", "%"]),
)


@given(st.lists(pieces, max_size=8).map(" ".join))
def test_joined_tokens_split_into_the_same_tokens_again(text: str) -> None:
    assert tokenise(join(tokenise(text))) == tokenise(text)


line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\x0b\x0c\x85\u2028\u2029"), max_size=30)


@given(line, line)
def test_a_space_separates_whatever_the_tokens_are(left: str, right: str) -> None:
    assert tokenise(f"{left} {right}") == tokenise(left) + tokenise(right)


# --------------------------------------------------------------------------------------------- one word, finished text


def test_a_finished_word_is_followed_by_the_most_probable_words(bigram: Model) -> None:
    """After "of", words have 0.7: "the" 0.5 in both spellings, "France" 0.2; the comma is no word."""
    answer = bigram.ask("The capital of", top_k=2)
    assert [p.text for p in answer.predictions] == ["the", "France"]
    assert [p.score for p in answer.predictions] == pytest.approx([0.5 / 0.7, 0.2 / 0.7], abs=1e-6)
    assert answer.completing is None
    assert answer.tokens is None


def test_a_space_at_the_end_finishes_the_word_too(bigram: Model) -> None:
    assert bigram.scores("The capital of ") == bigram.scores("The capital of")


def test_a_mark_at_the_end_finishes_the_word_too(bigram: Model) -> None:
    answer = bigram.ask("How are you?")
    assert answer.completing is None


def many_words(count: int) -> Vocabulary:
    """Every other one has two spellings."""
    return Vocabulary([spelling for n in range(count) for spelling in (f"w{n}", f"W{n}")[: 1 + n % 2]])


@pytest.mark.parametrize("vocabulary", [many_words(300), many_words(3000)], ids=["few", "many"])
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.0, 0.3, 3.0, 30.0]),
    k=st.integers(1, 12) | st.integers(100, 300),
)
def test_the_heaviest_words_are_found_among_many_and_among_few(
    vocabulary: Vocabulary, seed: int, spread: float, k: int
) -> None:
    """Whether all words are about as likely or a few stand out: the sums over spellings are those of every word added up."""
    weights = proportional((np.random.default_rng(seed).normal(size=len(vocabulary)) * spread).astype(np.float32))
    sums = np.zeros(vocabulary.count)
    np.add.at(sums, vocabulary.group, weights.astype(np.float64))
    groups, found = vocabulary.heaviest(weights, k, None)
    np.testing.assert_allclose(found, np.sort(sums)[::-1][:k])
    np.testing.assert_allclose(found, sums[groups])
    assert len(set(groups.tolist())) == k


@given(seed=st.integers(0, 2**32 - 1))
def test_many_words_are_spelt_as_each_alone_would_be(seed: int) -> None:
    vocabulary = Vocabulary(WORDS)
    weights = np.random.default_rng(seed).choice(np.float32([0, 0.25, 1]), len(WORDS))
    groups = np.arange(len(vocabulary.members))
    tokens = vocabulary.likeliest(groups, weights)
    together = list(zip(tokens.tolist(), vocabulary.inside(tokens), strict=True))
    assert together == [vocabulary.spelling(group, weights, starts=False, typed="") for group in groups.tolist()]


@pytest.mark.parametrize("k", [1, 2, 3, 10])
@pytest.mark.parametrize("rest", [0.001, 0.05, 0.3, 0.6, 1.0])
def test_the_spellings_of_one_word_may_all_be_heavier_than_any_other_word(k: int, rest: float) -> None:
    """Two tokens that are one word: the second place is another word's, however far behind."""
    words = ["the", "The", "THE", *(f"w{n}" for n in range(300))]
    weights = np.array([1.0, 0.9, 0.8, *[rest] * 300], np.float32)
    vocabulary = Vocabulary(words)
    groups, found = vocabulary.heaviest(weights, k, None)
    assert found == pytest.approx([2.7, *[rest] * 300][:k])
    assert groups.tolist() == list(range(k))


def test_all_predictions_are_words_that_a_person_types(bigram: Model) -> None:
    for text in ("The capital of", "I ", "Tom \n", "would"):
        answer = bigram.ask(text, top_k=1000)
        texts = [p.text for p in answer.predictions]
        assert len({t.casefold() for t in texts}) == len(texts)
        assert not {"<unk>", "<eos>", "@-@", "@,@", ",", ".", "'t", "'m", "didn", '"'} & set(texts)
        assert sum(p.score for p in answer.predictions) == pytest.approx(1)
        assert [p.score for p in answer.predictions] == sorted((p.score for p in answer.predictions), reverse=True)


def test_a_contraction_which_the_data_splits_is_shown_whole(bigram: Model) -> None:
    """ "didn" (before "'t") and "didn't" are one word to a reader."""
    assert bigram.scores("I ")["didn't"] == 0.3 / 0.8


def test_a_sentence_starts_with_a_capital(bigram: Model) -> None:
    """ "what" is only known in lower case, and "the" is more usual in lower case inside a sentence."""
    assert [p.text for p in bigram.ask("Tom \n", top_k=5).predictions] == ["The", "I", "Tom", "How", "What"]
    assert bigram.ask("Stop. ", top_k=1).predictions[0].text == "The"


def test_a_quotation_mark_keeps_the_start_of_the_sentence(bigram: Model) -> None:
    assert bigram.ask('Stop. "', top_k=1).predictions[0].text == "The"


def test_names_keep_their_capital_inside_a_sentence(bigram: Model) -> None:
    assert bigram.ask("the United ", top_k=1).predictions[0].text == "States"


# ------------------------------------------------------------------------------------------------------ unfinished word


def test_an_unfinished_word_is_completed(bigram: Model) -> None:
    """After "would": "like" 0.5, "likely" 0.1, "liked" 0.05; the letters say that it is one of them."""
    answer = bigram.ask("I would lik")
    assert answer.completing == "lik"
    assert bigram.scores("I would lik") == {"like": 0.5 / 0.65, "likely": 0.1 / 0.65, "liked": 0.05 / 0.65}


def test_a_word_more_probable_than_its_extensions_is_finished(bigram: Model) -> None:
    """After "capital", "of" has 0.5 and "offer" 0.05; after "are", "are" is unheard of and "area" has 0.1."""
    assert bigram.ask("The capital of").completing is None
    assert bigram.ask("How are are").completing == "are"


def test_never_takes_the_last_word_as_finished(bigram: Model) -> None:
    assert bigram.ask("How are are", complete="never").completing is None
    assert bigram.scores("would like", complete="never") == bigram.scores("would like ")


def test_an_unknown_word_that_nothing_extends_is_finished(bigram: Model) -> None:
    assert bigram.ask("The zyzzyva").completing is None


@pytest.mark.parametrize(
    ("typed", "best"),
    [
        ("I would LIK", "LIKE"),
        ("I would Lik", "Like"),
        ("th", "the"),
        ("Th", "The"),
        ("Tom \nto", "Tom"),
        ("the United sta", "States"),
        ("the United STA", "STATES"),
        ("wh", "what"),
        ("Wh", "What"),
        ("I did", "didn't"),
        ("I didn", "didn't"),
        ("I didn'", "didn't"),
        ("the cat (lik", "like"),
    ],
)
def test_the_capitals_typed_are_kept(bigram: Model, typed: str, best: str) -> None:
    assert bigram.ask(typed).predictions[0].text == best


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("iPhon", "iPhone"), ("Iphon", "Iphone"), ("iphon", "iphone"), ("IPHON", "IPHONE"), ("iPHon", "iPHone")],
)
def test_capitals_inside_a_word_are_kept_too(typed: str, completed: str) -> None:
    vocabulary = Vocabulary(["<unk>", "iphone", "iphones"])
    assert vocabulary.spelling(1, np.ones(3, np.float32), starts=False, typed=typed) == (1, completed)


@given(st.data())
def test_a_completion_goes_on_from_what_was_typed(bigram: Model, data: st.DataObject) -> None:
    """Its beginning is what was typed; only a small letter may become the capital of a name."""
    word = data.draw(st.sampled_from(["like", "likely", "France", "capital", "didn't", "stated"]))
    cut = data.draw(st.integers(1, len(word)))
    typed = "".join(data.draw(st.sampled_from([c.lower(), c.upper()])) for c in word[:cut])
    answer = bigram.ask(f"the {typed}", top_k=1000)
    assert answer.completing in (typed, None)
    if answer.completing:
        for prediction in answer.predictions:
            begun = prediction.text[: len(typed)]
            assert all(shown == c or shown.lower() == c for shown, c in zip(begun, typed, strict=True))


def test_shouting_is_read_as_the_common_words() -> None:
    """WikiText-2 knows "WHAT" from a title; "US" and "us" are both usual."""
    ranked = Vocabulary(["<unk>", "what", "us", *map(str, range(1000)), "US", *map(str, range(1000, 5000)), "WHAT"])
    spelt = {token: ranked.words[ranked.encode(token)[0]] for token in ("WHAT", "What", "US", "us", "7")}
    assert spelt == {"WHAT": "what", "What": "what", "US": "US", "us": "us", "7": "7"}


def test_a_contraction_that_is_no_word_is_read_in_two_parts() -> None:
    split = Vocabulary(["<unk>", "shouldn", "'t"])
    assert [split.words[i] for i in split.encode("Shouldn't")] == ["shouldn", "'t"]


def test_a_part_after_a_hyphen_is_completed_by_itself(bigram: Model) -> None:
    answer = bigram.ask("would-lik", top_k=1)
    assert (answer.completing, answer.predictions[0].text) == ("lik", "like")


# -------------------------------------------------------------------------------------------------------- several words


def test_several_words_have_the_product_of_their_probabilities(bigram: Model) -> None:
    """The first is a word for certain, "to" 0.6 or "it" 0.2; what follows may be a mark, but not the end."""
    scores = bigram.scores("I would like", words=2, top_k=20)
    to, it = 0.6 / 0.8, 0.2 / 0.8
    assert scores["to France"] == to * 0.5 / 0.85
    assert scores["to the"] == to * 0.25 / 0.85
    assert scores["it too"] == it  # "." and "?" would end the sentence


def test_a_continuation_has_the_words_asked_for_and_stays_in_its_sentence(bigram: Model) -> None:
    for words in (2, 3, 5):
        predictions = bigram.ask("I would like", words=words, top_k=20).predictions
        assert predictions
        for prediction in predictions:
            assert len(prediction.text.split()) == words
            assert not set(".?!") & set(prediction.text)


def test_hyphens_join_and_do_not_count_as_words(bigram: Model) -> None:
    texts = [p.text for p in bigram.ask("like", words=3, top_k=50, complete="never").predictions]
    assert any(text.startswith("to-like ") and len(text.split()) == 3 for text in texts)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_continuations_are_distinct_ordered_and_at_most_certain(bigram: Model, count: int) -> None:
    scores = [p.score for p in bigram.ask("The capital of", words=count, top_k=1000).predictions]
    texts = [p.text for p in bigram.ask("The capital of", words=count, top_k=1000).predictions]
    assert len(set(texts)) == len(texts) > 0
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) <= 1 + 1e-9


def test_the_first_of_several_words_can_be_a_completion(bigram: Model) -> None:
    answer = bigram.ask("I would lik", words=2, top_k=1)
    assert answer.completing == "lik"
    assert answer.predictions[0].text == "like to"


# -------------------------------------------------------------------------------------------------------------- explain


def test_explain_tells_the_surprisal_of_each_new_word(bigram: Model) -> None:
    tokens = bigram.ask("The capital of", explain=True).tokens
    assert tokens is not None
    assert [t.token for t in tokens] == ["The", "capital", "of"]
    assert [t.surprisal for t in tokens] == pytest.approx([-log2(0.3), -log2(0.6), -log2(0.5)], abs=1e-4)


def test_explain_leaves_out_what_is_still_being_typed(bigram: Model) -> None:
    tokens = bigram.ask("I would lik", explain=True).tokens
    assert tokens is not None
    assert [t.token for t in tokens] == ["I", "would"]


def test_explain_tells_nothing_twice_when_words_end_with_a_space(bigram: Model) -> None:
    first = bigram.ask("The capital ", explain=True)
    second = bigram.ask("of ", explain=True, state=first.state)
    both = bigram.ask("The capital of ", explain=True)
    assert first.tokens is not None
    assert second.tokens is not None
    assert first.tokens + second.tokens == both.tokens


def test_explain_covers_a_text_of_many_runs(bigram: Model) -> None:
    tokens = bigram.ask("The capital of France. " * 100, explain=True).tokens
    assert tokens is not None
    assert [t.token for t in tokens] == ["The", "capital", "of", "France", "."] * 100
    assert [t.surprisal for t in tokens[5:10]] == pytest.approx([t.surprisal for t in tokens[-5:]])
    assert tokens[-5].surprisal == pytest.approx(-log2(0.5), abs=1e-4)  # "The" after a full stop


def test_a_model_without_surprisal_refuses_to_explain(bigram: Model, tmp_path: Path) -> None:
    (tmp_path / "vocabulary.txt").write_text("\n".join(WORDS))
    folder = _folder(tmp_path, bigram.session)
    plain = Signature(folder.signature.inputs, {k: v for k, v in folder.signature.outputs.items() if k != "surprisal"})
    model = Model(NextWordPrediction(_folder(tmp_path, bigram.session, signature=plain)), bigram.session)
    with pytest.raises(InvalidInput, match="cannot explain"):
        model.ask("The", explain=True)


# ----------------------------------------------------------------------------------------------------------- the state

VISIBLE = [*"abiklnotTIhe", " ", " ", " ", "\n", ".", ",", "'", "-", "1", '"', "é", "\u0301", "’", "\u2003"]
HIDDEN = [
    *"\u200b\u00ad\u200e\ufeff\u2060\u200d\u200d\ufe0f\u0323´`‑…½™ﬁｔＩ\u2028\r\u2800\u2764\U0001f469\U0001f3fd\U0001f1e9"
]
typed_text = (
    st.text(st.sampled_from(VISIBLE), min_size=1, max_size=60)
    | st.text(st.sampled_from(VISIBLE + HIDDEN), min_size=1, max_size=60)
    | st.text(min_size=1, max_size=20)
    | st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
    | st.lists(st.sampled_from([*WORDS, *EMOJI.values()]), min_size=1, max_size=8).map("".join)
)


@settings(max_examples=300, deadline=None)
@given(typed_text, st.lists(st.integers(0, 60), max_size=3), st.booleans(), st.booleans())
def test_a_text_may_be_cut_anywhere(recurrent: Model, text: str, cuts: list[int], never: bool, busy: bool) -> None:
    """Part by part with the state, on a server that may be busy, or all at once: the same predictions and state."""
    mode = "never" if never else "auto"
    whole = recurrent.ask(text, top_k=1000, complete=mode)
    places = sorted({cut for cut in cuts if 0 < cut < len(text)})
    state = None
    for begin, end in zip([0, *places], [*places, len(text)], strict=True):
        parts = recurrent.ask(text[begin:end], busy, top_k=1000, complete=mode, state=state)
        state = parts.state
    assert parts.completing == whole.completing
    assert {p.text: p.score for p in parts.predictions} == pytest.approx(
        {p.text: p.score for p in whole.predictions}, abs=1e-5
    )
    again = recurrent.ask("", top_k=1000, complete=mode, state=parts.state)
    assert [p.text for p in again.predictions] == [p.text for p in parts.predictions]


@settings(max_examples=100, deadline=None)
@given(typed_text, st.booleans())
def test_a_text_is_read_as_its_normal_form(recurrent: Model, text: str, never: bool) -> None:
    options: dict[str, Any] = {"top_k": 1000, "complete": "never" if never else "auto", "explain": True}
    typed = recurrent.ask(text, **options)
    plain = recurrent.ask(normalise(text) or " ", **options)
    assert typed.completing == plain.completing
    assert typed.predictions == plain.predictions
    assert typed.tokens == plain.tokens


@pytest.mark.parametrize(
    ("typed", "same"),
    [
        ("I would like \u200b", "I would like "),
        ("I would like \u200e ", "I would like "),
        ("\ufeffI would like ", "I would like "),
        ("I would\u200b like\u200b ", "I would like "),
        ("I would\u00a0like\u2003", "I would like "),
        ("I would l\u00adi", "I would li"),
        ("I would li\u2060", "I would li"),
        ("I would ｌｉ", "I would li"),
        ("I didn’", "I didn'"),
        ("I didn\u02bct like", "I didn't like"),
        ("would‑li", "would-li"),
        ("I\u2028I would li", "I\nI would li"),
    ],
)
def test_characters_that_nobody_sees_change_nothing(recurrent: Model, typed: str, same: str) -> None:
    answer, plain = recurrent.ask(typed), recurrent.ask(same)
    assert (answer.completing, answer.predictions) == (plain.completing, plain.predictions)


def test_hidden_characters_do_not_shorten_a_word(recurrent: Model) -> None:
    """However many they are: a word is cut where it is too long, not where it holds too many of them."""
    typed, plain = recurrent.ask("I would li" + "\u200b" * 1000 + "ke "), recurrent.ask("I would like ")
    assert typed.predictions == plain.predictions


@settings(max_examples=50, deadline=None)
@given(typed_text)
def test_whatever_is_typed_gets_an_answer(recurrent: Model, text: str) -> None:
    answer = recurrent.ask(text, top_k=3, words=2)
    assert all(0 <= p.score <= 1 for p in answer.predictions)


def test_a_text_without_spaces_stays_within_a_bounded_state(recurrent: Model) -> None:
    text = "ab" * 50_000
    whole = recurrent.ask(text)
    cut = recurrent.ask(text[77_777:], state=recurrent.ask(text[:77_777]).state)
    assert len(whole.state) < 1024
    assert [p.text for p in whole.predictions] == [p.text for p in cut.predictions]
    assert recurrent.ask("x" * MAX_CHUNK_CHARS).completing is None


@pytest.mark.parametrize(
    ("text", "options", "idle", "busy"),
    [
        ("How are you ", {}, [[4]], [[4]]),  # <eos> and three words
        ("How are you", {}, [[3, 4]], [[3], [1]]),  # the answer's state ends before "you", which may be finished
        ("I would lik", {}, [[3]], [[3]]),  # "lik" is no word, so nobody asks what comes after it
        ("I did", {}, [[2, 3]], [[2], [1]]),  # "did" is more frequent than "didn't"
        ("Tom capita", {"explain": True}, [[2], [1]], [[2], [1]]),  # rarer than "capital", but likelier here
        ("I would lik", {"complete": "never", "explain": True}, [[3, 4]], [[3], [1]]),
        ("I would-like", {}, [[2, 4, 5]], [[2], [2], [1]]),  # "would", "@-@" and "like", which may be unfinished
        ("How are you " * 16 + "How", {}, [[49], [1]], [[49], [1]]),  # too long to be read twice
    ],
)
def test_no_token_is_read_twice_while_many_wait_or_in_a_long_text(
    bigram: Model, text: str, options: dict[str, Any], idle: list[list[int]], busy: list[list[int]]
) -> None:
    answers = []
    for is_busy, expected in ((False, idle), (True, busy)):
        bigram.runs.clear()
        answers.append(bigram.ask(text, busy=is_busy, **options))
        assert [run.tensors["sequence_lens"].tolist() for run in bigram.runs] == expected
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("options", "longest", "rows"), [({}, MAX_RUN_TOKENS, 6), ({"explain": True}, MAX_EXPLAINED_TOKENS, 2)]
)
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("I would like the capital of France . " * 100, 800),
        ("!" * 3000, 3000),
        ("\u0301" * 3000, 3000),
        ("\U0001f600" * 3000, 3000),
        ("\U0001f469\u200d" * 1500 + " ", 12),  # one in each chunk of 256 characters
        ("a\n" * 1500, 3000),
        (
            "x'" * 1500 + "\n",
            11 * (1 + 127 + 1) + (1 + 91 + 1) + 1,
        ),  # x, many 'x, and ' in each chunk; a paragraph's end
        ("x" * 3000 + " ", 12),
        (" " * 3000, 0),
        ("\n" * 3000, 0),
        ("\u200b" * 3000, 0),
    ],
    ids=["prose", "marks", "accents", "emoji", "joined emoji", "lines", "suffixes", "word", "spaces", "breaks", "none"],
)
def test_a_long_text_is_read_in_runs_that_end_soon(
    recurrent: Model, text: str, tokens: int, options: dict[str, Any], longest: int, rows: int
) -> None:
    recurrent.runs.clear()
    recurrent.ask(text, complete="never", **options)
    lengths = [int(run.tensors["sequence_lens"][-1]) for run in recurrent.runs]
    assert max(lengths) <= longest
    for run, length in zip(recurrent.runs, lengths, strict=True):
        assert run.most_rows is not None
        assert run.most_rows == rows or length < longest
    assert sum(lengths) == tokens + 1  # the <eos> before them
    assert len(lengths) <= tokens // longest + 2


def test_a_long_text_in_pieces_is_read_as_the_whole(recurrent: Model) -> None:
    text = "I would like the capital of France . " * 100
    whole = recurrent.ask(text)
    state = None
    for word in text.split():
        by_word = recurrent.ask(word + " ", state=state)
        state = by_word.state
    assert [p.score for p in by_word.predictions] == pytest.approx([p.score for p in whole.predictions], abs=1e-5)


def test_an_empty_text_needs_a_state(bigram: Model) -> None:
    with pytest.raises(InvalidInput, match="empty"):
        bigram.ask("")


def test_a_blank_text_is_the_start_of_a_sentence(bigram: Model) -> None:
    assert bigram.scores(" ") == bigram.scores("\n \n")


@pytest.fixture
def other_version(bigram: Model) -> Model:
    return Model(NextWordPrediction(_folder(bigram.task.folder.path, bigram.session, version="2")), bigram.session)


def test_a_foreign_or_damaged_state_is_refused(bigram: Model, recurrent: Model, other_version: Model) -> None:
    state = bigram.ask("The ").state
    changed = state[:20] + ("A" if state[20] != "A" else "B") + state[21:]
    for model, bad in [(bigram, changed), (bigram, state[:-3]), (bigram, "nonsense"), (other_version, state)]:
        with pytest.raises(InvalidState):
            model.ask("capital", state=bad)
    with pytest.raises(InvalidState):  # right name and version, wrong size
        recurrent.ask("capital", state=state)


def test_a_text_over_the_limit_is_refused(bigram: Model) -> None:
    folder = _folder(bigram.task.folder.path, bigram.session, limits=Limits(max_text_chars=10))
    model = Model(NextWordPrediction(folder), bigram.session)
    model.ask("0123456789")
    with pytest.raises(TooLarge, match="MAX_TEXT_CHARS"):
        model.ask("0123456789a")


# ------------------------------------------------------------------------------------------------- contract and folders


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": "a", "top_k": 0},
        {"text": "a", "top_k": 1001},
        {"text": "a", "words": 0},
        {"text": "a", "words": 9},
        {"text": "a", "complete": "maybe"},
        {"text": "a", "topk": 3},
        {"text": None},
    ],
)
def test_what_the_contract_forbids_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NextWordInput.model_validate(body)


def test_the_examples_are_valid_and_answered(bigram: Model) -> None:
    examples = NextWordInput.model_json_schema()["examples"]
    for example in examples:
        answer = bigram.ask(**example)
        assert len(answer.predictions) == example.get("top_k", 5)
    for example in NextWordOutput.model_json_schema()["examples"]:
        NextWordOutput.model_validate(example)


def test_every_public_field_is_described() -> None:
    for schema in (NextWordInput.model_json_schema(), NextWordOutput.model_json_schema()):
        for part in (schema, *schema.get("$defs", {}).values()):
            assert all("description" in field for field in part["properties"].values() if "$ref" not in field)


@pytest.mark.parametrize(
    ("vocabulary", "problem"),
    [
        (WORDS[:-1], "46 lines|lines, but"),
        ([*WORDS[:-1], "the"], "twice"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(
    bigram: Model, tmp_path: Path, vocabulary: list[str], problem: str
) -> None:
    (tmp_path / "vocabulary.txt").write_text("\n".join(vocabulary) + "\n")
    with pytest.raises(ManifestInvalid, match=problem):
        NextWordPrediction(_folder(tmp_path, bigram.session))


def test_a_model_without_a_word_for_the_unknown_refuses_what_it_does_not_know(bigram: Model, tmp_path: Path) -> None:
    words = [w if w != "<unk>" else "unknown" for w in WORDS]
    (tmp_path / "vocabulary.txt").write_text("\n".join(words) + "\n")
    closed = Model(NextWordPrediction(_folder(tmp_path, bigram.session)), bigram.session)
    with pytest.raises(InvalidInput, match="'zebra' is none of the model's words"):
        closed.ask("the zebra ")
    assert closed.ask("the ").predictions


def test_a_long_text_is_cut_into_tokens_while_it_is_read(bigram: Model, tmp_path: Path) -> None:
    """Its first run doesn't wait for its last words: nobody notices yet that one of them is unknown."""
    words = [w if w != "<unk>" else "unknown" for w in WORDS]
    (tmp_path / "vocabulary.txt").write_text("\n".join(words) + "\n")
    closed = Model(NextWordPrediction(_folder(tmp_path, bigram.session)), bigram.session)
    with pytest.raises(InvalidInput, match="'zebra' is none of the model's words"):
        closed.ask("the " * 10 * MAX_RUN_TOKENS + "zebra ")
    assert len(closed.runs) == 9


def test_long_words_are_cut_into_tokens_a_few_at_a_time(recurrent: Model) -> None:
    """Each is one token: not so many characters are looked at before a run as make a run's worth of tokens."""
    recurrent.runs.clear()
    recurrent.ask(f"{'x' * 99} " * 1000)
    assert [run.tensors["sequence_lens"].tolist() for run in recurrent.runs] == [[84], *[[83]] * 11, [4]]


def test_a_search_of_many_words_has_as_few_runs_and_rows_as_one_of_few(recurrent: Model) -> None:
    """However many continuations are wanted, sixteen are carried on, each with one word in a run."""
    recurrent.runs.clear()
    recurrent.ask("I would ", words=8, top_k=1000)
    lengths = [run.tensors["sequence_lens"].tolist() for run in recurrent.runs]
    assert len(lengths) <= 1 + 2 * 8 + 6
    assert all(set(rows) == {1} and len(rows) <= 16 for rows in lengths[1:])


# ------------------------------------------------------------------------------------- when two answers mean the same


@pytest.mark.parametrize(
    ("text", "expected", "alike"),
    [
        # After "the" come capital 0.4, cat 0.4 and United 0.1.
        ("of the ", [("capital", 4 / 9), ("cat", 4 / 9)], True),
        ("of the ", [("cat", 4 / 9), ("capital", 4 / 9)], True),
        ("of the ", [("cat", 4 / 9)], True),  # the other one fell off the end
        ("of the ", [("capital", 4 / 9)], True),
        ("of the ", [("United", 4 / 9)], False),
        ("of the ", [("capital", 4 / 9), ("United", 4 / 9)], False),
        ("of the ", [("capital", 4 / 9), ("United", 1 / 9)], False),
        ("of the ", [("capital", 0.5), ("cat", 4 / 9)], False),
        ("of the ", [("capital", 4 / 9), ("France", 4 / 9)], False),
    ],
)
def test_words_that_are_nearly_tied_may_stand_in_either_order(
    bigram: Model, text: str, expected: list[tuple[str, float]], alike: bool
) -> None:
    request = NextWordInput(text=text, top_k=len(expected))
    answer = json.loads(bigram.ask(**bigram.task.widened(request).model_dump(exclude={"rows"})).to_json())
    wanted = {"predictions": [{"text": word, "score": score} for word, score in expected]}
    assert (bigram.task.difference(request, wanted, answer, 0.002) is None) is alike
    assert bigram.task.difference(request, {"completing": "th"}, answer, 0.002) is not None
    assert bigram.task.difference(request, {"completing": None}, answer, 0.002) is None


def test_a_search_for_several_words_is_compared_as_it_was_asked_for(bigram: Model) -> None:
    request = NextWordInput(text="How", words=2)
    assert bigram.task.widened(request) is request


# --------------------------------------------------------------------------------------------------------- word by word


@pytest.mark.parametrize("text", ["", "The ", "I ", "too ", "I would lik", "what ", "you "])
@pytest.mark.parametrize("words", [1, 2, 5])
@pytest.mark.parametrize("name", ["bigram", "recurrent"])
def test_the_words_told_are_those_of_the_best_continuation(
    request: pytest.FixtureRequest, name: str, text: str, words: int
) -> None:
    """Whatever is told while the search goes on, marks and suffixes included."""
    model: Model = request.getfixturevalue(name)
    run = lambda run: dict(zip(run.outputs, model.session.run(list(run.outputs), dict(run.tensors)), strict=True))  # noqa: E731
    asked = NextWordInput(text=text or "\n", words=words, top_k=3)
    events, answer = listened(model.task.steps(asked), run)
    best = answer.predictions[0].text.split() if answer.predictions else []
    expected = [{"place": place, "word": word} for place, word in enumerate(best)]
    assert [part.data for part in events] == (expected if words > 1 else [])
