"""Try the classifier on photographs that are not from CIFAR-10: those it should name, and those it should not know.

    python models/cifar10-cnn/photographs.py --data DIR --write            # the test part, into the card
    python models/cifar10-cnn/photographs.py --data DIR --part tuning --version 1

DIR holds the public data sets `flickr8k`, `camvid`, `houses`, `bccd` and `fruit_detection`, packed as below. Most of them
are for research only: the pictures are looked at, nothing is trained on them, and none is stored here. All choices were
made on the tuning part. Needs numpy, onnxruntime, pillow and scipy.

Photographs with a class of CIFAR-10, by fixed rules:
    Flickr8k (Hodosh, Young, Hockenmaier, 2013), whole pictures: at least three of the five captions have the same class
        as their first person, animal or vehicle, and no caption speaks of another class, or of a toy or a statue.
        A third of the pictures, chosen by a checksum of the name, is the tuning part; a class that has fewer than
        `RARE` pictures is for testing as a whole.
    CamVid (Brostow, Fauqueur, Cipolla, 2008), cut out as a person would: each connected region of the class car that is
        at least 32 pixels wide and high, fills most of its box and is not cut by the picture's edge, with a margin.
        Training frames are the tuning part, validation and test frames the test part.
Pictures of none of the ten classes: rooms (Houses), blood cells (BCCD), fruit, street scenes with hardly a car (CamVid),
people and nothing else (Flickr8k), and noise.

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

MODEL_FOLDER = Path(__file__).resolve().parent
RARE = 30
"""Pictures (count): a class with fewer is not divided into a tuning and a test part, and is not in the macro average."""
MOST = 300
"""Most pictures of one class from Flickr8k (count), the first by name; nearly all of its animals are dogs."""
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

Photograph = tuple[str, Callable[[], Image.Image]]
"""Its label (a class, or the name of a set without one) and how to open it as RGB."""


def subject(caption: str) -> str | None:
    """What a caption speaks of first: a class, `people`, or None."""
    found = [(match.start(), name) for name, words in _CLASSES.items() if (match := words.search(caption))]
    if match := _PEOPLE.search(caption):
        found.append((match.start(), "people"))
    return min(found)[1] if found else None


def flickr8k(folder: Path, part: str) -> Iterator[Photograph]:
    """Whole pictures of one class, and of `people`, by their captions; `part` is `tuning` or `test`."""
    captions = json.loads(gzip.decompress((folder / "captions.json.gz").read_bytes()))["captions"]
    by_label: dict[str, list[str]] = {}
    for name, five in sorted(captions.items()):
        texts = [text.lower() for text in five]
        label, votes = Counter(map(subject, texts)).most_common(1)[0]
        others = [words for other, words in _CLASSES.items() if other != label]
        agreed = label is not None and votes >= (5 if label == "people" else 3)
        if agreed and not any(words.search(text) for words in (NOT_REAL, *others) for text in texts):
            by_label.setdefault(str(label), []).append(name)
    archive = zipfile.ZipFile(folder / "images_112.zip")
    for label, names in by_label.items():
        if len(names) >= RARE:
            names = [name for name in names if (zlib.crc32(name.encode()) % 3 == 0) == (part == "tuning")]
        elif part == "tuning":
            continue
        for name in names[:MOST]:
            yield label, _opener(archive, f"{Path(name).stem}.webp")


def camvid_cars(folder: Path, part: str, margin: float = MARGIN) -> Iterator[Photograph]:
    """Cars cut out of street scenes with `margin` of their box on each side."""
    from scipy import ndimage  # only here: the rest needs no scipy

    archive = zipfile.ZipFile(folder / "camvid_360x270.zip")
    for frame, mask in _camvid_frames(archive, part):
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
                yield "automobile", _opener(archive, frame, (left - x, top - y, right + x, bottom + y))


def strangers(data: Path, part: str) -> dict[str, list[Photograph]]:
    """Pictures of none of the ten classes, by set; at most 400 of each, a half of them for either part."""
    found: dict[str, list[Photograph]] = {}
    houses = zipfile.ZipFile(data / "houses" / "houses_96.zip")
    rooms = sorted(name for name in houses.namelist() if re.search(r"_(bedroom|bathroom|kitchen)\.webp$", name))
    found["rooms"] = [("rooms", _opener(houses, name)) for name in rooms]
    cells = zipfile.ZipFile(data / "bccd" / "bccd.zip")
    found["blood cells"] = [
        ("blood cells", _opener(cells, name)) for name in sorted(cells.namelist()) if name.endswith(".jpg")
    ]
    fruit = zipfile.ZipFile(data / "fruit_detection" / "fruit_416.zip")
    found["fruit"] = [("fruit", _opener(fruit, name)) for name in sorted(fruit.namelist()) if name.endswith(".webp")]
    streets = zipfile.ZipFile(data / "camvid" / "camvid_360x270.zip")
    empty = [
        frame
        for every in ("tuning", "test")
        for frame, mask in _camvid_frames(streets, every)
        if np.isin(mask, (8, 9, 10)).mean() < 0.01
    ]
    found["streets"] = [("streets", _opener(streets, frame)) for frame in empty]
    draw = np.random.default_rng(7)
    noise = draw.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    found["noise"] = [("noise", lambda pixels=pixels: Image.fromarray(pixels)) for pixels in noise]
    halves = {
        name: [one for i, one in enumerate(them[:: max(1, len(them) // 400)]) if (i % 2 == 0) == (part == "tuning")]
        for name, them in found.items()
    }
    people = [one for one in flickr8k(data / "flickr8k", part) if one[0] == "people"]
    return halves | {"people": people[:200]}


def _camvid_frames(archive: zipfile.ZipFile, part: str) -> Iterator[tuple[str, np.ndarray]]:
    """Names of frames with their masks, class numbers uint8 (rows, columns)."""
    folders = ("train",) if part == "tuning" else ("val", "test")
    for name in sorted(archive.namelist()):
        if name.split("/")[0] in folders and name.endswith(".webp"):
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
        session = onnxruntime.InferenceSession(
            str(folder / version / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        resample = Image.Resampling[manifest["preprocessing"]["filter"].upper()]
        labels = (folder / version / "labels.txt").read_text().split()
        return cls(session, labels, resample, manifest.get("calibration", {}).get("abstain_above", math.inf))

    def outputs(self, photographs: Sequence[Photograph]) -> tuple[np.ndarray, np.ndarray]:
        """Logits float32 (N, K), and novelty float32 (N,): the graph's own, or the energy score."""
        logits, novelty = [], []
        for start in range(0, len(photographs), 32):
            pixels = np.stack(
                [np.asarray(opened().resize((32, 32), self.resample)) for _, opened in photographs[start : start + 32]]
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
class Row:
    """One class of one set: what was answered, and how strange the pictures seemed."""

    name: str
    answers: np.ndarray
    right: np.ndarray
    abstains: np.ndarray

    @property
    def line(self) -> str:
        """As a line of the table."""
        low, high = wilson(int(self.right.sum()), len(self.right))
        most = ", ".join(f"{answer} {count}" for answer, count in Counter(self.answers.tolist()).most_common(4))
        return (
            f"| {self.name} | {len(self.right)} | {self.right.mean():.1%} ({low:.1%} to {high:.1%}) "
            f"| {self.abstains.mean():.0%} | {most} |"
        )


def score(classifier: Classifier, data: Path, part: str) -> list[Row]:
    """One row for each class of each set of labelled photographs."""
    flickr = [one for one in flickr8k(data / "flickr8k", part) if one[0] != "people"]
    rows = []
    for name, photographs in (("Flickr8k", flickr), ("CamVid", list(camvid_cars(data / "camvid", part)))):
        logits, novelty = classifier.outputs(photographs)
        answers = np.array(classifier.labels)[logits.argmax(1)]
        truth = np.array([label for label, _ in photographs])
        for label in sorted(set(truth)):
            own = truth == label
            abstains = novelty[own] > classifier.abstain_above
            rows.append(Row(f"{label} ({name})", answers[own], answers[own] == label, abstains))
    return rows


def held_out(data: Path) -> list[Photograph]:
    """The 2,000 pictures of CIFAR-10 that calibrate the model: familiar ones."""
    mosaic = np.asarray(Image.open(data / "cifar10" / "train_5.webp").convert("RGB"))
    tiles = mosaic.reshape(100, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)[-2000:]
    return [("familiar", lambda pixels=pixels: Image.fromarray(pixels)) for pixels in tiles]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", choices=("tuning", "test"), default="test")
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="model folder (default: this one)")
    parser.add_argument("--version", default="2")
    parser.add_argument("--write", action="store_true", help="put the tables into the card")
    arguments = parser.parse_args()
    classifier = Classifier.read(arguments.model, arguments.version)
    rows = score(classifier, arguments.data, arguments.part)
    right = np.concatenate([row.right for row in rows])
    abstains = np.concatenate([row.abstains for row in rows])
    low, high = wilson(int(right.sum()), len(right))
    large = [row.right for row in rows if len(row.right) >= RARE]
    share, half = macro(large)
    kept, known = right[~abstains], (~abstains).mean()
    lines = [
        "| photographs | pictures | named rightly (95 % interval) | abstains | answers |",
        "|---|---|---|---|---|",
        *(row.line for row in rows),
        f"| all | {len(right)} | {right.mean():.1%} ({low:.1%} to {high:.1%}) | {abstains.mean():.0%} | |",
        "",
        f"Mean of the {len(large)} rows with {RARE} or more pictures: {share:.1%} ± {half:.1%}. Of the {known:.0%} of all "
        f"pictures from which it does not abstain, {kept.mean():.1%} are named rightly.",
    ]
    cars = {
        margin: classifier.outputs(list(camvid_cars(arguments.data / "camvid", arguments.part, margin)))[0]
        for margin in (0.0, 0.12, 0.25, 0.5, 1.0)
    }
    automobile = classifier.labels.index("automobile")
    sizes = [f"{1 / (1 + 2 * m) ** 2:.0%}: {(found.argmax(1) == automobile).mean():.0%}" for m, found in cars.items()]
    lines += ["", "CamVid's cars by the share of the picture that the car's box fills: " + ", ".join(sizes) + "."]
    lines += ["", "| pictures of none of the classes | pictures | AUROC | AUROC of the energy alone | abstains |"]
    lines += ["|---|---|---|---|---|"]
    logits, familiar = classifier.outputs(held_out(arguments.data))
    familiar_energy = -np.logaddexp.reduce(logits, axis=1)
    for name, photographs in strangers(arguments.data, arguments.part).items():
        logits, novelty = classifier.outputs(photographs)
        curve = area_under_curve(familiar, novelty)
        plain = area_under_curve(familiar_energy, -np.logaddexp.reduce(logits, axis=1))
        strange = (novelty > classifier.abstain_above).mean()
        lines.append(f"| {name} | {len(novelty)} | {curve:.3f} | {plain:.3f} | {strange:.0%} |")
    print("\n".join(lines))
    if arguments.write:
        card = arguments.model / "card.md"
        block = "<!-- photographs -->\n" + "\n".join(lines) + "\n<!-- /photographs -->"
        text = re.sub(
            r"<!-- photographs -->.*?<!-- /photographs -->", lambda _: block, card.read_text(), flags=re.DOTALL
        )
        card.write_text(text)


if __name__ == "__main__":
    main()
