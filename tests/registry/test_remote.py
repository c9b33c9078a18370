"""Repositories elsewhere are fetched whole or not at all; the storage is this machine's."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from service.cli import main
from service.errors import SettingUnusable
from service.registry import remote
from service.registry.archive import RemoteUnusable
from service.registry.elsewhere import Elsewhere
from service.registry.installed import located
from service.registry.registry import Registry
from service.settings import Settings
from tests import graphs

pytest.importorskip("fsspec", reason="repositories elsewhere are fetched by fsspec: pip install 'gridloop[remote]'")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """The repository as it lies in storage."""
    folder = tmp_path / "stored"
    graphs.colour_model(folder)
    graphs.detector_model(folder)
    return folder


class Site:
    """A web server of files that are set by the test."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.files: dict[str, bytes] = {}
        self.tells, self.cuts_short = True, False
        self.status = 200
        self.asked: list[str] = []


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            content = found.files.get(self.path.partition("?")[0])
            status = found.status if content is not None else 404
            found.asked.append(f"{self.command} {self.path}")
            self.send_response(status)
            if status == 200 and content is not None:
                self.send_header("Content-Length", str(len(content)))
                if found.tells:
                    self.send_header("ETag", f'"{hash(content)}"')
            else:
                self.send_header("Content-Length", "0")
            self.end_headers()
            if status == 200 and content is not None and self.command == "GET":
                self.wfile.write(content[: len(content) // 2] if found.cuts_short else content)

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Site(server)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


def packed(folder: Path) -> bytes:
    target = folder.with_suffix(".tar.gz")
    with tarfile.open(target, "w:gz") as tar:
        tar.add(folder, "models")
    return target.read_bytes()


def names(folder: Path) -> list[str]:
    return [model.name for model in Registry(folder)]


# --- where they are


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://bucket/models", "s3://bucket/models"),
        ("gs://bucket/a/b/", "gs://bucket/a/b"),
        ("https://example.com:8443/models.tar.gz?token=a%2Fb", "https://example.com:8443/models.tar.gz?token=a%2Fb"),
        ("file:///srv/models", "file:///srv/models"),
        ("memory://models", "memory://models"),
        ("models", None),
        ("/srv/models", None),
        ("C:/models", None),
    ],
)
def test_a_url_is_known_from_a_folder(given: str, url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDLOOP_MODELS", given)
    assert remote.url_of(Settings().models) == url


def test_nothing_secret_of_a_url_is_shown() -> None:
    assert remote.shown("https://me:secret@example.com/a.tar?token=secret#x") == "https://example.com/a.tar"


# --- fetching


def test_a_folder_in_storage_is_served(stored: Path) -> None:
    assert names(located(Path(f"file://{stored}"))) == ["colours", "steps"]


def test_an_archive_on_a_web_server_is_served(stored: Path, site: Site) -> None:
    site.files["/models.tar.gz"] = packed(stored)
    folder = located(Path(f"{site.url}/models.tar.gz?token=secret"))
    assert names(folder) == ["colours", "steps"]
    assert not any("secret" in str(path) for path in folder.parent.rglob("*"))


def test_storage_without_folders_or_files_is_served() -> None:
    fsspec = pytest.importorskip("fsspec")
    storage = fsspec.filesystem("memory")
    storage.pipe({"/bucket/m/manifest.toml": b'task = "tensor"', "/bucket/m/1/model.onnx": b"not one"})
    folder = located(Path("memory://bucket"))
    assert (folder / "m/1/model.onnx").read_bytes() == b"not one"
    assert remote.refresh(folder, at_once=True) is False  # though it tells nothing of what its files hold
    storage.pipe("/bucket/m/1/model.onnx", b"another")
    assert remote.refresh(folder, at_once=True) is True
    storage.rm("/bucket", recursive=True)


def test_what_has_not_changed_is_not_fetched_again(stored: Path, site: Site) -> None:
    site.files["/models.tar"] = packed(stored)
    url = f"{site.url}/models.tar"
    folder = remote.fetched(url)
    site.asked.clear()
    assert remote.fetched(url) == folder
    assert remote.refresh(folder, at_once=True) is False
    assert {asked.partition(" ")[0] for asked in site.asked} == {"HEAD"}


def test_only_what_has_changed_is_fetched_again(stored: Path) -> None:
    """The other files are the very same, so a server that watches the folder loads nothing else anew."""
    folder = remote.fetched(f"file://{stored}")
    before = {name: (folder / name).stat().st_ino for name in ("colours/1/model.onnx", "steps/manifest.toml")}
    (stored / "steps/manifest.toml").write_text('task = "anomaly-detection"\ndescription = "New."')
    assert remote.refresh(folder, at_once=True) is True
    assert "New." in (folder / "steps/manifest.toml").read_text()
    assert (folder / "colours/1/model.onnx").stat().st_ino == before["colours/1/model.onnx"]
    assert (folder / "steps/manifest.toml").stat().st_ino != before["steps/manifest.toml"]


def test_of_a_new_archive_what_is_the_same_stays_the_same_file(stored: Path, site: Site) -> None:
    site.files["/models.tar"] = packed(stored)
    folder = remote.fetched(f"{site.url}/models.tar")
    graph = (folder / "colours/1/model.onnx").stat().st_ino
    (stored / "colours/card.md").write_text("# Other\n")
    site.files["/models.tar"] = packed(stored)
    assert remote.refresh(folder, at_once=True) is True
    assert (folder / "colours/card.md").read_text() == "# Other\n"
    assert (folder / "colours/1/model.onnx").stat().st_ino == graph


def test_a_model_that_is_gone_there_is_gone_here(stored: Path) -> None:
    folder = remote.fetched(f"file://{stored}")
    shutil.rmtree(stored / "steps")
    assert remote.refresh(folder, at_once=True) is True
    assert names(folder) == ["colours"]


def test_a_server_that_tells_nothing_of_its_files_is_asked_for_them(stored: Path, site: Site) -> None:
    site.tells = False
    site.files["/models.tar"] = packed(stored)
    folder = remote.fetched(f"{site.url}/models.tar")
    assert remote.refresh(folder, at_once=True) is False
    shutil.rmtree(stored / "steps")
    site.files["/models.tar"] = packed(stored)
    assert remote.refresh(folder, at_once=True) is True
    assert names(folder) == ["colours"]


def test_it_is_asked_at_most_once_a_minute(stored: Path) -> None:
    folder = remote.fetched(f"file://{stored}")
    shutil.rmtree(stored / "steps")
    assert remote.refresh(folder) is False
    assert names(folder) == ["colours", "steps"]


def test_a_folder_that_was_not_fetched_has_nothing_to_refresh(stored: Path) -> None:
    assert remote.refresh(stored, at_once=True) is False


def test_the_snapshot_before_is_kept_and_older_ones_go(stored: Path) -> None:
    folder = remote.fetched(f"file://{stored}")
    for number in range(3):
        (stored / "colours/card.md").write_text(f"# {number}\n")
        assert remote.refresh(folder, at_once=True) is True
    snapshots = [path for path in (folder.parent / "snapshots").iterdir() if path.is_dir()]
    assert sorted(path.joinpath("colours/card.md").read_text() for path in snapshots) == ["# 1\n", "# 2\n"]


# --- what goes wrong


def test_an_archive_that_comes_short_is_never_served(stored: Path, site: Site) -> None:
    site.files["/models.tar"] = packed(stored)
    folder = remote.fetched(f"{site.url}/models.tar")
    (stored / "colours/card.md").write_text("# Other\n")
    site.files["/models.tar"] = packed(stored)
    site.cuts_short = True
    with capture_logs() as lines:
        assert remote.refresh(folder, at_once=True) is False
    assert "could not be fetched" in lines[0]["event"]
    assert names(folder) == ["colours", "steps"]
    assert "# Other" not in (folder / "colours/card.md").read_text()


def test_storage_that_changes_while_it_is_fetched_is_fetched_until_it_rests(
    stored: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a snapshot is never half of one upload and half of the next."""
    get, changes = Elsewhere.get, iter(range(1000))

    def meddle(self: Any, file: Any, target: Path) -> None:
        get(self, file, target)
        if (number := next(changes, None)) is not None:
            (stored / "colours/card.md").write_text("#" * number)

    monkeypatch.setattr(Elsewhere, "get", meddle)
    with pytest.raises(RemoteUnusable, match="changes while it is fetched"):
        remote.fetch(f"file://{stored}", cache / "place")
    assert not (cache / "place/current").exists()
    changes = iter([1, 2, 3])
    assert remote.fetch(f"file://{stored}", cache / "place") is True
    assert (cache / "place/current/colours/card.md").read_text() == "###"


def test_storage_that_cannot_be_reached_leaves_what_was_fetched_last(stored: Path) -> None:
    url = f"file://{stored}"
    folder = remote.fetched(url)
    stored.rename(stored.with_name("away"))
    with capture_logs() as lines:
        assert names(remote.fetched(url)) == ["colours", "steps"]
        assert remote.refresh(folder, at_once=True) is False
    assert [line["log_level"] for line in lines] == ["warning"] * 2
    assert "there is nothing at file://" in lines[0]["reason"]


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("file:///no/such/folder", "there is nothing at file:///no/such/folder"),
        ("nonsense://x/y", "nonsense://x/y cannot be fetched .*Protocol not known"),
        (
            "http://127.0.0.1:9/models",
            "http://127.0.0.1:9/models is no archive .*a web server's folders cannot be listed",
        ),
        ("http://me:secret@127.0.0.1:9/m.tar", "http://127.0.0.1:9/m.tar cannot be fetched .*"),
    ],
)
def test_what_cannot_be_had_is_said_in_a_sentence(url: str, complaint: str) -> None:
    with pytest.raises(SettingUnusable, match=f"^GRIDLOOP_MODELS: {complaint}") as caught:
        remote.fetched(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("status", "complaint"), [(403, "cannot be fetched"), (404, "there is nothing at")])
def test_a_web_server_that_refuses_is_named(stored: Path, site: Site, status: int, complaint: str) -> None:
    site.files["/models.tar"] = packed(stored)
    site.status = status
    with pytest.raises(SettingUnusable, match=complaint):
        remote.fetched(f"{site.url}/models.tar")


def test_without_the_extra_it_says_what_to_install(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(SettingUnusable, match=r"fsspec, which is not installed: pip install 'gridloop\[remote\]'"):
        remote.fetched(f"file://{stored}")


def test_a_name_that_leads_out_of_the_folder_is_refused(cache: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    storage = fsspec.filesystem("memory")
    storage.store["/evil/../../out"] = storage.store.get("x") or fsspec.implementations.memory.MemoryFile(
        storage, "/evil/../../out", b"x"
    )
    try:
        with pytest.raises(RemoteUnusable, match="leads out of its folder"):
            remote.fetch("memory://evil", cache / "place")
    finally:
        storage.store.clear()


def test_what_a_killed_fetch_has_left_is_no_hindrance(stored: Path, cache: Path) -> None:
    place = cache / "place"
    (place / "partial/models/colours").mkdir(parents=True)
    (place / "new").symlink_to("nowhere")
    assert remote.fetch(f"file://{stored}", place) is True
    assert names(place / "current") == ["colours", "steps"]


# --- as a user


def test_every_command_takes_a_url(stored: Path) -> None:
    done = CliRunner().invoke(main, ["models", "--json", "--models", f"file://{stored}"])
    assert [model["name"] for model in json.loads(done.stdout)] == ["colours", "steps"]
    done = CliRunner().invoke(main, ["models", "--models", "file:///no/such"])
    assert done.exit_code == 2
    assert "there is nothing at file:///no/such" in done.stderr


def test_the_libraries_of_storage_are_not_imported_by_the_server(stored: Path) -> None:
    """They are for the process that fetches."""
    code = (
        "import sys; from pathlib import Path; import service.server; from service.registry.installed import located; "
        f"located(Path('file://{stored}')); print('fsspec' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


# --- S3


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A local S3 server with a bucket `models`, and a client of it."""
    pytest.importorskip("s3fs", reason="too large for every test run: pip install s3fs 'moto[server]'")
    moto = pytest.importorskip("moto.server", reason="too large for every test run: pip install s3fs 'moto[server]'")
    import boto3

    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    yield client
    server.stop()


def uploaded(client: Any, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "models", f"production/{path.relative_to(folder)}")


@pytest.mark.filterwarnings("ignore")  # boto3's own
def test_a_bucket_is_served_and_what_changes_in_it_is_fetched(s3: Any, stored: Path) -> None:
    uploaded(s3, stored)
    folder = located(Path("s3://models/production"))
    assert names(folder) == ["colours", "steps"]
    graph = (folder / "colours/1/model.onnx").stat().st_ino
    assert remote.refresh(folder, at_once=True) is False
    (stored / "steps/card.md").write_text("# New\n")
    uploaded(s3, stored)
    assert remote.refresh(folder, at_once=True) is True
    assert (folder / "steps/card.md").read_text() == "# New\n"
    assert (folder / "colours/1/model.onnx").stat().st_ino == graph
    with pytest.raises(SettingUnusable, match="there is nothing at s3://models/other"):
        located(Path("s3://models/other"))


def test_what_has_changed_is_fetched_again_and_again_until_the_server_ends(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "REFRESH_S", 0.05)
    folder = remote.fetched(f"file://{stored}")
    assert remote.is_fetched(folder)
    here, there = socket.socketpair()
    keeping = threading.Thread(target=remote.keep_up_to_date, args=[folder, there])
    keeping.start()
    (stored / "steps/manifest.toml").write_text('task = "anomaly-detection"\ndescription = "New."')
    until = time.monotonic() + 60
    while "New." not in (folder / "steps/manifest.toml").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    here.close()
    keeping.join(60)
    assert not keeping.is_alive()
    there.close()
