"""Evaluations: what a model's figures are, measured on labelled data through the service itself.

A model folder declares its official evaluation in `evaluate.py`: one class, derived from `Evaluation` or from that of
a task, which reads the data, asks the model, and scores its answers. A folder without one gets its task's generic
evaluation. Nothing that serves imports this package; `docs/evaluation.md` is one page about it.
"""

from service.evaluation.base import (
    Ask,
    Breakdown,
    Conversation,
    DataMissing,
    Evaluation,
    EvaluationFailed,
    Figure,
    Infer,
    Item,
    Outcome,
    Plot,
    Subject,
    spread_evenly,
)
from service.scripts import load_script

__all__ = [
    "Ask",
    "Breakdown",
    "Conversation",
    "DataMissing",
    "Evaluation",
    "EvaluationFailed",
    "Figure",
    "Infer",
    "Item",
    "Outcome",
    "Plot",
    "Subject",
    "load_script",
    "spread_evenly",
]
