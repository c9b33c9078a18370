"""The image, the compose file and the dashboards agree with the service and with each other; no Docker is needed."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics import MetricWrapperBase

from service import telemetry
from service.settings import Settings

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
RAY_DOCKERFILE = (ROOT / "deploy/ray/Dockerfile").read_text("utf-8")
COMPOSE = (ROOT / "docker-compose.yml").read_text("utf-8")
PROMETHEUS = (ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8")
ALERTS = (ROOT / "deploy/prometheus/alerts.yml").read_text("utf-8")
OPERATIONS = (ROOT / "docs/operations.md").read_text("utf-8")
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/gridloop.json").read_text("utf-8"))
PROVISIONING = ROOT / "deploy/grafana/provisioning"

DEFAULTS = Settings.model_construct()  # whatever the environment says
SUPERVISOR_MARGIN_S = 5
"""What the supervisor waits beyond the drain time before it kills a worker (service/server.py)."""

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
"""What prometheus_client appends to a metric's name for its samples."""


# --- the metrics in expressions


@cache
def samples() -> dict[str, set[str]]:
    """The labels of every sample that the service writes, by the sample's name."""
    found = {}
    for metric in vars(telemetry).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            for suffix in SUFFIXES[family.type]:
                found[family.name + suffix] = {*metric._labelnames, *({"le"} if suffix == "_bucket" else ())}
    return found


def dashboard_expressions() -> list[str]:
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return queries + [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"]]


def alert_expressions() -> list[str]:
    """The text of each `expr`, on its own line or in the block below it."""
    return re.findall(r"^ +expr: ((?:.*\n)(?: {10,}.*\n)*)", ALERTS, re.MULTILINE)


def names(expression: str) -> set[str]:
    return set(re.findall(r"\bgridloop_\w+", expression))


def labels(expression: str, name: str) -> set[str]:
    """Labels which an expression selects of one metric, and those it groups all of its metrics by."""
    selectors = re.findall(rf"\b{name}\{{([^}}]*)\}}", expression)
    selected = {label for selector in selectors for label in re.findall(r"(\w+) *(?:=~|!~|!=|=) *\"", selector)}
    groups = re.findall(r"\bby \(([^)]*)\)", expression)
    return selected | {label.strip() for group in groups for label in group.split(",")}


EXPRESSIONS = dashboard_expressions() + alert_expressions()


def test_the_dashboard_and_the_alerts_are_found() -> None:
    """The other tests would pass on an empty list."""
    assert len(dashboard_expressions()) > 20
    assert len(alert_expressions()) == ALERTS.count("- alert:") > 3


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_in_an_expression_is_one_the_service_writes(expression: str) -> None:
    assert names(expression) or "up{" in expression
    assert names(expression) <= samples().keys()


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_label_in_an_expression_is_one_its_metrics_have(expression: str) -> None:
    added_by_the_scrape = {"instance", "job"}
    for name in names(expression):
        assert labels(expression, name) <= samples()[name] | added_by_the_scrape


def test_every_metric_of_the_service_is_on_the_dashboard() -> None:
    shown = set().union(*map(names, dashboard_expressions()))
    families = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in samples()}
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in shown} == families


def test_quantiles_are_taken_of_buckets_grouped_by_le() -> None:
    quantiles = [expression for expression in EXPRESSIONS if "histogram_quantile" in expression]
    assert quantiles
    for expression in quantiles:
        assert re.search(r"by \([^)]*\ble\)", expression)
        assert "_bucket" in expression


def test_every_drop_reason_is_one_the_service_gives() -> None:
    """A misspelt reason in a selector would select nothing, without any error."""
    runtime = "".join(path.read_text("utf-8") for path in (ROOT / "service/runtime").glob("*.py"))
    given = set(re.findall(r'DROPPED\.labels\([^"]*"(\w+)"\)', runtime))
    selected = {reason for match in re.findall(r'reason=~"([^"]*)"', ALERTS) for reason in match.split("|")}
    assert selected
    assert selected <= given
    assert given == set(telemetry.DROP_REASONS)


@pytest.mark.parametrize("reason", telemetry.DROP_REASONS)
def test_every_drop_reason_is_explained_where_its_numbers_are_shown(reason: str) -> None:
    row = next(line for line in OPERATIONS.splitlines() if "`gridloop_dropped_requests_total`" in line)
    assert f"`{reason}`" in row
    panel = next(panel for panel in DASHBOARD["panels"] if panel["title"] == "Requests dropped")
    assert re.search(rf"\b{reason}\b", panel["description"])


# --- what docs/operations.md says of them


