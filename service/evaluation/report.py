"""The result of an evaluation: for people, for the card, for machines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from service.evaluation.base import Figure, Outcome, Subject
from service.evaluation.facts import Facts

IN_PROCESS, THROUGH_HTTP = "in process", "through HTTP"


@dataclass(frozen=True, slots=True)
class Run:
    """One way's answers, scored.

    Attributes:
        way: IN_PROCESS or THROUGH_HTTP.
        outcome: what the records say.
        seconds: it took.
        questions: asked (count).
    """

    way: str
    outcome: Outcome
    seconds: float
    questions: int


@dataclass(frozen=True, slots=True)
class Report:
    """An evaluation that was held.

    Attributes:
        subject: the model.
        title: the data set.
        command: that gives these figures; the folder of the data and the address are left open in it.
        runs: one for each way, at least one.
        facts: of the model and the machine; None when the model is not on this machine.
        claims: the manifest's figures by name; empty where the evaluation is not the model's own.
        limit: items looked at at most, for a quick look; None for the official evaluation.
    """

    subject: Subject
    title: str
    command: str
    runs: Sequence[Run]
    facts: Facts | None
    claims: Mapping[str, float] = field(default_factory=dict)
    limit: int | None = None

    @property
    def outcome(self) -> Outcome:
        """Of the way that counts: through HTTP where it was gone, as users go it."""
        return self.runs[-1].outcome

    @property
    def wrong(self) -> list[str]:
        """What does not agree, as sentences: the two ways with each other, or the figures with what the card claims."""
        found = []
        for last in self.outcome.figures:
            first = self._values(last.name)[0]
            if not abs(first - last.value) <= _tolerance(last) and not math.isnan(first) & math.isnan(last.value):
                found.append(
                    f"{last.name} is {last.text(first)} {IN_PROCESS}, but {last.text(last.value)} {THROUGH_HTTP}."
                )
        if self.limit is None:
            for figure in self.outcome.figures:
                claim = self.claims.get(figure.name)
                if claim is not None and not _within(figure, claim):
                    found.append(
                        f"{figure.name}: the manifest claims {figure.text(claim)}, which is outside of what was "
                        f"measured: {figure.text(figure.value)} ({figure.interval})."
                    )
        return found

    def _values(self, name: str) -> list[float]:
        """A figure's value on each way; NaN where it has none."""
        return [next((f.value for f in run.outcome.figures if f.name == name), math.nan) for run in self.runs]

    # ---- as a table

    @property
    def columns(self) -> list[str]:
        """Headings of the table."""
        ways = [run.way for run in self.runs]
        values = ["value"] if len(ways) == 1 else ways
        return ["figure", *values, "95 % interval", "n", *(["claimed"] if self._claimed else [])]

    @property
    def _claimed(self) -> bool:
        return any(figure.name in self.claims for figure in self.outcome.figures)

    def rows(self) -> list[list[str]]:
        """Cells of the table, one row for each figure."""
        rows = []
        for last in self.outcome.figures:
            values = map(last.text, self._values(last.name))
            row = [last.name, *values, last.interval, f"{last.n:,} {last.of}"]
            rows.append([*row, last.text(self.claims.get(last.name)).replace("–", "")] if self._claimed else row)
        return rows

    def facts_lines(self) -> Iterator[str]:
        """What stands below the table, a sentence each."""
        model = f"{self.subject.name}@{self.subject.version}"
        if self.limit is not None:
            yield f"A quick look, no evaluation: at most {self.limit:,} items of each kind (`--limit`)."
        if facts := self.facts:
            yield (
                f"{model}: {facts.parameters:,} weights in a file of {facts.size_bytes / 1e6:.2f} MB (SHA-256 "
                f"{facts.digest[:16]}…); {_digits(facts.item_ms)} ms of one core for a {facts.item} (the graph, alone, "
                "median)."
            )
            versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
            commit = f"; commit {facts.commit}" if facts.commit else ""
            yield f"{facts.machine}; {versions}{commit}; {facts.date}."
        else:
            yield f"{model}, on the server only: size and speed are not told."
        ways = (
            f"{run.way}, {run.questions:,} requests in {run.seconds:,.0f} s"
            f" ({run.questions / max(run.seconds, 1e-3):,.0f} a second)"
            for run in self.runs
        )
        yield "Answered " + "; ".join(ways) + "."

    # ---- as JSON

    def as_json(self) -> dict[str, Any]:
        """One document; null where there is no number."""
        document: dict[str, Any] = _finite(
            {
                "model": f"{self.subject.name}@{self.subject.version}",
                "task": self.subject.task,
                "evaluation": self.title,
                "command": self.command,
                "limit": self.limit,
                "figures": [
                    {
                        "name": figure.name,
                        "value": figure.value,
                        "low": figure.low,
                        "high": figure.high,
                        "n": figure.n,
                        "of": figure.of,
                        "claimed": self.claims.get(figure.name),
                    }
                    for figure in self.outcome.figures
                ],
                "runs": [
                    {
                        "way": run.way,
                        "seconds": run.seconds,
                        "questions": run.questions,
                        "figures": {figure.name: figure.value for figure in run.outcome.figures},
                    }
                    for run in self.runs
                ],
                "breakdowns": [asdict(breakdown) for breakdown in self.outcome.breakdowns],
                "notes": list(self.outcome.notes),
                "facts": asdict(self.facts) if self.facts else None,
                "wrong": self.wrong,
            }
        )
        return document


def _tolerance(figure: Figure) -> float:
    """By how much the two ways may differ: batches round differently, so answers at the edge may tip."""
    width = (figure.high - figure.low) if figure.low is not None and figure.high is not None else 0.0
    return max(0.1 * width, 1e-3 * abs(figure.value))


def _within(figure: Figure, claim: float) -> bool:
    """Whether a claim lies in the interval, or is the figure rounded."""
    if figure.text(claim) == figure.text(figure.value) or abs(claim - figure.value) <= _tolerance(figure):
        return True
    return figure.low is not None and figure.high is not None and figure.low <= claim <= figure.high


def _digits(ms: float) -> str:
    """Milliseconds with two significant digits."""
    return f"{ms:.2g}" if ms < 10 else f"{ms:.0f}"


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
