"""Train english-lstm: a word-level LSTM that suggests the next word of everyday English and of WikiText-2.

Data -> LSTM -> a table of the trigrams that the training texts hold, mixed with it -> ONNX -> check -> figures.

    python models/english-lstm/train.py --data DIR                 # prepare, train, evaluate, export, check
    python models/english-lstm/train.py --data DIR --resume        # go on from the last checkpoint
    python models/english-lstm/train.py --data DIR --export-only   # evaluate and export the last checkpoint
    python models/english-lstm/train.py --data DIR --cycle 2 --warm-start models/english-lstm/1 --work DIR2
                                                                   # another cosine cycle from an exported version

DIR holds two folders, every file as its origin publishes it, packed:

- `wikitext2/{train,valid,test}.txt.gz`: WikiText-2 (Merity et al. 2016, CC BY-SA 3.0), the tokenised files of
  https://github.com/pytorch/examples (word_language_model/data/wikitext-2);
- `english_text/`: Tatoeba English sentences (manythings.org/anki, CC BY 2.0), Schema-Guided Dialogue
  (https://github.com/google-research-datasets/dstc8-schema-guided-dialogue, CC BY-SA 4.0), banking77
  (https://github.com/PolyAI-LDN/task-specific-datasets, CC BY 4.0), clinc150 (https://github.com/clinc/oos-eval,
  CC BY 3.0), US presidential addresses (https://github.com/nltk/nltk_data, public domain).

| file | holds |
|---|---|
| `texts.py` | the data: texts, vocabulary, windows |
| `network.py` | the LSTM in torch, its sampled softmax and its likelihoods |
| `batches.py` | what a step reads: rows of text, sampled words, rates |
| `train.py` | the loop, the export, the golden samples |
| `trigrams.py` | the table of what followed pairs of words |
| `weights.py` | what is stored, and how it is read back from a version |
| `graph.py` | the exported graph |
| `reference.py` | the same in torch, and how far the two are apart |
| `record.py` | the figures |

Letters: V vocabulary, E embedding width, H hidden units, B rows of a batch, T time steps, N = B * T targets.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from batches import Batches, Dropout, Sampled, clip, learning_rate
from graph import build_graph
from network import LanguageModel, RowAdam, SampledSoftmax, locked_dropout, perplexity
from onnx import helper
from record import record, score
from reference import Reference, check
from texts import EVERYDAY, Corpus, prepare
from torch import Tensor, nn
from trigrams import count_trigrams
from weights import Trigrams, Weights, reordered

from service.graph import Signature, TensorSpec
from service.tasks.base import ModelFolder
from service.tasks.next_word_prediction import NextWordInput, NextWordPrediction
from service.text.tokeniser import END
from training.export import save
from training.flags import Flags, read_flags
from training.loop import Average, save_state, start

FOLDER = Path(__file__).resolve().parent
AVERAGE_EVERY = 10
"""Batches between two updates of the moving average."""


@dataclass(frozen=True, kw_only=True)
class Config(Flags):
    """Every knob of the training; each is a flag of the same name."""

    out: Path = FOLDER
    work: Path = Path("runs/english-lstm")
    resume: bool = False
    """Go on from the last checkpoint."""
    warm_start: Path | None = None
    """Start from the weights of this exported version."""
    export_only: bool = False
    """Do not train: evaluate and export the last checkpoint."""
    skip_test: bool = False
    """Leave the test files and the recorded figures alone."""

    embedding: int = 256
    hidden: int = 512
    time_steps: int = 35
    wikitext_rows: int = 40
    """Rows of a batch that read WikiText-2 from end to end, keeping their state from batch to batch."""
    tatoeba_rows: int = 10
    dialogue_rows: int = 7
    request_rows: int = 4
    speech_rows: int = 3
    """Rows that read a window of everyday text, starting at a line's start from the zero state, as a caller does."""
    steps: int = 9600
    warm_up_steps: int = 200
    learning_rate: float = 3e-3
    final_learning_rate: float = 2e-5
    clip_norm: float = 1.0
    dropout_in: float = 0.2
    dropout_hidden: float = 0.25
    dropout_out: float = 0.25
    wikitext_dropout_in: float = 0.2
    wikitext_dropout_hidden: float = 0.25
    wikitext_dropout_out: float = 0.25
    """The same three for the WikiText rows, which see each sentence many times where most dialogues are seen once."""
    wikitext_dropout_word: float = 0.0
    """Share of the words whose every occurrence in the WikiText rows of a batch is read as zeros."""
    dropout_recurrent: float = 0.0
    """Share of the LSTM's hidden-to-hidden weights that a batch does without (DropConnect, as in AWD-LSTM)."""
    average_steps: float = 500.0
    """Time constant of the moving average of the weights (batches)."""
    followers: int = 16
    """Words that the trigram table keeps for a pair of words, the most frequent first (count)."""
    discount: float = 0.85
    """Taken off each count of a trigram, so that what was never seen keeps a share (count)."""
    reset: float = 0.02
    """Chance per batch that a WikiText row forgets its state, so that the model copes with a fresh one."""
    candidates: int = 4000
    """Expected number of words the sampled softmax compares, besides the targets of the batch (count)."""
    least_count: int = 4
    """An everyday word outside WikiText-2's own vocabulary needs this many occurrences to enter ours (count)."""
    deadline_minutes: float = 0.0
    """When above 0, the schedule shrinks so that training ends after this wall-clock time (min)."""
    cycle: int = 1
    """Which cosine cycle this is: a later one reads the everyday lines in another order."""
    evaluate_every: int = 1000

    @property
    def rows(self) -> dict[str, int]:
        """Rows of a batch that read everyday text, by source."""
        return {k: getattr(self, f"{k}_rows") for k in EVERYDAY}

    def knobs(self) -> dict[str, Any]:
        """The hyper-parameters, without what says where things lie."""
        places = {"data", "out", "work", "resume", "warm_start", "export_only", "skip_test"}
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in places}


