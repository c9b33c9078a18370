"""Train english-cnn, gated convolutions that suggest the next word, and beside them an LSTM at the same cost.

    PYTHONPATH=. python models/english-cnn/train.py --data DIR              # both, then export the first and score it once
    PYTHONPATH=. python models/english-cnn/train.py --data DIR --only rnn   # train one of them alone

DIR holds what `models/english-lstm/train.py` says; texts, vocabulary, batches and loss are those of that model. Both networks
have about as many weights, read the same batches in the same order and get the same CPU time. A run writes a checkpoint now
and then and continues from it when started again.

Letters: V vocabulary, E embedding width, B rows of a batch, T time steps.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "english-lstm")]

from batches import Batches, Sampled, clip, learning_rate  # noqa: E402
from gated import NETWORKS, ROWS_AXIS, LanguageModel  # noqa: E402
from gated_graph import Layer, Weights, build_graph  # noqa: E402
from network import RowAdam, SampledSoftmax, locked_dropout, log_likelihoods, perplexity  # noqa: E402
from texts import EVERYDAY, SOURCES, Corpus, prepare  # noqa: E402

from service.cpu import processor_name  # noqa: E402
from service.text.tokeniser import END  # noqa: E402
from training.card import data_table, table, write_block  # noqa: E402
from training.export import open_session, save  # noqa: E402
from training.flags import Flags, read_flags  # noqa: E402
from training.golden import write_golden  # noqa: E402
from training.loop import save_state, start  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class Config(Flags):
    """Hyper-parameters, the same for both networks."""

    out: Path = FOLDER
    work: Path = Path("runs/english-cnn")
    only: Literal["both", "cnn", "rnn"] = "both"
    """Train this network and stop; both: train what is not finished, then export and score."""
    minutes: float = 18.0
    """CPU time of one core for each network (min)."""
    embedding: int = 80
    time_steps: int = 35
    wikitext_rows: int = 40
    tatoeba_rows: int = 10
    dialogue_rows: int = 7
    request_rows: int = 4
    speech_rows: int = 3
    warm_up_steps: int = 200
    learning_rate: float = 3e-3
    final_learning_rate: float = 2e-5
    clip_norm: float = 1.0
    dropout: float = 0.1
    """Of what the network reads and of what it gives; a tenth of the weights of english-lstm's needs less than that."""
    reset: float = 0.02
    """Chance per batch that a WikiText row forgets its state."""
    candidates: int = 4000
    least_count: int = 4
    cycle: int = 1
    hidden: int = 0
    """Not used: batches of english-lstm ask for it."""

    @property
    def rows(self) -> dict[str, int]:
        """Rows of a batch that read everyday text, by source."""
        return {k: getattr(self, f"{k}_rows") for k in EVERYDAY}


def train(config: Config, kind: str, corpus: Corpus) -> tuple[LanguageModel, list[Any]]:
    """Fit one network for the CPU time that it gets; goes on from its checkpoint."""
    start(config)
    model = LanguageModel(len(corpus.vocabulary), config.embedding, NETWORKS[kind](config.embedding))
    axis, end = ROWS_AXIS[kind], corpus.vocabulary.index(END)
    adam = torch.optim.Adam(model.network.parameters(), betas=(0.9, 0.99), fused=True)
    tables = [RowAdam(model.embedding.data), RowAdam(model.bias.data)]
    batches, sampled = Batches(corpus, config), Sampled(corpus, config)
    path = config.work / f"{kind}.pt"
    step, spent_s, log, carried = 0, 0.0, [], None
    if path.exists():
        saved = torch.load(path, weights_only=False)
        model.load_state_dict(saved["model"])
        adam.load_state_dict(saved["adam"])
        for table, (first, second, steps) in zip(tables, saved["tables"], strict=True):
            table.first, table.second, table.steps = first, second, steps
        step, spent_s, log, batches.position = saved["step"], saved["spent_s"], saved["log"], saved["position"]
        batches.rng = saved["rng"]
        for windows, left in zip(batches.windows.values(), saved["left"], strict=True):
            windows.rng, windows.left = batches.rng, left

    trained = step

    def save() -> None:
        state = {
            "model": model.state_dict(), "adam": adam.state_dict(), "step": step, "spent_s": spent_s, "log": log,
            "tables": [(t.first, t.second, t.steps) for t in tables], "position": batches.position, "rng": batches.rng,
            "left": [windows.left for windows in batches.windows.values()],
        }  # fmt: skip
        save_state(path, state)

    rates = torch.full((config.wikitext_rows + sum(config.rows.values()), 1), config.dropout)
    began, budget_s, smooth = time.process_time() - spent_s, config.minutes * 60, 0.0
    model.train()
    while spent_s < budget_s:
        spent_s = time.process_time() - began
        rate = learning_rate(config, step, spent_s / budget_s)
        tokens, anew = batches.tokens()
        needed, candidates, place = sampled.rows(tokens)
        table = model.embedding.data[needed].requires_grad_()
        bias = model.bias.data[candidates].requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = nn.functional.embedding(place[tokens[:-1]], table)
            y, state = model.network(locked_dropout(x, rates), None if anew else carried)
            y = locked_dropout(y, rates)
        carried = continued(state.detach().float(), axis, config)
        targets, log_q = tokens[1:].flatten(), sampled.log_q[candidates]
        loss = SampledSoftmax.apply(
            y.flatten(0, 1), table[: len(candidates)], bias, log_q, place[targets], 1 / len(targets)
        )
        loss.backward()
        norm = clip([p.grad for p in model.network.parameters()] + [table.grad, bias.grad], config.clip_norm)
        adam.param_groups[0]["lr"] = rate
        adam.step()
        adam.zero_grad()
        tables[0].step(needed, table.grad, rate)
        tables[1].step(candidates, bias.grad, rate)
        step += 1
        smooth = loss.item() if not smooth else 0.98 * smooth + 0.02 * loss.item()
        if step % 100 == 0:
            print(
                f"{kind} step {step} loss {smooth:.3f} norm {float(norm):.2f} rate {rate:.1e} {spent_s:.0f} s",
                flush=True,
            )
        if step % 1000 == 0:
            log.append([round(spent_s / 60, 3), validation(model, corpus, end)])
            print(f"== {kind} step {step} {log[-1]}", flush=True)
            began = time.process_time() - spent_s  # watching is not training
        if step % 100 == 0:
            save()
    if step > trained:
        log.append([round(spent_s / 60, 3), validation(model, corpus, end)])
        print(f"== {kind} step {step} {log[-1]}", flush=True)
        save()
    return model.eval(), log


