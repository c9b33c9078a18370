"""The pages of the tasks and of the protocol are true: their tables are the code's, and their examples run as printed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.schemas.names import public_types
from service.tasks import discover
from service.tasks.base import MediaInput
from tests.test_docs import assert_alike
from tests.test_server import Server, serving

ROOT = Path(__file__).parent.parent
OTHER_PAGES = ("azure-anomaly-detector", "open-inference", "streaming", "validation")
PAGES = [*sorted(ROOT.glob("docs/tasks/*.md")), *(ROOT / "docs" / f"{name}.md" for name in OTHER_PAGES)]
FURTHER = [ROOT / "docs/migrating.md"]
"""Pages whose examples run, too, in whatever languages they have."""
SERVED = "127.0.0.1:8000"


@pytest.fixture(scope="module")
def generate() -> Any:
    """The script that writes the tables."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_parts_of_all_pages_are_current(generate: Any) -> None:
    """`python docs/generate.py` writes them."""
    document = generate.openapi()
    for page in generate.pages():
        assert generate.render(page.read_text(), document) == page.read_text(), page.name


def test_every_task_has_a_page_with_all_its_types(generate: Any) -> None:
    tasks = discover()
    for path in generate.openapi()["paths"]:
        task = tasks.get(path.removeprefix("/v1/"))
        if task is None:
            continue
        page = (ROOT / "docs" / "tasks" / f"{task.name}.md").read_text()
        roots = [task.Output] if issubclass(task.Input, MediaInput) else [task.Input, task.Output]
        for found in public_types(roots):
            assert re.search(f"<!-- (fields|answer): {found.__name__} -->", page), f"{task.name}: {found.__name__}"
        assert f"<!-- contract: {task.__module__} -->" in page
        assert "<!-- limits: " in page


# --- the examples


def examples() -> Iterator[tuple[str, str, str, str]]:
    """Page, language, code and what it prints: a `console` block is both, another is followed by a `text` block."""
    for page in (*PAGES, *FURTHER):
        text = page.read_text()
        for command, output in re.findall(r"```console\n\$ (.*?)\n(.*?)```", text, re.DOTALL):
            yield page.stem, "curl", command, output.strip()
        for language, code, output in re.findall(r"```(python|js)\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL):
            yield page.stem, language, code, output.strip()


EXAMPLES = list(examples())
RUNNERS = {"curl": ["bash", "-c"], "python": [sys.executable, "-c"], "js": ["node", "--input-type=module", "--eval"]}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(ROOT / "models", workers=1) as running:
        yield running


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_an_example_in_every_language_and_all_are_run(page: Path) -> None:
    blocks = re.findall(r"```(console|python|js)\n", page.read_text())
    assert {"console", "python", "js"} <= set(blocks)
    assert len(blocks) == sum(name == page.stem for name, *_ in EXAMPLES)


@pytest.mark.parametrize(
    ("page", "language", "code", "output"),
    EXAMPLES,
    ids=[f"{page}-{language}-{number}" for number, (page, language, _, _) in enumerate(EXAMPLES)],
)
def test_an_example_prints_what_the_page_shows(
    server: Server, page: str, language: str, code: str, output: str
) -> None:
    """Numbers may differ in their third digit; `…` stands for what is too long to show."""
    runner = RUNNERS[language]
    needed = "curl" if language == "curl" else runner[0]
    if shutil.which(needed) is None:
        pytest.skip(f"needs {needed}")
    assert SERVED in code
    here = code.replace(SERVED, f"127.0.0.1:{server.port}")
    ran = subprocess.run([*runner, here], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    assert_alike(output, ran.stdout.strip())
