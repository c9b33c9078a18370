"""Image captioning: BLEU and CIDEr of the best caption against what people wrote.

Without an `evaluate.py`, DIR holds `captions.json`, an object of lists, such as `{"dog.jpg": ["A dog runs.", ...]}`,
and the pictures that it names, beside it.

Both sides are compared in lower case and without punctuation, word by word.

References:
    Papineni, Roukos, Ward, Zhu, "BLEU: a Method for Automatic Evaluation of Machine Translation" (ACL 2002).
    Vedantam, Zitnick, Parikh, "CIDEr: Consensus-based Image Description Evaluation" (CVPR 2015): CIDEr-D, as the
        evaluation server of MS COCO computes it, times 100.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from sacrebleu.metrics.bleu import BLEU

from service.evaluation.base import (
    Answer,
    Ask,
    Breakdown,
    Conversation,
    DataMissing,
    Evaluation,
    EvaluationFailed,
    Figure,
    Item,
    Outcome,
    Plot,
    Question,
    spread_evenly,
)
from service.evaluation.statistics import Floats, bootstrap_sums, ratio

BEAMS = 3
"""As published figures have it (count)."""
ORDER = 4
"""Words of the longest n-gram that counts (count)."""
LENGTH_SPREAD = 6.0
"""Of CIDEr-D: how quickly a caption of another length than a reference is worth less (words)."""
EXAMPLES = 3
"""Pictures that are drawn (count)."""

NGram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Described:
    """A picture with what people wrote about it.

    Attributes:
        name: for messages.
        captions: of people.
        read: its bytes, encoded, called when they are needed.
    """

    name: str
    captions: Sequence[str]
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Told:
    """What the model said about one picture.

    Attributes:
        picture: what it was about.
        text: the best caption.
        score: geometric mean of the words' probabilities.
        words: with heatmaps, of pictures that are drawn.
    """

    picture: Described
    text: str
    score: float
    words: Sequence[Answer] = field(default=())


class ImageCaptioningEvaluation(Evaluation):
    """Pictures with captions, each sent once as it is. A model's own evaluation overrides `pictures`."""

    title = "Pictures with captions"
    item = "picture"
    of_data: ClassVar[str] = ""
    """What the names of the figures begin with, as the manifest's `[metrics]` has them: `Flickr8k`."""

    def pictures(self) -> Sequence[Described]:
        """All of them.

        Raises:
            DataMissing: there are none.
        """
        file = self.data / "captions.json"
        if not file.is_file():
            raise DataMissing(
                self.data,
                "captions.json and the pictures that it names",
                'Write {"dog.jpg": ["A dog runs.", "A brown dog."]}, and put dog.jpg beside it.',
            )
        captions = json.loads(file.read_text("utf-8"))
        return [Described(name, each, (self.data / name).read_bytes) for name, each in captions.items()]

    def items(self) -> Sequence[Item]:
        pictures = self.few(self.pictures())
        drawn = {picture.name for picture in spread_evenly(pictures, EXAMPLES)}
        return [Item(each.name, partial(self._talk, each, explain=each.name in drawn)) for each in pictures]

    @staticmethod
    def _talk(picture: Described, *, explain: bool = False) -> Generator[Question, Answer, Told]:
        answer = yield Ask({"beams": BEAMS, "explain": explain}, file=picture.read())
        (caption,) = answer["results"][0]["captions"]
        return Told(picture, caption["text"], caption["score"], caption.get("words") or ())

    def timed(self) -> Conversation:
        return self._talk(self.pictures()[0])

    def outcome(self, records: Sequence[Told]) -> Outcome:
        n, prefix = len(records), f"{self.of_data} " if self.of_data else ""
        said = [compared(record.text) for record in records]
        references = [[compared(caption) for caption in record.picture.captions] for record in records]
        if not all(all(each) for each in references):
            raise EvaluationFailed("a picture has no caption, or one without a word. Remove it from the data.")
        sums = bleu_sums(said, references)
        figures = []
        for order in (ORDER, *range(1, ORDER)):
            figure = partial(bleu, order=order)
            low, high = bootstrap_sums(sums, figure) or (None, None)
            figures.append(Figure(f"{prefix}BLEU-{order}", float(figure(sums.sum(axis=0))), n, "pictures", low, high))
        consensus = cider(said, references)
        low, high = bootstrap_sums(np.stack([consensus, np.ones(n)], axis=1), ratio) or (None, None)
        figures.insert(1, Figure(f"{prefix}CIDEr", float(consensus.mean()), n, "pictures", low, high, ".1f"))
        words = np.array([len(each) for each in said])
        figures.append(Figure(f"{prefix}words of a caption", float(words.mean()), n, "pictures", form=".2f"))
        return Outcome(
            figures,
            [_examples(records, consensus)],
            [
                Plot(
                    "examples.png",
                    "Three pictures and where the model looked for each word, with its probability.",
                    draw_examples,
                    {"records": [record for record in records if record.words]},
                )
            ],
            [
                f"One caption a picture, {BEAMS} beams; both sides in lower case, without punctuation. BLEU is that of "
                "the whole set, with the closest reference length; CIDEr is CIDEr-D, times 100, with document "
                "frequencies of these references. Intervals are of a bootstrap over pictures.",
                f"{len(set(map(tuple, said))):,} of {n:,} captions are different.",
            ],
        )