# ---------------------------------------------------------------------------------------------------------------- loop


def report(what: str, model: LanguageModel, corpus: Corpus) -> None:
    """Perplexity on a part of both validation texts."""
    end = corpus.vocabulary.index(END)
    wiki = perplexity(model, corpus.wikitext["valid"], end, limit=32_000)
    daily = perplexity(model, corpus.valid, end, limit=32_000)
    print(f"== {what}: valid (part) WikiText-2 {wiki:.1f} everyday {daily:.1f}", flush=True)


def train(model: LanguageModel, corpus: Corpus, config: Config, earlier: list[dict[str, Any]]) -> None:
    """Run the loop until the schedule ends; `earlier` says how the weights that it starts from came about."""
    checkpoint = config.work / "checkpoint.pt"
    batches = Batches(corpus, config)
    sampled = Sampled(corpus, config)
    dense = [p for name, p in model.named_parameters() if name not in ("embedding", "bias")]
    adam = torch.optim.Adam(dense, betas=(0.9, 0.99), fused=True)
    tables = [RowAdam(model.embedding.data), RowAdam(model.bias.data)]
    average = Average(model, math.exp(-AVERAGE_EVERY / config.average_steps), warm_up=False)
    step, progress, spent = 0, 0.0, 0.0
    stages: list[dict[str, Any]] = [{"from_step": 0, "config": config.knobs()}]
    carried: tuple[Tensor, Tensor] | None = None
    if config.resume and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(saved["model"])
        average.values = saved["average"]
        adam.load_state_dict(saved["adam"])
        for table, (first, second, steps) in zip(tables, saved["tables"], strict=True):
            table.first, table.second, table.steps = first, second, steps
        step, progress, spent = saved["step"], saved["progress"], saved["spent"]
        batches.position = saved["position"]
        stages, earlier = saved["stages"], saved["earlier"]
        if stages[-1]["config"] != config.knobs():
            stages.append({"from_step": step, "config": config.knobs()})
        torch.manual_seed(100_000 * config.cycle + config.seed + step)

    def save() -> None:
        state = {
            "model": model.state_dict(), "adam": adam.state_dict(), "stages": stages, "earlier": earlier,
            "average": average.values,
            "tables": [(t.first, t.second, t.steps) for t in tables],
            "step": step, "position": batches.position, "progress": progress, "spent": spent,
        }  # fmt: skip
        save_state(checkpoint, state)

    dropout = Dropout(config)
    began, smooth, cpu = time.monotonic() - spent, None, time.process_time()
    model.train()
    while progress < 1:
        spent = time.monotonic() - began
        progress = (step + 1) / config.steps
        if config.deadline_minutes:
            progress = max(progress, spent / 60 / config.deadline_minutes)
        rate = learning_rate(config, step, progress)

        tokens, (h, c) = batches.next(carried)
        needed, candidates, place = sampled.rows(tokens)
        table = model.embedding.data[needed].requires_grad_()
        bias = model.bias.data[candidates].requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = nn.functional.embedding(place[tokens[:-1]], table)
            x = dropout.words(x, place[tokens[:-1]], len(needed))
            x = locked_dropout(x, dropout.rates["in"])
            recurrent = nn.functional.dropout(model.lstm.weight_hh_l0, config.dropout_recurrent)
            y, (h, c) = torch.func.functional_call(model.lstm, {"weight_hh_l0": recurrent}, (x, (h, c)))
            y = locked_dropout(model.down(locked_dropout(y, dropout.rates["hidden"])), dropout.rates["out"])
        targets, log_q = tokens[1:].flatten(), sampled.log_q[candidates]
        loss = SampledSoftmax.apply(
            y.flatten(0, 1), table[: len(candidates)], bias, log_q, place[targets], 1 / len(targets)
        )
        loss.backward()
        carried = (h[:, : config.wikitext_rows].detach().float(), c[:, : config.wikitext_rows].detach().float())

        norm = clip([p.grad for p in dense] + [table.grad, bias.grad], config.clip_norm)
        adam.param_groups[0]["lr"] = rate
        adam.step()
        adam.zero_grad()
        tables[0].step(needed, table.grad, rate)
        tables[1].step(candidates, bias.grad, rate)

        step += 1
        if step % AVERAGE_EVERY == 0:
            average.update()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if step % 100 == 0 or step == 20:
            print(
                f"step {step} progress {progress:.3f} loss {smooth:.3f} norm {float(norm):.2f} rate {rate:.2e}"
                f" {spent / step * 1e3:.0f} ms/step {(time.process_time() - cpu) / step * 1e3:.0f} cpu-ms", flush=True,
            )  # fmt: skip
        if step % config.evaluate_every == 0:
            for name in ("now", "average"):
                report(f"step {step} {name}", model, corpus)
                average.swap()
        if step % 250 == 0:
            save()
    save()


