"""A client made by hey-api's openapi-ts calls every endpoint, and types made by openapi-typescript fit plain `fetch`.

Their types are checked, then their answers. The tests themselves are `typescript/client.test.ts` and `types.test.ts`. What they need is installed once, outside the repository, from the
versions and checksums in `typescript/package-lock.json`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.clients.conftest import MODELS
from tests.test_server import Server

SOURCE = Path(__file__).parent / "typescript"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gridloop-tests"
PINS = ("package.json", "package-lock.json", ".npmrc")
OLDEST_NODE = (20, 19)
OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "E403", "E404")

pytestmark = pytest.mark.timeout(600)  # the first installation may be slow


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.fixture(scope="module")
def packages() -> Path:
    """The generator and the compiler, installed; without Node.js or a registry, nothing can be tested here."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    version = re.findall(r"\d+", run(node, "--version", cwd=SOURCE).stdout)
    if tuple(map(int, version[:2])) < OLDEST_NODE:
        pytest.skip(f"needs Node.js {'.'.join(map(str, OLDEST_NODE))} or later")
    digest = hashlib.sha256(b"".join((SOURCE / name).read_bytes() for name in PINS)).hexdigest()[:16]
    folder = CACHE / f"typescript-{digest}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            for name in PINS:
                shutil.copy(SOURCE / name, made)
            npm = run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=Path(made))
            if npm.returncode and any(sign in npm.stderr for sign in OFFLINE):
                pytest.skip(f"npm reaches no registry: {npm.stderr.strip().splitlines()[0]}")
            assert npm.returncode == 0, npm.stderr
            if not folder.exists():
                Path(made).rename(folder)
                Path(made).mkdir()  # for the context manager to remove
    return folder / "node_modules"


@pytest.fixture(scope="module")
def project(packages: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests beside a client that was generated from the running server's document."""
    folder = tmp_path_factory.mktemp("typescript")
    for name in ("client.test.ts", "types.test.ts", "tsconfig.json"):
        shutil.copy(SOURCE / name, folder)
    (folder / "node_modules").symlink_to(packages)
    made = run(
        "node", packages / "@hey-api/openapi-ts/bin/run.js", "--input", f"{server.url}/openapi.json",
        "--output", "client", "--no-log-file", cwd=folder,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    typed = run(
        "node", packages / "openapi-typescript/bin/cli.js", f"{server.url}/openapi.json", "--output", "schema.d.ts",
        "--default-non-nullable=false", cwd=folder,
    )  # fmt: skip
    assert typed.returncode == 0, typed.stdout + typed.stderr
    return folder


@pytest.fixture(scope="module")
def compiled(project: Path) -> Path:
    checked = run("node", "node_modules/typescript/bin/tsc", "--project", ".", cwd=project)
    assert checked.returncode == 0, checked.stdout
    return project / "build"


def test_answers_and_requests_have_the_types_that_are_used(compiled: Path) -> None:
    assert {"client.test.js", "types.test.js"} <= {path.name for path in compiled.iterdir()}


def test_every_endpoint_answers_with_typed_objects(server: Server, compiled: Path) -> None:
    ran = run(
        "node", "--test", compiled, cwd=compiled.parent, GRIDLOOP_URL=server.url, GRIDLOOP_TEST_MODELS=str(MODELS)
    )
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^# pass [1-9]", ran.stdout, re.MULTILINE)