# -------------------------------------------------------------------------------------------------------------- scoring


def compared(text: str) -> list[str]:
    """The words of a caption as they are compared: lower case, letters and digits."""
    return re.sub(r"[^\w\s]|_", "", text.lower().replace("-", " ")).split()


def bleu_sums(said: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Floats:
    """What each caption adds to BLEU's sums, float64 (captions, 2 ORDER + 2).

    Returns:
        n-grams that are in a reference, for each n; n-grams; words; words of the reference of the closest length.
    """
    metric = BLEU(tokenize="none", smooth_method="none", effective_order=True, max_ngram_order=ORDER)
    scores = [
        metric.sentence_score(" ".join(one), [" ".join(each) for each in others])
        for one, others in zip(said, references, strict=True)
    ]
    return np.array([[*each.counts, *each.totals, each.sys_len, each.ref_len] for each in scores], np.float64)


def bleu(sums: Floats, order: int) -> Floats:
    """BLEU with n-grams of up to `order` words, from sums (..., 2 ORDER + 2) to 0..1 (...)."""
    right, all_, words, length = sums[..., :ORDER], sums[..., ORDER:-2], sums[..., -2], sums[..., -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.exp(np.log(right[..., :order] / all_[..., :order]).mean(axis=-1))
        brevity = np.exp(np.minimum(0.0, 1 - length / words))
    return np.asarray(precision * brevity)


def cider(said: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Floats:
    """CIDEr-D of each caption times 100, float64 (captions,).

    The cosine of the n-grams' counts weighted by how rare they are, mean over n and the references; a caption gains
    nothing from saying a word more often than a reference does, and loses where its length is another.
    """
    rarity = Counter(gram for each in references for gram in set().union(*map(_grams, each)))
    most = math.log(len(references))

    def weighted(words: Sequence[str]) -> list[dict[NGram, float]]:
        """Weights of its n-grams, for each n."""
        weights: list[dict[NGram, float]] = [{} for _ in range(ORDER)]
        for gram, count in _grams(words).items():
            weights[len(gram) - 1][gram] = count * (most - math.log(max(1, rarity[gram])))
        return weights

    scores = np.zeros(len(said))
    for place, (one, others) in enumerate(zip(said, references, strict=True)):
        mine = weighted(one)
        for other in others:
            theirs = weighted(other)
            likeness = sum(_cosine(mine[n], theirs[n]) for n in range(ORDER)) / ORDER
            # As COCO's evaluation does, lengths are counted in pairs of words.
            apart = max(0, len(one) - 1) - max(0, len(other) - 1)
            scores[place] += 1000 * likeness * math.exp(-(apart**2) / (2 * LENGTH_SPREAD**2)) / len(others)
    return scores


def _grams(words: Sequence[str]) -> Counter[NGram]:
    """How often each n-gram of up to ORDER words occurs."""
    return Counter(tuple(words[at : at + n]) for n in range(1, ORDER + 1) for at in range(len(words) - n + 1))


def _cosine(mine: dict[NGram, float], theirs: dict[NGram, float]) -> float:
    """Of two weighted bags of n-grams; mine count no more than theirs."""
    product = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in mine.items() if gram in theirs)
    size = math.hypot(*mine.values()) * math.hypot(*theirs.values())
    return product / size if size else 0.0


# ------------------------------------------------------------------------------------------------------------- examples


def _examples(records: Sequence[Told], scores: Floats) -> Breakdown:
    """Captions from the best to the worst, at equal distances."""
    order = spread_evenly(np.argsort(-scores, kind="stable").tolist(), 7)
    rows = [
        (records[row].picture.name, records[row].text, records[row].picture.captions[0], f"{scores[row]:.0f}")
        for row in order
    ]
    return Breakdown("From the best to the worst", ("picture", "the model", "a person", "CIDEr"), rows)


def draw_examples(figure: Any, records: Sequence[Told]) -> None:
    """Draw each picture beside its heatmaps, one for each word.

    Args:
        figure: of matplotlib, empty.
        records: with words.
    """
    columns = 1 + max(len(record.words) for record in records)
    figure.set_size_inches(1.3 * columns, 1.75 * len(records))
    for row, record in enumerate(records):
        picture = Image.open(io.BytesIO(record.picture.read())).convert("RGB")
        for column in range(1 + len(record.words)):
            axes = figure.add_subplot(len(records), columns, row * columns + column + 1)
            axes.set_axis_off()
            axes.imshow(picture)
            if not column:
                axes.set_title(f"score {record.score:.2f}", fontsize=8)
                continue
            word = record.words[column - 1]
            axes.set_title(f"{word['word']} {word['probability']:.2f}", fontsize=8)
            axes.imshow(
                np.array(word["heatmap"]["values"]),
                extent=(-0.5, picture.width - 0.5, picture.height - 0.5, -0.5),
                cmap="inferno",
                alpha=0.6,
                vmin=0,
                vmax=1,
                interpolation="bilinear",
            )