def test_the_documented_metrics_are_those_of_the_service() -> None:
    """With their types and their labels, one line of the table each."""
    rows = re.findall(r"^\| `(gridloop_\w+)` \| (\w+) \| (.*?) ?\|", OPERATIONS, re.MULTILINE)
    documented = {(name, kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    written = set()
    for metric in vars(telemetry).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            name = family.name + ("_total" if family.type == "counter" else "")
            written.add((name, family.type, frozenset(metric._labelnames)))
    assert documented == written


def test_the_documented_alerts_are_those_that_are_configured() -> None:
    configured = re.findall(r"- alert: (\w+)", ALERTS)
    assert re.findall(r"^\| `(Gridloop\w+)` \|", OPERATIONS, re.MULTILINE) == configured


# --- the alerts as Prometheus reads them


PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool judges the rules: it comes with Prometheus")


@needs_promtool
@pytest.mark.parametrize("command", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")])
def test_the_alerts_come_when_they_should(command: tuple[str, ...]) -> None:
    assert PROMTOOL
    done = subprocess.run(
        [PROMTOOL, *command], cwd=ROOT / "deploy/prometheus", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_by_promtool() -> None:
    tested = set(re.findall(r"alertname: (\w+)", (ROOT / "deploy/prometheus/alerts_test.yml").read_text("utf-8")))
    assert tested == set(re.findall(r"- alert: (\w+)", ALERTS))


# --- the dashboard as Grafana reads it


def test_each_panel_has_an_id_of_its_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_no_two_panels_overlap_and_none_leaves_the_grid() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        covered = set(itertools.product(range(x, x + w), range(y, y + h)))
        assert x + w <= 24, panel["title"]
        assert not cells & covered, panel["title"]
        cells |= covered


def test_every_panel_asks_the_data_source_that_is_provisioned() -> None:
    provisioned = re.search(r"uid: (\w+)", (PROVISIONING / "datasources/prometheus.yml").read_text("utf-8"))
    assert provisioned
    assert set(re.findall(r'"uid": "(\w+)"', json.dumps(DASHBOARD["panels"]))) == {provisioned[1]}


def test_grafana_finds_the_dashboard_where_compose_mounts_it() -> None:
    searched = re.search(r"path: (\S+)", (PROVISIONING / "dashboards/gridloop.yml").read_text("utf-8"))
    assert searched
    assert f"./deploy/grafana/dashboards:{searched[1]}:ro" in COMPOSE
    assert f"HOME_DASHBOARD_PATH: {searched[1]}/gridloop.json" in COMPOSE


# --- compose


def compose_service(name: str) -> str:
    """The lines of one service, without comments."""
    match = re.search(rf"^  {name}:\n((?:    .*\n|\n)+)", COMPOSE, re.MULTILINE)
    assert match, name
    return re.sub(r" *#.*", "", match[1])


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def test_compose_waits_longer_than_the_server_takes_to_drain() -> None:
    grace = re.search(r"stop_grace_period: \$\{STOP_GRACE_PERIOD:-(\d+s)\}", compose_service("gridloop"))
    assert grace
    in_image = re.search(r"GRIDLOOP_DRAIN_GRACE_S=(\d+)", DOCKERFILE)
    assert in_image
    assert seconds(grace[1]) > float(in_image[1]) + DEFAULTS.drain_timeout_s + SUPERVISOR_MARGIN_S


def test_every_setting_can_be_given_to_the_container() -> None:
    """Those that the image fixes are named here: another one belongs into the compose file."""
    fixed_by_the_image = {"host", "port", "models", "log_format", "drain_grace_s"}
    passed = set(re.findall(r"- GRIDLOOP_(\w+)$", compose_service("gridloop"), re.MULTILINE))
    assert {name.upper() for name in Settings.model_fields.keys() - fixed_by_the_image} <= passed


@pytest.mark.parametrize("service", ["gridloop", "prometheus", "grafana"])
def test_ports_are_published_on_loopback_unless_asked_otherwise(service: str) -> None:
    published = re.search(r"ports:\n +- \"(.*)\"\n", compose_service(service))
    assert published
    assert re.fullmatch(r"\$\{PUBLISH\w*:-127\.0\.0\.1:\d+\}:\d+", published[1])


@pytest.mark.parametrize("service", ["prometheus", "grafana"])
def test_foreign_images_are_pinned_and_wait_for_the_monitoring_profile(service: str) -> None:
    text = compose_service(service)
    assert re.search(r"image: \S+:v?\d+\.\d+\.\d+$", text, re.MULTILINE)
    assert "profiles: [monitoring]" in text


def test_the_service_starts_without_a_profile() -> None:
    assert "profiles" not in compose_service("gridloop")


@pytest.mark.parametrize("service", ["gridloop", "prometheus", "grafana"])
def test_no_container_has_capabilities_or_can_gain_any(service: str) -> None:
    text = compose_service(service)
    assert "cap_drop: [ALL]" in text
    assert 'security_opt: ["no-new-privileges:true"]' in text


def test_the_service_writes_to_nothing_but_a_temporary_folder_in_memory() -> None:
    text = compose_service("gridloop")
    assert "read_only: true" in text
    assert re.search(r"tmpfs:\n +- /tmp:size=\d+m,mode=1777$", text, re.MULTILINE)
    assert all(mount.endswith(":ro") for mount in re.findall(r"- (\./\S+)", text))


def test_every_mounted_path_exists_in_the_repository() -> None:
    mounted = re.findall(r"- \./([^:]+):", COMPOSE)
    assert len(mounted) >= 4
    for path in mounted:
        assert (ROOT / path).is_dir(), path


def test_prometheus_scrapes_the_service_and_loads_the_alerts() -> None:
    assert f'targets: ["gridloop:{DEFAULTS.port}"]' in PROMETHEUS
    (rules,) = re.findall(r"^rule_files:\n  - (\S+)$", PROMETHEUS, re.MULTILINE)
    assert (ROOT / "deploy/prometheus" / rules).is_file()


# --- the image


def environment() -> dict[str, str]:
    return dict(re.findall(r"\b(GRIDLOOP_\w+)=(\S+)", DOCKERFILE))


def test_the_image_has_the_python_of_the_project() -> None:
    """Named once, in the argument that both stages are made from."""
    image = re.search(r"^ARG PYTHON_IMAGE=python:(\S+?)-slim-\w+$", DOCKERFILE, re.MULTILINE)
    assert image
    assert image[1] == (ROOT / ".python-version").read_text("utf-8").strip()
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${PYTHON_IMAGE}"}


def test_image_compose_and_service_agree_on_the_port() -> None:
    port = str(DEFAULTS.port)
    assert re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE) == [port]
    assert environment()["GRIDLOOP_PORT"] == port
    assert f":{port}}}:{port}" in compose_service("gridloop")


def test_the_settings_of_the_image_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that listened on loopback inside the container could not be reached."""
    for name, value in environment().items():
        assert name.removeprefix("GRIDLOOP_").lower() in Settings.model_fields
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.host, settings.log_format, settings.models) == ("0.0.0.0", "json", Path("/models"))
    assert "- ./models:/models:ro" in compose_service("gridloop")


@pytest.mark.parametrize("dockerfile", [DOCKERFILE, RAY_DOCKERFILE], ids=["", "ray"])
def test_the_service_runs_as_a_number_that_is_not_root(dockerfile: str) -> None:
    """Kubernetes' `runAsNonRoot` can judge a number only."""
    (user,) = re.findall(r"^USER (\d+):\d+$", dockerfile, re.MULTILINE)
    assert int(user) > 0
    assert dockerfile.rindex("USER ") > dockerfile.rindex("RUN ")


def test_nothing_at_run_time_needs_a_shell() -> None:
    commands = re.findall(r"^ *(?:CMD|ENTRYPOINT) +(.*)$", DOCKERFILE, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert all(isinstance(word, str) for word in json.loads(command))


def test_dependencies_are_installed_from_their_hashes() -> None:
    installs = re.findall(r"pip --python \S+ install (.*)", DOCKERFILE)
    assert len(installs) == 2
    assert all("--require-hashes" in line or "--no-deps --no-build-isolation" in line for line in installs)


@pytest.mark.skipif(sys.platform != "linux", reason="the packages of other systems have other files")
def test_what_the_image_leaves_out_is_there_to_leave_out() -> None:
    """`rm` fails on a path that is gone: better noticed with the new pins than in the next build."""
    found = find_spec("onnxruntime")
    assert found is not None
    assert found.origin is not None
    packages = Path(found.origin).parents[1]
    removed = re.findall(r"\b(onnxruntime/\S+)", DOCKERFILE)
    assert len(removed) > 2
    for pattern in removed:
        assert list(packages.glob(pattern)), pattern


@pytest.mark.skipif(sys.platform != "linux", reason="the packages of other systems have other files")
def test_the_service_imports_nothing_that_the_image_leaves_out() -> None:
    left_out = re.findall(r"\bonnxruntime/(\w+) ", DOCKERFILE)
    assert "transformers" in left_out
    code = (
        "import sys; import service.app, service.api.protocol, service.cli, service.server; print(*sorted(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    imported = set(result.stdout.split())
    assert "onnxruntime" in imported
    assert not imported & {f"onnxruntime.{name}" for name in left_out}


# --- what enters the build


def _as_regex(pattern: str) -> str:
    """A line of .dockerignore: `*` stays within a folder, `**` does not, and a folder stands for all that it holds."""
    translated = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
    return re.sub(r"\\\[(\w+)\\\]", r"[\1]", translated) + "(?:/.*)?"


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a path into the build; the last line that matches decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        pattern = line.removeprefix("!")
        if pattern and not pattern.startswith("#") and re.fullmatch(_as_regex(pattern), path):
            sent = line.startswith("!")
    return sent


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        ".env",
        "Makefile",
        "benchmarks/load.py",
        "docs/operations.md",
        "models/some-cnn/drawn/street.png",
        "models/some-cnn/evaluate.py",
        "models/some-cnn/plots/reliability.png",
        "models/some-cnn/graph.py",
        "models/some-cnn/train.py",
        "models/some-cnn/.cache/batch.npy",
        "requirements-dev.txt",
        "training/graph.py",
        "service/__pycache__/app.cpython-311.pyc",
        "service/api/__pycache__/edge.cpython-311.pyc",
        "tests/conftest.py",
        "tests/api/test_tasks.py",
    ],
)
def test_the_build_does_not_see(path: str) -> None:
    assert not is_sent(path)


@pytest.mark.parametrize(
    "path",
    [
        "LICENSE",
        "README.md",
        "models/some-cnn/1/golden/cat.png",
        "models/some-cnn/1/model.onnx",
        "models/some-cnn/manifest.toml",
        "pyproject.toml",
        "requirements.txt",
        "service/api/edge.py",
        "service/playground/index.html",
    ],
)
def test_the_build_sees(path: str) -> None:
    assert is_sent(path)


@pytest.mark.parametrize(
    ("dockerfile", "pins"),
    [(DOCKERFILE, "requirements.txt"), (RAY_DOCKERFILE, "requirements-ray.txt")],
    ids=["", "ray"],
)
def test_every_file_a_dockerfile_copies_exists_and_enters_the_build(dockerfile: str, pins: str) -> None:
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert set(copied) == {
        pins,
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "service",
        "gridloop",
        "models",
    }
    for path in copied:
        assert (ROOT / path).exists()
        assert is_sent(path)


# --- the health check


@pytest.fixture
def answering(request: pytest.FixtureRequest) -> Iterator[HTTPServer]:
    """A server whose /readyz has the status given as parameter; every other path is 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Nothing on stderr."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run_health_check(port: int, **variables: str) -> int:
    """The exit code of the image's own check, run with this Python."""
    command = re.search(r"HEALTHCHECK.*\\\n  CMD (.*)", DOCKERFILE)
    assert command
    _, *arguments = json.loads(command[1])
    # A proxy that is set for the container must not be asked for it.
    environment = {"GRIDLOOP_PORT": str(port), "http_proxy": "http://127.0.0.1:9", **variables}
    return subprocess.run([sys.executable, *arguments], env=environment, check=False, capture_output=True).returncode


@pytest.mark.parametrize(("answering", "code"), [(200, 0), (503, 1)], indirect=["answering"])
def test_the_container_is_healthy_exactly_when_the_server_is_ready(answering: HTTPServer, code: int) -> None:
    assert run_health_check(answering.server_port) == code


def test_a_container_whose_server_is_gone_is_unhealthy() -> None:
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.server_close()
    assert run_health_check(server.server_port) == 1


BILL = {
    "components": [
        {"name": "b", "version": "2", "licenses": [{"license": {"name": "License :: OSI Approved :: MIT License"}}]},
        {"name": "A", "version": "1", "licenses": [{"expression": "MIT OR Apache-2.0"}]},
        {"name": "protobuf", "version": "7", "licenses": [{"license": {"name": "declared license of 'protobuf'"}}]},
    ]
}


def test_a_bill_of_materials_becomes_a_table_of_licences(tmp_path: Path) -> None:
    script, bill = ROOT / "deploy" / "licences.py", tmp_path / "bill.json"
    bill.write_text(json.dumps(BILL))
    found = subprocess.run([sys.executable, script, bill], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.splitlines()[2:] == [
        "| A | 1 | MIT OR Apache-2.0 |",
        "| b | 2 | MIT License |",
        "| protobuf | 7 | BSD-3-Clause |",
    ]
    bill.write_text(json.dumps({"components": [{"name": "secret", "version": "1"}]}))
    found = subprocess.run([sys.executable, script, bill], capture_output=True, text=True)
    assert found.returncode == 1
    assert "secret" in found.stderr


def test_the_bill_of_materials_is_of_the_pins_of_serving() -> None:
    rules = (ROOT / "Makefile").read_text()
    assert "$(VENV)/.sbom: requirements.txt requirements-sbom.txt" in rules
    assert "cyclonedx-bom==" in (ROOT / "requirements-sbom.txt").read_text()
