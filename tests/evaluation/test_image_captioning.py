"""What the evaluation of captioners makes of captions, against published scorers and by mental arithmetic."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from service.evaluation.base import Ask, DataMissing, EvaluationFailed, Subject
from service.evaluation.image_captioning import ImageCaptioningEvaluation, bleu, bleu_sums, cider, compared
from service.evaluation.plots import save
from service.graph import Signature
from tests import graphs

PEOPLE = {
    "a.png": ["A dog runs through the grass .", "A brown dog is running on grass .", "The dog runs ."],
    "b.png": ["Two children play in the water .", "Kids splash in a pool .", "A boy and a girl are swimming ."],
    "c.png": ["A man climbs a rock .", "A climber on a steep rock face .", "Someone is rock-climbing ."],
}
SAID = ["a dog runs through the grass", "two kids play in a pool", "a man stands on a rock"]
EXPECTED_CIDER = [448.540243, 181.608088, 156.406505]
"""By pycocoevalcap 1.2."""


@pytest.fixture
def evaluation(tmp_path: Path) -> ImageCaptioningEvaluation:
    """Three pictures with three captions each."""
    (tmp_path / "captions.json").write_text(json.dumps(PEOPLE))
    for name in PEOPLE:
        (tmp_path / name).write_bytes(graphs.png(size=(8, 8)))
    return ImageCaptioningEvaluation(tmp_path, Subject("m", "1", "image-captioning", Signature({}, {})))


def words() -> tuple[list[list[str]], list[list[list[str]]]]:
    return [compared(text) for text in SAID], [[compared(text) for text in each] for each in PEOPLE.values()]


def test_captions_are_compared_in_lower_case_and_without_punctuation() -> None:
    assert compared("A man 's T-shirt , torn .") == ["a", "man", "s", "t", "shirt", "torn"]


def test_bleu_of_the_whole_set_is_the_published_scorers() -> None:
    said, references = words()
    sums = bleu_sums(said, references).sum(axis=0)
    for order in range(1, 5):
        metric = BLEU(tokenize="none", smooth_method="none", max_ngram_order=order)
        columns = zip(*[[" ".join(each) for each in others] for others in references], strict=True)
        expected = metric.corpus_score([" ".join(one) for one in said], [list(column) for column in columns])
        assert bleu(sums, order) == pytest.approx(expected.score / 100, abs=1e-9)


def test_a_short_set_of_captions_is_worth_less() -> None:
    """Four words against six, all right: exp(1 - 6/4)."""
    sums = bleu_sums([["a", "dog", "runs", "through"]], [[compared(PEOPLE["a.png"][0])]])[0]
    assert bleu(sums, 4) == pytest.approx(math.exp(-0.5))


def test_cider_is_what_cocos_evaluation_computes() -> None:
    said, references = words()
    np.testing.assert_allclose(cider(said, references), EXPECTED_CIDER, atol=1e-6)


def test_what_everybody_says_of_every_picture_tells_nothing() -> None:
    assert cider([["a", "dog"], ["a", "dog"]], [[["a", "dog"]], [["a", "dog"]]]).tolist() == [0, 0]


def test_the_outcome_has_the_figures_and_draws_examples(evaluation: ImageCaptioningEvaluation, tmp_path: Path) -> None:
    records = []
    for item, text in zip(evaluation.items(), SAID, strict=True):
        talk = item.talk()
        question = next(talk)
        assert isinstance(question, Ask)
        assert question.fields == {"beams": 3, "explain": True}
        heat = {"values": [[0.0, 1.0], [0.5, 0.0]]}
        explained = [{"word": word, "probability": 0.5, "heatmap": heat} for word in text.split()]
        with pytest.raises(StopIteration) as end:
            talk.send({"results": [{"captions": [{"text": text, "score": 0.5, "words": explained}]}]})
        records.append(end.value.value)
    outcome = evaluation.outcome(records)
    names = [figure.name for figure in outcome.figures]
    assert names == ["BLEU-4", "CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "words of a caption"]
    for figure in outcome.figures[:2]:
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.value <= figure.high
    assert outcome.breakdowns[0].rows[0][1] == SAID[0]
    (plot,) = outcome.plots
    save(plot, tmp_path)
    assert (tmp_path / "examples.png").stat().st_size > 1000


def test_data_that_are_not_there_are_missed_with_a_sentence(tmp_path: Path) -> None:
    evaluation = ImageCaptioningEvaluation(tmp_path, Subject("m", "1", "image-captioning", Signature({}, {})))
    with pytest.raises(DataMissing, match=r"captions\.json"):
        evaluation.items()


def test_a_picture_without_a_caption_is_refused(evaluation: ImageCaptioningEvaluation) -> None:
    (evaluation.data / "captions.json").write_text('{"a.png": ["..."]}')
    (item,) = evaluation.items()
    talk = item.talk()
    next(talk)
    with pytest.raises(StopIteration) as end:
        talk.send({"results": [{"captions": [{"text": "a dog", "score": 0.5}]}]})
    with pytest.raises(EvaluationFailed, match="has no caption"):
        evaluation.outcome([end.value.value])
