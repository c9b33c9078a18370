"""The Numenta Anomaly Benchmark (NAB): the evaluation of series-gru, of another model.

    gridloop evaluate series-cnn --data DIR [--url URL] [--write]

DIR is what `models/series-gru/evaluate.py` says.
"""

from __future__ import annotations

from pathlib import Path

from service.evaluation import load_script

nab = load_script(Path(__file__).resolve().parents[1] / "series-gru" / "evaluate.py")


class NabOfConvolutions(nab.Nab):
    """NAB v1.1, all of it."""
