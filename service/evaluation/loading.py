"""Python files that are no modules of a package: a model's `evaluate.py`, and the benchmark scripts that it calls."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType

from service.evaluation.base import Evaluation, EvaluationFailed

FILENAME = "evaluate.py"


class EvaluationBroken(EvaluationFailed):
    """A model's `evaluate.py` cannot be used.

    Args:
        file: which, as a person would name it.
        reason: one sentence.
    """

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")


def load_script(file: Path) -> ModuleType:
    """Run a Python file as a module of its own, named after its place, so that two files of a name do not meet.

    Raises:
        Exception: whatever the file raises.
    """
    name = f"gridloop_script_{'_'.join(file.resolve().with_suffix('').parts[-2:])}".replace("-", "_")
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file.name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


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
    found = [
        member
        for member in vars(module).values()
        if inspect.isclass(member) and issubclass(member, Evaluation) and member.__module__ == module.__name__
    ]
    if len(found) != 1:
        there = ", ".join(sorted(kind.__name__ for kind in found)) or "none"
        raise EvaluationBroken(shown, f"should define one class derived from Evaluation; there is: {there}.")
    (evaluation,) = found
    if missing := sorted(evaluation.__abstractmethods__):
        raise EvaluationBroken(shown, f"{evaluation.__name__} does not define {', '.join(missing)}.")
    return evaluation


def explain(error: BaseException, file: Path) -> str:
    """What went wrong and in which line of the file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    place = f" (line {lines[-1]})" if lines else ""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}{place}"