def choose(model: LanguageModel, saved: dict[str, Any], corpus: Corpus) -> dict[str, Any]:
    """Load the last weights or their moving average, whichever predicts WikiText-2's validation split (a part) better."""
    end, found = corpus.vocabulary.index(END), {}
    for name in ("model", "average"):
        model.load_state_dict(saved[name])
        found[name] = {
            "WikiText-2": round(perplexity(model, corpus.wikitext["valid"], end, limit=64_000), 2),
            "everyday": round(perplexity(model, corpus.valid, end, limit=32_000), 2),
        }
        print(f"validation perplexity of {name}: {found[name]}", flush=True)
    best = min(found, key=lambda name: found[name]["WikiText-2"])
    model.load_state_dict(saved[best])
    return {"weights": best, "validation_perplexity": found[best]}


# -------------------------------------------------------------------------------------------------------------- export


def round_weights(model: LanguageModel, vocabulary: list[str], order: np.ndarray, trigrams: Trigrams) -> Weights:
    """Round to the stored precision, and put the words into the order in which they are served."""
    get = {k: v.detach().float().numpy() for k, v in model.state_dict().items()}
    table, bias = get["embedding"][order], get["bias"][order]
    scale = np.abs(table).max(1) / 127
    return Weights(
        [vocabulary[i] for i in order],
        np.round(table / scale[:, None]).astype(np.int8),
        scale.astype(np.float32),
        bias,
        get["lstm.weight_ih_l0"].astype(np.float16),
        get["lstm.weight_hh_l0"].astype(np.float16),
        get["lstm.bias_ih_l0"] + get["lstm.bias_hh_l0"],
        get["down.weight"].astype(np.float16),
        get["down.bias"],
        reordered(trigrams, order),
    )


