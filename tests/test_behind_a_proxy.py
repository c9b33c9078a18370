"""The server behind proxies, configured as docs/behind-a-proxy.md says: nginx and Caddy where they are, and a small one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from tests import graphs
from tests.test_listening import client_of, folder, serving
from tests.test_server import free_port, wait_for

__all__ = ["folder"]

PAGE = (Path(__file__).parent.parent / "docs/behind-a-proxy.md").read_text()
BLOCKS = dict(re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL))
PREFIX = "/ml"
SERIES = {"values": [0, 0, 5]}


@contextmanager
def small_proxy(_: Path, socket: Path) -> Iterator[str]:
    """Takes the prefix off and sets the headers that the page's nginx sets."""
    told = dict(re.findall(r"proxy_set_header (X-\S+|Host) (\S+);", BLOCKS["nginx"]))
    assert set(told) == {"Host", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix"}
    upstream = client_of(socket)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            known = {"$http_host": self.headers["Host"], "$scheme": "https"}
            headers = dict(self.headers) | {name: known.get(value, value) for name, value in told.items()}
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            assert self.path.startswith(f"{PREFIX}/")
            path = self.path.removeprefix(PREFIX)
            with upstream.stream(self.command, path, headers=headers, content=body) as answer:
                sent = b"".join(answer.iter_raw())  # as encoded as it came
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name != "date":
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)

        do_POST = do_HEAD = do_GET  # noqa: N815  the names are the library's

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, upstream:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}"  # as its clients would see it
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def running(command: list[str], url: str) -> Iterator[str]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}{PREFIX}/livez").status_code == 200
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        return False

    try:
        wait_for(answers)
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=30)


@contextmanager
def nginx(folder: Path, socket: Path) -> Iterator[str]:
    port = free_port()
    block = BLOCKS["nginx"].replace("listen 443 ssl", f"listen 127.0.0.1:{port}")
    block = block.replace("/run/gridloop/http.sock", str(socket))
    block = "\n".join(line for line in block.splitlines() if "ssl_certificate" not in line)
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # else its workers could not enter the folder
    main = f"{user} daemon off; pid {folder}/pid; error_log stderr; events {{}}"
    config.write_text(f"{main}\nhttp {{\naccess_log off;\n{places}{block}}}\n")
    with running(["nginx", "-p", str(folder), "-c", str(config), "-e", "stderr"], f"http://127.0.0.1:{port}") as url:
        yield url


@contextmanager
def caddy(folder: Path, socket: Path) -> Iterator[str]:
    url = f"http://127.0.0.1:{free_port()}"
    block = (
        BLOCKS["caddyfile"].replace("api.example.com", url).replace("unix//run/gridloop/http.sock", f"unix/{socket}")
    )
    config = folder / "Caddyfile"
    config.write_text(f"{{\nadmin off\nauto_https off\n}}\n{block}")
    with running(["caddy", "run", "--config", str(config), "--adapter", "caddyfile"], url) as there:
        yield there


def if_installed(proxy: Callable[..., Any]) -> Any:
    name = proxy.__name__
    return pytest.param(proxy, marks=pytest.mark.skipif(shutil.which(name) is None, reason=f"needs {name}"))


@pytest.mark.parametrize("proxy", [small_proxy, if_installed(nginx), if_installed(caddy)])
def test_all_that_a_browser_follows_stays_below_the_prefix(
    models: Path, folder: Path, proxy: Callable[[Path, Path], Any]
) -> None:
    socket = folder / "http.sock"
    with (
        serving(models, socket, f"--host=unix:{socket}", "--workers=2"),
        proxy(folder, socket) as url,
        httpx.Client(base_url=url.replace("https:", "http:")) as browser,
    ):
        for page in ("/", "/docs", "/redoc"):
            html = browser.get(f"{PREFIX}{page}").text
            linked = re.findall(r"""(?:src|href|spec-url|url)(?:=|: )["']([^"'#]+)["']""", html)
            assert len(linked) >= 2
            for link in (urljoin(f"{PREFIX}{page}", link) for link in linked):
                assert link.startswith(f"{PREFIX}/"), link
                assert browser.get(link).status_code == 200
        assert browser.get(f"{PREFIX}/openapi.json").json()["servers"] == [{"url": PREFIX}]
        assert browser.get(f"{PREFIX}/docs/").headers["location"] == f"{PREFIX}/docs"
        assert browser.head(f"{PREFIX}/livez").status_code == 200
        for _ in range(3):
            asked = browser.post(f"{PREFIX}/v1/anomaly-detection", json=SERIES)
            assert asked.json()["anomalies"] == [2]
        asked = browser.post(f"{PREFIX}/v1/image-classification?top_k=1", files={"file": graphs.png()})
        assert asked.json()["results"][0]["predictions"][0]["label"] == "red"
        missing = browser.get(f"{PREFIX}/v1/models/nobody")
        assert (missing.status_code, missing.json()["instance"]) == (404, "/v1/models/nobody")
        curl = browser.get(f"{PREFIX}/v1/models/steps").json()["curl"]
        assert curl.startswith(f"curl {url}{PREFIX}/v1/anomaly-detection ")
        if shutil.which("curl"):
            run = ["bash", "-c", curl.replace("https:", "http:").replace("curl ", "curl -s ", 1)]
            printed = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True).stdout
            assert json.loads(printed)["model"]["name"] == "steps"


def test_the_page_shows_the_proxies_that_are_tried_here() -> None:
    assert {"nginx", "caddyfile", "yaml", "ini", "console"} == set(BLOCKS)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_pages_commands_print_what_it_shows(models: Path, folder: Path) -> None:
    steps = [
        (command, output.strip())
        for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
        for command, _, output in (
            step.replace("\\\n", "").partition("\n") for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
        )
    ]
    servers = [command for command, _ in steps if "gridloop serve" in command]
    asked = [step for step in steps if step[0].startswith("curl ")]
    assert len(servers) == len(asked) == 2
    for server, (command, output) in zip(servers, asked, strict=True):
        setting, value = re.match(r"GRIDLOOP_(\w+)=(\S+) gridloop serve", server).groups()  # type: ignore[union-attr]
        socket = folder / "http.sock"
        options = {"host": f"unix:{socket}"} | {setting.lower(): value.replace("/run/gridloop/http.sock", str(socket))}
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        here = command.replace("/run/gridloop/http.sock", str(socket))
        if "--unix-socket" not in here:
            here = here.replace("curl ", f"curl --unix-socket {socket} ", 1)
        with serving(models, socket, "--workers=1", *arguments):
            printed = subprocess.run(
                ["bash", "-c", here], capture_output=True, text=True, timeout=60, check=True
            ).stdout
        for line in output.removesuffix("…").splitlines():
            assert line in printed
