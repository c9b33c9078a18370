"""The Numenta Anomaly Benchmark (NAB): 58 labelled series, scored by its published rule.

    gridloop evaluate series-gru --data DIR [--url URL] [--write]

DIR holds `nab.zip` (or `nab/nab.zip`) with `data/`, `labels/` and `config/` of https://github.com/numenta/NAB, or is a
checkout of that repository. Points inside NAB's windows are the labelled ones; its probationary first rows do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from service.evaluation import Breakdown, DataMissing, Figure, Outcome, load_script
from service.evaluation.anomaly_detection import SENSITIVITY, AnomalyDetectionEvaluation, Judged, Labelled, Series

nab = load_script(Path(__file__).resolve().parents[2] / "benchmarks" / "nab.py")


class Nab(AnomalyDetectionEvaluation):
    """NAB v1.1, all of it."""

    title = "Numenta Anomaly Benchmark (NAB), 58 series"

    def series(self) -> Sequence[Series]:
        try:
            self.corpus, self.profiles = nab.read_corpus(self.data)
        except SystemExit:  # what the script says when run by itself
            raise DataMissing(
                self.data,
                "nab.zip, nab/nab.zip or a checkout of NAB",
                "Get it with: git clone https://github.com/numenta/NAB",
            ) from None
        return [Series(one.name, partial(self._points, one)) for one in self.corpus]

    @staticmethod
    def _points(one: nab.Series) -> Labelled:
        labels = np.zeros(len(one.values), bool)
        for first, last in one.windows:
            labels[first : last + 1] = True
        counted = np.arange(len(one.values)) >= nab.probation_rows(len(one.values))
        return Labelled(one.values, labels, counted)

    def outcome(self, records: Sequence[Judged]) -> Outcome:
        known = {one.name: one for one in self.corpus}
        scored = [(record.scores, known[record.name].windows) for record in records]
        best = [self._figure(scored, profile, None) for profile in self.profiles]
        served = [self._figure(scored, profile, 1 - SENSITIVITY) for profile in self.profiles]
        usual = super().outcome(records)
        notes = [
            "NAB's rule: one threshold for all series, the best for each profile, as its published table has it; the rows "
            f"with a sensitivity are at the threshold of {1 - SENSITIVITY:g} instead. The first 15 % of a series, at most "
            "750 rows, do not count. Intervals of NAB scores: bootstrap over series, the threshold kept.",
            *usual.notes,
        ]
        return Outcome([*best, *served, *usual.figures], [self._groups(scored, records)], usual.plots, notes)

    def _figure(self, scored: list, profile: nab.Profile, threshold: float | None) -> Figure:
        """The score of one profile, and how far it would move with other series."""
        whole = nab.evaluate(scored, profile, threshold)
        low, high = nab.confidence_interval(scored, profile, whole.threshold)
        name = f"NAB {profile.name.removeprefix('reward_').replace('_', ' ')} profile"
        if threshold is not None:
            name += f", sensitivity {SENSITIVITY:g}"
        return Figure(name, whole.normalised, len(scored), "series", low, high, ".2f")

    def _groups(self, scored: list, records: Sequence[Judged]) -> Breakdown:
        """NAB's groups of series, at the thresholds of the corpus."""
        results = []
        for profile in self.profiles:
            threshold = nab.best_threshold(scored, profile)
            groups: dict[str, list] = {}
            for one, record in zip(scored, records, strict=True):
                groups.setdefault(record.name.split("/")[0], []).append(one)
            results.append({name: nab.evaluate(of, profile, threshold) for name, of in groups.items()})
        rows = []
        for name, first in results[0].items():
            scores = (f"{r[name].normalised:.2f}" if first.windows else "" for r in results)
            rows.append([name, *scores, f"{first.detected} of {first.windows}", f"{first.false_positives:,}"])
        names = [profile.name.removeprefix("reward_").replace("_", " ") for profile in self.profiles]
        columns = ["group", *names, f"windows found ({names[0]})", f"false alarms ({names[0]})"]
        return Breakdown("By group, at the thresholds of the whole corpus", columns, rows)
