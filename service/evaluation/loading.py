"""Which evaluation a model has: the one that its `evaluate.py` defines, else that of its task, found by name."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

from service.evaluation.base import Evaluation, EvaluationFailed
from service.scripts import explain, load_script

FILENAME = "evaluate.py"


class EvaluationBroken(EvaluationFailed):
    """A model's `evaluate.py` cannot be used.

    Args:
        file: which, as a person would name it.
        reason: one sentence.
    """

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")


def load_evaluation(folder: Path) -> type[Evaluation] | None:
    """The evaluation that a model folder declares; None when it has no `evaluate.py`.

    Raises:
        EvaluationBroken: the file fails, or does not define exactly one evaluation.
    """
    file = folder / FILENAME
    if not file.is_file():
        return None
    shown = f"{folder.name}/{FILENAME}"
    try:
        module = load_script(file)
    except Exception as error:  # it is somebody's own file: anything may go wrong in it
        raise EvaluationBroken(shown, explain(error, file)) from error
    found = _evaluations_of(module)
    if len(found) != 1:
        there = ", ".join(sorted(kind.__name__ for kind in found)) or "none"
        raise EvaluationBroken(shown, f"should define one class derived from Evaluation; there is: {there}.")
    (evaluation,) = found
    if missing := sorted(evaluation.__abstractmethods__):
        raise EvaluationBroken(shown, f"{evaluation.__name__} does not define {', '.join(missing)}.")
    return evaluation


def generic_evaluation(task: str) -> type[Evaluation] | None:
    """The evaluation of a task, for folders without one of their own: the only one that its module here defines.

    Args:
        task: its name; `image-classification` has the module `image_classification`.
    """
    name = f"{__package__}.{task.replace('-', '_')}"
    if importlib.util.find_spec(name) is None:
        return None
    found = [kind for kind in _evaluations_of(importlib.import_module(name)) if not inspect.isabstract(kind)]
    return found[0] if len(found) == 1 else None


def _evaluations_of(module: ModuleType) -> list[type[Evaluation]]:
    """The evaluations that a module defines itself."""
    members = [member for member in vars(module).values() if inspect.isclass(member)]
    return [kind for kind in members if issubclass(kind, Evaluation) and kind.__module__ == module.__name__]
