"""CIFAR-10, all 10,000 official test pictures: the evaluation of cifar10-cnn, of another model.

    gridloop evaluate cifar10-rnn --data DIR [--url URL] [--write]

DIR is what `models/cifar10-cnn/evaluate.py` says.
"""

from __future__ import annotations

from pathlib import Path

from service.evaluation import load_script

cifar10 = load_script(Path(__file__).resolve().parents[1] / "cifar10-cnn" / "evaluate.py")


class Cifar10RowByRow(cifar10.Cifar10):
    """The official test split."""
