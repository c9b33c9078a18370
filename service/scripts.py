"""Python files that are no modules of a package: a model's `evaluate.py`, a folder of tasks, benchmark scripts."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType


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


def explain(error: BaseException, file: Path) -> str:
    """What went wrong and in which line of the file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    place = f" (line {lines[-1]})" if lines else ""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}{place}"