def continued(state: Tensor, axis: int, config: Config) -> Tensor:
    """The state before the next batch: WikiText rows go on with theirs, most of the time, and the others begin anew."""
    rows = torch.arange(state.shape[axis])
    keep = (rows < config.wikitext_rows) & (torch.rand(len(rows)) >= config.reset)
    shape = [1] * state.ndim
    shape[axis] = len(rows)
    return state * keep.float().reshape(shape)


def validation(model: LanguageModel, corpus: Corpus, end: int) -> dict[str, float]:
    """Perplexity on a part of both validation texts."""
    model.eval()
    with torch.no_grad():
        found = {
            "WikiText-2": round(perplexity(model, corpus.wikitext["valid"], end, limit=32_000), 2),
            "everyday": round(perplexity(model, corpus.valid, end, limit=32_000), 2),
        }
    model.train()
    return found


# -------------------------------------------------------------------------------------------------------------- export


def rounded(model: LanguageModel, order: np.ndarray) -> Weights:
    """To the stored precision, the words in the order in which they are served; the model gets the rounded numbers, too."""
    with torch.no_grad():
        table = model.embedding[torch.from_numpy(order)]
        scale = (table.abs().amax(1) / 127).half().clamp(min=1e-7)
        words = (table / scale.float()[:, None]).round().clamp(-127, 127)
        bias = model.bias[torch.from_numpy(order)].half()
        model.embedding.data, model.bias.data = words * scale.float()[:, None], bias.float()
        layers = []
        for norm, gate in zip(model.network.norms, model.network.gates, strict=True):
            gate.weight.copy_(gate.weight.half().float())
            layers.append(
                Layer(norm.weight.numpy(), norm.bias.numpy(), gate.weight.half().numpy().T.copy(), gate.bias.numpy())
            )
    last = model.network.last
    return Weights(
        words.numpy().astype(np.int8),
        scale.numpy(),
        bias.numpy(),
        tuple(layers),
        last.weight.detach().numpy(),
        last.bias.detach().numpy(),
    )


