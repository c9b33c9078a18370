"""The documentation is true: settings, routes, metrics and errors are all there, and the README's commands run."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from service import __version__, telemetry
from service.api.problems import PROBLEMS
from service.registry.manifest import Manifest, read_manifest
from service.settings import Settings
from service.tasks import discover
from tests.test_server import Server, serving

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    default = Settings.model_fields[name].default
    default = "" if default is None else default
    shown = (
        ",".join(default) if isinstance(default, tuple) else f"{default:g}" if isinstance(default, float) else default
    )
    row = next(
        line for line in (ROOT / "docs/settings.md").read_text().splitlines() if f"`GRIDLOOP_{name.upper()}`" in line
    )
    assert row.split("|")[2].strip() == f"`--{name.replace('_', '-')}`"
    assert row.split("|")[3].strip() == (str(shown) or "empty")


def test_every_kind_of_problem_is_documented_with_its_status() -> None:
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE))
    assert rows == {kind.slug: str(kind.status) for kind in PROBLEMS.values()} | {"internal-error": "500"}


def test_every_key_of_a_manifest_is_documented() -> None:
    """With all models' keys, or on the page of the only task that has it."""
    of_all = (ROOT / "models" / "README.md").read_text()
    keys = [(of_all, Manifest.model_fields)]
    for task in discover().values():
        page = ROOT / "docs" / "tasks" / f"{task.name}.md"
        keys.append((of_all + (page.read_text() if page.exists() else ""), task.Options.model_fields))
    for text, fields in keys:
        for name, field in fields.items():
            kind = field.annotation
            inner = list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []
            for key in [name, *inner]:
                assert re.search(rf"[`\[ ]{key}[`\] ]", text), key


def test_what_a_sensitivity_means_is_what_the_model_claims() -> None:
    """The same figures stand in the card, the manifest and the guide: `models/series-gru/train.py` writes all three."""
    metrics = read_manifest(ROOT / "models/series-gru").metrics
    row = re.compile(r"^\| (0\.\d+) \| ([\d.]+) \| ([\d.]+) % \|$", re.MULTILINE)
    rows = row.findall((ROOT / "docs/calibration.md").read_text())
    assert [sensitivity for sensitivity, _, _ in rows] == ["0.1", "0.25", "0.5", "0.75", "0.9"]
    for sensitivity, alarms, inside in rows:
        assert float(alarms) == metrics[f"false alarms per 1,000 normal points at sensitivity {sensitivity}"]
        assert float(inside) == metrics[f"% of normal points inside the band at sensitivity {sensitivity}"]


def test_every_metric_is_documented() -> None:
    declared = {m._name for m in vars(telemetry).values() if hasattr(m, "_name") and hasattr(m, "_labelnames")}
    assert declared
    text = (ROOT / "docs/operations.md").read_text()
    assert [name for name in sorted(declared) if name not in text] == []


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("models/*.md"))]
)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_what_the_glossary_says_is_somewhere_is_there() -> None:
    """Files, and names of the service; `<task>` and the like stand for any."""
    page = (ROOT / "docs/glossary.md").read_text()
    places = re.findall(r"`((?:service|models)/[^`<]*)`", page)
    assert len(places) > 15
    for place in places:
        assert (ROOT / place).exists(), place


def test_the_changelog_knows_the_version() -> None:
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_shows_a_prediction_with_its_output_at_once() -> None:
    top = "\n".join(README.splitlines()[:25])
    assert "make serve" in top
    assert "curl" in top
    assert '"predictions"' in top


def test_the_makefile_has_the_commands_that_the_readme_shows() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = set(re.findall(r"^(?:\$ )?make ([a-z]+)", README, re.MULTILINE))
    assert {"serve", "test"} <= shown <= targets


# --- the README's console blocks are executed: `$ command`, then its output


def console() -> list[tuple[str, str]]:
    steps = []
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = step.replace("\\\n", "").partition("\n")
            steps.append((command, output.strip()))
    return steps


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(ROOT / "models", workers=1) as running:
        yield running


def test_the_readme_has_console_blocks() -> None:
    assert sum("curl" in command for command, _ in console()) >= 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize(("command", "output"), console(), ids=[c[:50] for c, _ in console()])
def test_the_readmes_commands_print_what_it_shows(server: Server, command: str, output: str) -> None:
    """Numbers may differ in their third digit; `…` stands for what is too long to show."""
    here = command.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}").replace("gridloop ", ".venv/bin/gridloop ")
    if not (ROOT / ".venv/bin/gridloop").exists():
        here = command.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    result = subprocess.run(["bash", "-c", here], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert_alike(output, result.stdout.strip())


NUMBER = r"-?\d+\.\d+(?:e-?\d+)?"


def assert_alike(expected: str, printed: str) -> None:
    """Same text, decimal numbers within a hundredth."""
    words = lambda text: re.sub(r"\s+", "", text)  # noqa: E731
    expected, printed = words(expected), words(printed)
    pattern = re.escape(re.sub(NUMBER, "\0", expected)).replace("\0", f"({NUMBER}|\\d+)").replace("…", ".*?")
    match = re.fullmatch(pattern, printed, re.DOTALL)
    assert match, f"expected\n{expected}\ngot\n{printed}"
    for shown, got in zip(re.findall(NUMBER, expected), match.groups(), strict=True):
        assert float(got) == pytest.approx(float(shown), abs=0.01 * max(1, abs(float(shown))))


def test_alike_notices_another_word_and_another_number() -> None:
    assert_alike('{"a": 0.123, "s": "…"}', '{"a":0.1234,"s":"xyz"}')
    for printed in ('{"b":0.1234,"s":"x"}', '{"a":0.2,"s":"x"}'):
        with pytest.raises(AssertionError):
            assert_alike('{"a": 0.123, "s": "…"}', printed)
