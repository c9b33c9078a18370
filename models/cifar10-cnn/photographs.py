"""Try the classifier on photographs that are not from CIFAR-10: those it should name, and those it should not know.

    python models/cifar10-cnn/photographs.py --data DIR --write            # the test part, into the card
    python models/cifar10-cnn/photographs.py --data DIR --part tuning --version 1 --beside ""

DIR holds the public data sets `flickr8k`, `camvid`, `houses`, `bccd` and `fruit_detection`, packed as below. Most of them
are for research only, and none of their pictures is stored here. Needs numpy, onnxruntime, pillow and scipy.

Photographs with a class of CIFAR-10, by fixed rules; `finetune.py` trains version 4 on the training part:
    Flickr8k (Hodosh, Young, Hockenmaier, 2013), whole pictures: at least three of the five captions name the class, and
        none names another, or a toy or a statue. In the training part two are enough. A checksum of the file name
        divides the pictures: five tenths for testing, one for tuning, four for training.
    CamVid (Brostow, Fauqueur, Cipolla, 2008), cut out as a person would: each connected region of the class car that is
        at least 32 pixels wide and high, fills most of its box and is not cut by the picture's edge, with a margin.
        The official test frames are for testing; the rest is divided by sequence (`camvid_part`).
Pictures of none of the ten classes: street scenes with hardly a car (CamVid), people and nothing else, and other scenes
(Flickr8k), each from the part asked for; and rooms (Houses), blood cells (BCCD), fruit and noise, of which a half is for
either part.

References:
    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927): the intervals.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import math
import os
import re
import tomllib
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnxruntime
from PIL import Image

from service.evaluation.statistics import wilson
from service.runtime.eight_bits import keep_sums_exact
from training.card import write_block

MODEL_FOLDER = Path(__file__).resolve().parent
RARE = 25
"""Pictures (count): a row with fewer is not in the mean of the rows."""
MARGIN = 0.12
"""Surroundings kept on each side of a car, as a share of its box."""
NOT_CARS = frozenset({"0001TP_009630"})
"""CamVid counts lorries as cars; these crops of the test part, looked at one by one, show one."""

SUBJECTS = {
    "airplane": r"air ?planes?|planes?|jets?|aircrafts?|airliners?|biplanes?",
    "automobile": r"cars?|automobiles?|race ?cars?|sedans?|convertibles?|taxis?|suvs?|jeeps?",
    "bird": r"birds?|seagulls?|gulls?|ducks?|geese|goose|pigeons?|hawks?|eagles?|owls?|parrots?|swans?|pelicans?|cranes?"
    r"|herons?|egrets?|penguins?|flamingos?|ostrich(?:es)?|roosters?|chickens?|puffins?",
    "cat": r"cats?|kittens?|kitty",
    "deer": r"deers?|elk|moose|antelopes?|reindeer|fawn",
    "dog": r"dogs?|pupp(?:y|ies)|pups?|greyhounds?|hounds?|poodles?|terriers?|labradors?|retrievers?|collies?|bulldogs?"
    r"|german shepherds?|dalmatians?|dachshunds?|beagles?|husk(?:y|ies)|corgis?|rottweilers?|pugs?|chihuahuas?"
    r"|spaniels?|dobermans?",
    "frog": r"frogs?|toads?",
    "horse": r"horses?|ponies|pony|colts?|mares?|stallions?|foals?",
    "ship": r"boats?|ships?|sailboats?|yachts?|rowboats?|speedboats?|motorboats?|ferr(?:y|ies)",
    "truck": r"trucks?|firetrucks?|lorr(?:y|ies)",
}
"""Words for each class."""
PEOPLE = (
    r"m[ae]n|wom[ae]n|boys?|girls?|people|persons?|child|children|kids?|lady|ladies|guys?|someone|somebody|couple|owners?"
    r"|he|she|baby|babies|toddlers?|riders?|jockeys?|drivers?|crowds?|players?|cowboys?|handlers?|family|trainers?"
    r"|individuals?|teenagers?|teens?|skiers?|surfers?|bikers?|(?:bi|motor)?cyclists?|(?:skate|snow|wake)boarders?"
    r"|spectators?|onlookers?|males?|females?|adults?|friends?|racers?|team|soldiers?|dancers?|pedestrians?|swimmers?"
    r"|workers?|passengers?|hunters?|tourists?|fisherm[ae]n|sailors?|kayakers?|crew|students?|officers?|youths?|athletes?"
)
NOT_REAL = re.compile(
    r"\b(?:toy|stuffed|statues?|sculptures?|paintings?|costumes?|remote|fake|carousel|merry|skeleton|cartoon)\b"
)
_CLASSES = {name: re.compile(rf"\b(?:{words})\b") for name, words in SUBJECTS.items()}
_PEOPLE = re.compile(rf"\b(?:{PEOPLE})\b")


@dataclass(frozen=True)
class Photograph:
    """A picture with what it shows.

    Attributes:
        label: a class, or the name of a set that has none of them.
        opened: decodes it as RGB.
        main: whether the class is the first thing that most captions speak of; else it is beside or under people.
    """

    label: str
    opened: Callable[[], Image.Image]
    main: bool = True


def part_of(name: str) -> str:
    """Which part a picture of Flickr8k belongs to, by a checksum of its file name: a half is for testing."""
    tenth = zlib.crc32(name.encode()) % 10
    return "test" if tenth < 5 else "tuning" if tenth == 5 else "training"


def subject(caption: str) -> str | None:
    """What a caption speaks of first: a class, `people`, or None."""
    found = [(match.start(), name) for name, words in _CLASSES.items() if (match := words.search(caption))]
    if match := _PEOPLE.search(caption):
        found.append((match.start(), "people"))
    return min(found)[1] if found else None


def label_of(captions: Sequence[str], votes: int = 3) -> tuple[str, bool] | None:
    """The label of a picture by its captions, and whether its class is the main thing; None where they leave it open.

    A class is named by at least `votes` of them while none names another, or something that is not real; `people` are
    what all of them speak of first, and nothing else; `scene` is what has no class named, and not just people.
    """
    texts = [text.lower() for text in captions]
    named = {name: sum(words.search(text) is not None for text in texts) for name, words in _CLASSES.items()}
    firsts = Counter(map(subject, texts))
    label = max(named, key=lambda name: named[name])
    if named[label] == 0:
        return ("people" if firsts["people"] == len(texts) else "scene"), True
    real = not any(NOT_REAL.search(text) for text in texts)
    if named[label] >= votes and named[label] == sum(named.values()) and real:
        return label, firsts[label] >= 3
    return None


def flickr8k(folder: Path, part: str) -> Iterator[Photograph]:
    """Whole pictures of one class, of `people`, and of a `scene`, by their captions.

    Two captions are enough in the training part, which may err now and then; the others need three.
    """
    captions = json.loads(gzip.decompress((folder / "captions.json.gz").read_bytes()))["captions"]
    archive = zipfile.ZipFile(folder / "images_112.zip")
    for name, five in sorted(captions.items()):
        if part_of(name) == part and (found := label_of(five, votes=2 if part == "training" else 3)):
            yield Photograph(found[0], _opener(archive, f"{Path(name).stem}.webp"), found[1])


def camvid_cars(folder: Path, part: str, margin: float = MARGIN) -> Iterator[Photograph]:
    """Cars cut out of street scenes with `margin` of their box on each side."""
    from scipy import ndimage  # only here: the rest needs no scipy

    archive = zipfile.ZipFile(folder / "camvid_360x270.zip")
    for frame, mask in camvid_frames(archive, part):
        if Path(frame).stem in NOT_CARS:
            continue
        regions, _ = ndimage.label(mask == 8)
        for number, box in enumerate(ndimage.find_objects(regions), start=1):
            top, bottom, left, right = box[0].start, box[0].stop, box[1].start, box[1].stop
            height, width = bottom - top, right - left
            whole = left > 0 and right < mask.shape[1] and bottom < mask.shape[0]
            shaped = min(height, width) >= 32 and 0.8 <= width / height <= 2.6
            if whole and shaped and (regions[box] == number).mean() >= 0.6:
                x, y = margin * width, margin * height
                yield Photograph("automobile", _opener(archive, frame, (left - x, top - y, right + x, bottom + y)))


def strangers(data: Path, part: str) -> dict[str, list[Photograph]]:
    """Pictures of none of the ten classes, by set; at most 400 of each, a half of them for either part."""
    found: dict[str, list[Photograph]] = {}
    houses = zipfile.ZipFile(data / "houses" / "houses_96.zip")
    rooms = sorted(name for name in houses.namelist() if re.search(r"_(bedroom|bathroom|kitchen)\.webp$", name))
    found["rooms"] = [Photograph("rooms", _opener(houses, name)) for name in rooms]
    cells = zipfile.ZipFile(data / "bccd" / "bccd.zip")
    names = sorted(name for name in cells.namelist() if name.endswith(".jpg"))
    found["blood cells"] = [Photograph("blood cells", _opener(cells, name)) for name in names]
    fruit = zipfile.ZipFile(data / "fruit_detection" / "fruit_416.zip")
    names = sorted(name for name in fruit.namelist() if name.endswith(".webp"))
    found["fruit"] = [Photograph("fruit", _opener(fruit, name)) for name in names]
    draw = np.random.default_rng(7)
    noise = draw.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    found["noise"] = [Photograph("noise", lambda pixels=pixels: Image.fromarray(pixels)) for pixels in noise]  # type: ignore[misc]
    halves = {
        name: [one for i, one in enumerate(them[:: max(1, len(them) // 400)]) if (i % 2 == 0) == (part == "tuning")]
        for name, them in found.items()
    }
    halves["streets"] = camvid_streets(data / "camvid", part)
    flickr = list(flickr8k(data / "flickr8k", part))
    halves["people"] = [one for one in flickr if one.label == "people"][:200]
    halves["other scenes"] = [one for one in flickr if one.label == "scene"][:200]
    return halves


def camvid_streets(folder: Path, part: str) -> list[Photograph]:
    """Whole frames with hardly a car, a pedestrian or a bicycle."""
    archive = zipfile.ZipFile(folder / "camvid_360x270.zip")
    frames = camvid_frames(archive, part)
    return [
        Photograph("streets", _opener(archive, frame))
        for frame, mask in frames
        if np.isin(mask, (8, 9, 10)).mean() < 0.01
    ]


def camvid_part(name: str) -> str | None:
    """Which part a frame `folder/SEQUENCE_number.webp` belongs to, or None: no drive past the same cars is in two.

    The official validation frames are from the end of a training sequence, and the official test frames of 0001TP go on
    where its training frames end. So that end is for tuning as a whole, and those training frames are for nothing.
    """
    folder, stem = name.split("/")[0], Path(name).stem
    sequence, number = stem.split("_")
    if folder == "test":
        return "test"
    if sequence == "0016E5":
        return "tuning" if int(number) >= 7400 else "training"
    return "training" if sequence == "0006R0" else None


def camvid_frames(archive: zipfile.ZipFile, part: str) -> Iterator[tuple[str, np.ndarray]]:
    """Names of frames with their masks, class numbers uint8 (rows, columns)."""
    for name in sorted(archive.namelist()):
        if name.endswith(".webp") and camvid_part(name) == part:
            mask = archive.read(name.replace("/", "annot/", 1).replace(".webp", ".png"))
            yield name, np.asarray(Image.open(io.BytesIO(mask)))


def _opener(
    archive: zipfile.ZipFile, name: str, box: tuple[float, float, float, float] | None = None
) -> Callable[[], Image.Image]:
    def opened() -> Image.Image:
        picture = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
        if box is None:
            return picture
        left, top, right, bottom = box
        return picture.crop(
            (
                max(0, round(left)),
                max(0, round(top)),
                min(picture.width, round(right)),
                min(picture.height, round(bottom)),
            )
        )

    return opened


@dataclass(frozen=True)
class Classifier:
    """A version of the model with the manifest's preprocessing, in this process."""

    session: onnxruntime.InferenceSession
    labels: list[str]
    size: tuple[int, int]
    """Width and height of the graph's input, pixels."""
    resample: Image.Resampling
    abstain_above: float = math.inf

    @classmethod
    def read(cls, folder: Path, version: str) -> Classifier:
        """Open `folder/version/model.onnx` on one thread."""
        manifest = tomllib.loads((folder / "manifest.toml").read_text())
        if (folder / version / "manifest.toml").exists():
            manifest |= tomllib.loads((folder / version / "manifest.toml").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        keep_sums_exact(options)
        session = onnxruntime.InferenceSession(
            str(folder / version / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        resample = Image.Resampling[manifest["preprocessing"]["filter"].upper()]
        labels = (folder / version / "labels.txt").read_text().split()
        height, width = session.get_inputs()[0].shape[1:3]
        return cls(
            session, labels, (width, height), resample, manifest.get("calibration", {}).get("abstain_above", math.inf)
        )

    def outputs(self, photographs: Sequence[Photograph]) -> tuple[np.ndarray, np.ndarray]:
        """Logits float32 (N, K), and novelty float32 (N,): the graph's own, or the energy score."""
        logits, novelty = [], []
        for start in range(0, len(photographs), 32):
            pixels = np.stack(
                [
                    np.asarray(photograph.opened().resize(self.size, self.resample))
                    for photograph in photographs[start : start + 32]
                ]
            )
            found = dict(
                zip(
                    (output.name for output in self.session.get_outputs()),
                    self.session.run(None, {"image": pixels}),
                    strict=True,
                )
            )
            logits.append(found["logits"])
            novelty.append(found.get("novelty", -np.logaddexp.reduce(found["logits"], axis=1)))
        return np.concatenate(logits), np.concatenate(novelty)


def macro(rights: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean of the classes' shares, and half its 95 % interval; the classes are independent samples."""
    shares = [float(right.mean()) for right in rights]
    smoothed = [(right.sum() + 2) / (len(right) + 4) for right in rights]
    variance = sum(share * (1 - share) / len(right) for share, right in zip(smoothed, rights, strict=True))
    return sum(shares) / len(shares), 1.96 * math.sqrt(variance) / len(shares)


def area_under_curve(negatives: np.ndarray, positives: np.ndarray) -> float:
    """Probability that a positive scores above a negative (AUROC), ties counted as a half."""
    values = np.concatenate([negatives, positives])
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[where]
    above = ranks[len(negatives) :].sum() - len(positives) * (len(positives) + 1) / 2
    return float(above / (len(negatives) * len(positives)))


@dataclass(frozen=True)
class Score:
    """What a version answers about labelled photographs, row by row of the table."""

    answers: dict[str, np.ndarray]
    right: dict[str, np.ndarray]
    abstains: dict[str, np.ndarray]

    @classmethod
    def of(cls, classifier: Classifier, rows: dict[str, list[Photograph]]) -> Score:
        """Ask about every photograph."""
        answers, right, abstains = {}, {}, {}
        for name, photographs in rows.items():
            logits, novelty = classifier.outputs(photographs)
            answers[name] = np.array(classifier.labels)[logits.argmax(1)]
            right[name] = answers[name] == np.array([photograph.label for photograph in photographs])
            abstains[name] = novelty > classifier.abstain_above
        return cls(answers, right, abstains)

    def line(self, name: str, before: Score | None) -> str:
        """A row as a line of the table, with another version's share beside this one's."""
        most = ", ".join(f"{answer} {count}" for answer, count in Counter(self.answers[name].tolist()).most_common(3))
        return _line(name, self.right[name], self.abstains[name], before and before.right[name], most)

    def summary(self, rows: dict[str, list[Photograph]]) -> list[str]:
        """What all rows say together, in sentences."""
        right, abstains = (np.concatenate(list(found.values())) for found in (self.right, self.abstains))
        main = np.array([photograph.main for photographs in rows.values() for photograph in photographs])
        share, half = macro([found for found in self.right.values() if len(found) >= RARE])
        count = sum(len(found) >= RARE for found in self.right.values())
        return [
            f"mean of the {count} rows with {RARE} or more pictures {share:.1%} ± {half:.1%}",
            f"{right[main].mean():.1%} of the {main.sum()} pictures whose class is the main thing, "
            f"{right[~main].mean():.1%} of the {(~main).sum()} where it is beside people or under them",
            f"of the {(~abstains).mean():.0%} of all pictures from which it does not abstain, "
            f"{right[~abstains].mean():.1%} are named rightly",
        ]


def _line(name: str, right: np.ndarray, abstains: np.ndarray, before: np.ndarray | None, most: str) -> str:
    low, high = wilson(int(right.sum()), len(right))
    beside = "" if before is None else f" {before.mean():.1%} |"
    return (
        f"| {name} | {len(right)} |{beside} {right.mean():.1%} ({low:.1%} to {high:.1%}) "
        f"| {abstains.mean():.0%} | {most} |"
    )


def labelled(data: Path, part: str) -> dict[str, list[Photograph]]:
    """The photographs with a class, by row of the table."""
    found: dict[str, list[Photograph]] = {}
    for one in flickr8k(data / "flickr8k", part):
        if one.label in SUBJECTS:
            found.setdefault(f"{one.label} (Flickr8k)", []).append(one)
    return dict(sorted(found.items())) | {"automobile (CamVid)": list(camvid_cars(data / "camvid", part))}


def held_out(data: Path) -> list[Photograph]:
    """The 2,000 pictures of CIFAR-10 that calibrate the model: familiar ones."""
    mosaic = np.asarray(Image.open(data / "cifar10" / "train_5.webp").convert("RGB"))
    tiles = mosaic.reshape(100, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)[-2000:]
    return [Photograph("familiar", lambda pixels=pixels: Image.fromarray(pixels)) for pixels in tiles]  # type: ignore[misc]


def report(data: Path, part: str, classifiers: dict[str, Classifier]) -> list[str]:
    """The tables of the card, for one version, or for an earlier one beside it, which is the last of `classifiers`."""
    version, *earlier = classifiers
    rows = labelled(data, part)
    scores = {name: Score.of(classifier, rows) for name, classifier in classifiers.items()}
    score, before = scores[version], scores[earlier[0]] if earlier else None
    beside = f" version {earlier[0]} |" if earlier else ""
    right, abstains = (np.concatenate(list(found.values())) for found in (score.right, score.abstains))
    lines = [
        f"| photographs | pictures |{beside} version {version}, named rightly (95 % interval) | abstains | answers |",
        "|---" * (5 + len(earlier)) + "|",
        *(score.line(name, before) for name in rows),
        _line("all", right, abstains, np.concatenate(list(before.right.values())) if before else None, ""),
        "",
        *(f"- Version {name}: {'; '.join(scores[name].summary(rows))}." for name in classifiers),
    ]
    margins = (0.0, 0.12, 0.25, 0.5, 1.0)
    cars = {margin: list(camvid_cars(data / "camvid", part, margin)) for margin in margins}
    for name, classifier in classifiers.items():
        automobile = classifier.labels.index("automobile")
        shares = {m: (classifier.outputs(cars[m])[0].argmax(1) == automobile).mean() for m in margins}
        text = ", ".join(f"{1 / (1 + 2 * margin) ** 2:.0%}: {share:.0%}" for margin, share in shares.items())
        lines.append(f"- CamVid's cars by the share of the picture that the car's box fills, version {name}: {text}.")
    shown = [one for photographs in rows.values() for one in photographs]
    lines += [
        "",
        "| pictures of none of the classes | pictures | "
        + " | ".join(f"version {name}: AUROC against CIFAR-10; against photographs | abstains" for name in classifiers)
        + " |",
        "|---" * (2 + 2 * len(classifiers)) + "|",
    ]
    familiar = {
        name: (classifier.outputs(held_out(data))[1], classifier.outputs(shown)[1])
        for name, classifier in classifiers.items()
    }
    for kind, photographs in strangers(data, part).items():
        cells = []
        for name, classifier in classifiers.items():
            novelty = classifier.outputs(photographs)[1]
            curves = "; ".join(f"{area_under_curve(own, novelty):.3f}" for own in familiar[name])
            cells.append(f"{curves} | {(novelty > classifier.abstain_above).mean():.0%}")
        lines.append(f"| {kind} | {len(photographs)} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", choices=("tuning", "test"), default="test")
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="model folder (default: this one)")
    parser.add_argument("--version", default="4")
    parser.add_argument("--beside", default="3", help="a version to compare with; empty: none")
    parser.add_argument("--write", action="store_true", help="put the tables into the card")
    arguments = parser.parse_args()
    versions = [arguments.version, *([arguments.beside] if arguments.beside else [])]
    lines = report(
        arguments.data, arguments.part, {version: Classifier.read(arguments.model, version) for version in versions}
    )
    print("\n".join(lines))
    if arguments.write:
        write_block(arguments.model / "card.md", "photographs", lines)


if __name__ == "__main__":
    main()