@torch.no_grad()
def check(path: Path, model: LanguageModel, tokens: np.ndarray) -> float:
    """How far ONNX Runtime and torch are apart over real text, as a share of what is allowed: a batch of unequal rows, in pieces, with
    the state between them."""
    session = open_session(path)
    rows = tokens[:320].reshape(8, 40)
    lengths = np.array([40, 1, 3, 17, 40, 33, 2, 40], np.int32)
    width = session.get_inputs()[2].shape[1]
    state, torch_state, worst = np.zeros((8, width), np.float32), [None] * 8, 0.0
    empty = np.zeros((8, 1), np.int64), np.zeros(8, np.int32)
    for _ in range(3):
        feed = {"tokens": rows, "sequence_lens": lengths, "state": state, "explain": np.ones(8, bool)}
        logits, after, bits = session.run(None, feed)
        again = session.run(
            ["logits"], {"tokens": empty[0], "sequence_lens": empty[1], "state": after, "explain": np.zeros(8, bool)}
        )[0]
        for k, length in enumerate(lengths):
            y, torch_state[k] = model.read(torch.from_numpy(rows[k, :length, None]), torch_state[k])
            scores = (y[:, 0] @ model.embedding.T + model.bias).log_softmax(1)
            log_p = torch.from_numpy(logits[k]).log_softmax(0)
            allowed = 1e-4 * scores[-1].abs().clamp(min=1)
            worst = max(worst, float(((log_p - scores[-1]).abs() / allowed).max()))
            worst = max(worst, float(np.abs(again[k] - logits[k]).max()) / 1e-4)
            told = -scores[:-1].gather(1, torch.from_numpy(rows[k, 1:length, None]))[:, 0] / math.log(2)
            if length > 1:
                worst = max(worst, float(np.abs(bits[k, 1:length] - told.numpy()).max()) / 1e-2)
        state, rows = after, np.roll(rows, 1, axis=0)
    return worst


GOLDEN = (
    {"text": "The capital of", "top_k": 3},
    {"text": "I would lik", "top_k": 3},
    {"text": "Can you please ", "top_k": 3, "explain": True},
)


@torch.no_grad()
def test_figures(model: LanguageModel, corpus: Corpus) -> dict[str, Any]:
    """What a network reaches on the official test split of WikiText-2, read in 32 parallel pieces."""
    end = corpus.vocabulary.index(END)
    log_p = log_likelihoods(model, corpus.wikitext["test"], end)
    return {
        "WikiText-2 test perplexity, in 32 pieces": round(math.exp(-log_p.mean(dtype=np.float64)), 2),
        "tokens": len(log_p),
    }


def macs(network: nn.Module) -> int:
    """Multiplications of a word, the comparison with the vocabulary left out: every weight of a matrix once."""
    return sum(p.numel() for p in network.parameters() if p.ndim > 1)


def main(config: Config) -> None:
    """Data -> both networks -> graph -> check -> figures."""
    corpus = prepare(config.data, 1, config.least_count, config.work / "corpus.pt")
    story: dict[str, Any] = {"minutes of CPU for each": config.minutes, "processor": processor_name(), "networks": {}}
    for kind, network in NETWORKS.items():
        if config.only not in ("both", kind):
            continue
        count = sum(p.numel() for p in network(config.embedding).parameters())
        print(f"{kind}: {count:,} weights beside the table of {len(corpus.vocabulary):,} words", flush=True)
        model, log = train(config, kind, corpus)
        if config.only == "both":
            own = {"weights beside the table": count, "MACs a word beside the comparison": macs(model.network)}
            story["networks"][kind] = own | test_figures(model, corpus) | {"validation": log}
            print(kind, story["networks"][kind], flush=True)
            if kind == "cnn":  # after its figures: an export reorders the model's words, not the corpus
                export(config, model, corpus)
    if config.only == "both":
        (config.out / "training.json").write_text(json.dumps(story, indent=2) + "\n", encoding="utf-8")
        write_block(config.out / "card.md", "metrics", [*lines(story), "", *data_table(config.data, *SOURCES)])


def lines(story: dict[str, Any]) -> list[str]:
    """The card's table of both networks."""
    header = [
        f"{story['minutes of CPU for each']:g} minutes of a core for each",
        "weights beside the table of words",
        "WikiText-2 test perplexity, in 32 pieces",
    ]
    names = {"cnn": "gated convolutions (this model)", "rnn": "LSTM, not shipped"}
    rows = [
        [names[kind], f"{own['weights beside the table']:,}", own["WikiText-2 test perplexity, in 32 pieces"]]
        for kind, own in story["networks"].items()
    ]
    return table(header, rows)


def export(config: Config, model: LanguageModel, corpus: Corpus) -> None:
    """Write the version's folder, in english-lstm's order of words; figures come from `gridloop evaluate`."""
    vocabulary = FOLDER.parent / "english-lstm" / "1" / "vocabulary.txt"
    served = vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    number = {word: i for i, word in enumerate(corpus.vocabulary)}
    order = np.array([number[word] for word in served])
    weights = rounded(model, order)
    version = config.out / "1"
    save(build_graph(weights), version / "model.onnx")
    (version / "vocabulary.txt").write_bytes(vocabulary.read_bytes())
    place = np.argsort(order)
    worst = check(version / "model.onnx", model, place[corpus.wikitext["valid"]])
    print(
        f"ONNX and torch differ by {worst:.2f} of what is allowed; the state's largest number: {weights.largest:.1f}",
        flush=True,
    )
    if worst > 1:
        raise SystemExit("that is too much")
    write_golden(version, GOLDEN, tolerance=0.002, fields=("predictions", "completing", "tokens"))


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