def serving_order(corpus: Corpus) -> np.ndarray:
    """Most frequent *inside a sentence* first: so the first spelling of a word is the one that does not open one."""
    inside = np.zeros(len(corpus.vocabulary), np.int64)
    opening = [corpus.vocabulary.index(t) for t in (END, ".", "!", "?", '"', "=", "(")]
    for tokens in [corpus.wikitext["train"], *corpus.everyday.values()]:
        inside += np.bincount(tokens[1:][~np.isin(tokens[:-1], opening)], minlength=len(inside))
    return np.lexsort((np.arange(len(inside)), -inside))


GOLDEN = (
    {"text": "The capital of", "top_k": 3},
    {"text": "I would lik", "top_k": 3},
    {"text": "Can you please ", "top_k": 3, "explain": True},
)


def golden(version: Path, reference: Reference) -> list[dict[str, Any]]:
    """Answers to real requests, computed by the task with torch in the place of ONNX Runtime."""
    proto = onnx.load(version / "model.onnx")

    def specs(values: Any) -> dict[str, TensorSpec]:
        return {
            v.name: TensorSpec(
                v.name,
                helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name,
                tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim),
            )
            for v in values
        }

    signature = Signature(specs(proto.graph.input), specs(proto.graph.output))
    task = NextWordPrediction(ModelFolder(FOLDER.name, version.name, version, signature))
    entries = []
    for request in GOLDEN:
        steps = task.steps(NextWordInput.model_validate(request))
        try:
            run = next(steps)
            while True:
                run = steps.send(reference.run(dict(run.tensors)))
        except StopIteration as stop:
            answer = stop.value.model_dump(include={"predictions", "completing", "tokens"})
        if answer["tokens"] is None:
            del answer["tokens"]
        entries.append({"input": request, "output": answer, "tolerance": 0.002})
    return entries


def export(model: LanguageModel, corpus: Corpus, trigrams: Trigrams, version: Path) -> None:
    """Write a version's folder: graph, vocabulary, golden answers."""
    order = serving_order(corpus)
    weights = round_weights(model, corpus.vocabulary, order, trigrams)
    save(build_graph(weights), version / "model.onnx")
    (version / "vocabulary.txt").write_text("\n".join(weights.vocabulary) + "\n", encoding="utf8")
    reference = Reference(weights)
    worst = check(version / "model.onnx", reference, corpus, order)
    if worst > 1:
        raise SystemExit(f"ONNX and torch differ by {worst:.1f} times as much as is allowed")
    entries = golden(version, reference)
    (version / "golden.json").write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf8")


def main(config: Config) -> None:
    """Data -> network -> loop -> trigrams -> graph -> check -> figures."""
    start(config)
    corpus = prepare(config.data, config.seed, config.least_count, config.work / "corpus.pt")
    sizes = {k: len(v) for k, v in [*corpus.wikitext.items(), *corpus.everyday.items()]}
    print(f"{len(corpus.vocabulary)} words, {corpus.official} of them official; tokens {sizes}", flush=True)
    model = LanguageModel(len(corpus.vocabulary), config.embedding, config.hidden)
    earlier = []
    if config.warm_start:
        model.load_version(config.warm_start, corpus.vocabulary)
        earlier = json.loads((config.warm_start.parent / "training.json").read_text(encoding="utf8"))["cycles"]
    if not config.export_only:
        train(model, corpus, config, earlier)
    saved = torch.load(config.work / "checkpoint.pt", weights_only=False)
    chosen = choose(model, saved, corpus)
    trigrams = count_trigrams(model, corpus, config.followers, config.discount)
    chosen["trigrams"] = {"pairs": len(trigrams.keys), "followers": len(trigrams.words), **trigrams.record}
    export(model, corpus, trigrams, config.out / "1")
    if not config.skip_test:
        record(config.out, score(config.out, config.data), saved, chosen, corpus)


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
