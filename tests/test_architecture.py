"""The layers: a module imports only from below, and FastAPI stays in `api` and `app`."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

SERVICE = Path(__file__).parent.parent / "service"

# From the bottom up; a module may import from its own layer and from lower ones.
LAYERS = [
    {
        "errors",
        "files",
        "cpu",
        "log_writer",
        "graph",
        "manifest_problems",
        "processes",
        "keys",
        "limits",
        "renewal",
        "scripts",
        "state",
        "telemetry",
        "settings",
        "schemas",
        "series",
        "tables",
        "tls",
        "__init__",
    },
    {"media", "music", "text", "uncertainty"},
    {"decoding"},
    {"tasks", "runtime"},
    {"registry"},
    {"api"},
    {"app"},
    {"worker"},
    {"nursery"},
    {"supervisor", "listening", "client", "evaluation", "importing", "batch"},
    {"server"},
    {"cli"},
    {"__main__"},
]
APART = {"tasks": "runtime", "runtime": "tasks"}  # neither knows the other

MODULES = sorted(SERVICE.rglob("*.py"))


def part_of(module: str) -> str:
    """`service.api.body` -> `api`."""
    return [*module.split("."), "__init__"][1]


def layer(part: str) -> int:
    return next(height for height, parts in enumerate(LAYERS) if part in parts)


def imports(path: Path) -> set[str]:
    """Names of all modules that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "service" else {node.module}
            )
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SERVICE)))
def test_a_module_imports_only_from_below(path: Path) -> None:
    own = path.relative_to(SERVICE).with_suffix("").parts[0]
    for module in imports(path):
        if module.startswith("service."):
            part = part_of(module)
            known = part if any(part in parts for parts in LAYERS) else "__init__"
            assert layer(known) <= layer(own), f"{own} imports {module}"
            assert APART.get(own) != part, f"{own} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SERVICE)))
def test_fastapi_stays_in_the_api(path: Path) -> None:
    own = path.relative_to(SERVICE).with_suffix("").parts[0]
    web = {module for module in imports(path) if module.split(".")[0] in ("fastapi", "starlette", "fastapi_offline")}
    assert not web or own in ("api", "app")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SERVICE)))
def test_training_dependencies_are_never_imported(path: Path) -> None:
    assert not {"torch", "onnx", "training"} & {module.split(".")[0] for module in imports(path)}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SERVICE)))
def test_only_the_command_line_knows_evaluations_and_only_their_plots_matplotlib(path: Path) -> None:
    """Serving needs neither; `cli` imports them in the command that does."""
    own = path.relative_to(SERVICE).with_suffix("").parts[0]
    modules = imports(path)
    if own not in ("evaluation", "cli"):
        assert not any(module.startswith("service.evaluation") for module in modules)
    if path != SERVICE / "evaluation" / "plots.py":
        assert not any(module.split(".")[0] == "matplotlib" for module in modules)


def test_every_layer_is_there() -> None:
    parts = {path.relative_to(SERVICE).with_suffix("").parts[0] for path in MODULES}
    assert parts == set().union(*LAYERS)


def test_the_training_tools_are_in_no_wheel() -> None:
    hatch = tomllib.loads((SERVICE.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert hatch["wheel"]["packages"] == ["service", "gridloop"]
    assert "training" not in hatch["sdist"]["only-include"]
