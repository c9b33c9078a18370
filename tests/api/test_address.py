"""Where clients find the server: curl lines, prefixes of proxies, and who is believed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from service.api.address import Address, trusted_peers, without_prefix
from service.settings import Settings
from tests import graphs
from tests.api.test_short_way import answer, post, serving
from tests.conftest import running

SERIES = "/v1/anomaly-detection"
FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/ml", "X-Forwarded-Host": "api.example.com"}


async def begins(client: httpx.AsyncClient, **headers: str) -> str:
    """What the curl lines of the models begin with, up to the path."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    listed = (await client.get("/v1/models", headers=fields)).json()["models"]
    alone = (await client.get("/v1/models/steps", headers=fields)).json()
    found = {re.split(r"/v1/", model["curl"])[0].replace("'", "") for model in [*listed, alone]}
    assert len(found) == 1
    return found.pop()


# --- curl lines


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8331", "gpu-box", "Example.COM:80", "[::1]:8000", "my_service.internal:1", "10.0.0.7"]
)
async def test_a_curl_line_has_the_host_that_was_asked(client: httpx.AsyncClient, host: str) -> None:
    assert await begins(client, Host=host) == f"curl http://{host}"


@pytest.mark.parametrize(
    "host", ["", "a b", "x'; rm -rf ~; '", "$(reboot)", "a/b", "a?b", "user@host", "[::1", "a:b", "x" * 300, "<b>"]
)
async def test_a_host_that_a_shell_could_misread_gives_way_to_the_configured_address(models: Path, host: str) -> None:
    async with running(models, port=8331) as client:
        assert await begins(client, Host=host) == "curl http://127.0.0.1:8331"


@pytest.mark.parametrize(
    ("settings", "begin", "authority"),
    [
        ({"port": 8331}, "curl", "http://127.0.0.1:8331"),
        ({"host": "0.0.0.0"}, "curl", "http://127.0.0.1:8000"),
        ({"host": "::", "port": 1}, "curl", "http://[::1]:1"),
        ({"host": "gpu-box"}, "curl", "http://gpu-box:8000"),
        ({"host": "unix:/run/my socket"}, "curl --unix-socket '/run/my socket'", "http://localhost"),
    ],
)
def test_the_configured_address_is_one_that_can_be_asked(settings: dict[str, Any], begin: str, authority: str) -> None:
    address = Address.configured(Settings(**settings))
    assert (address.curl, address.url) == (begin, authority)


# --- proxies


async def test_a_trusted_proxy_says_scheme_host_and_prefix(client: httpx.AsyncClient) -> None:
    assert await begins(client, **FORWARDED) == "curl https://api.example.com/ml"


async def test_others_are_not_believed(models: Path) -> None:
    async with running(models, trusted_proxies=("10.0.0.0/8",)) as client:
        assert await begins(client, Host="here", **FORWARDED) == "curl http://here"
        assert "servers" not in (await client.get("/openapi.json", headers=FORWARDED)).json()
        assert (await client.get("/ml/livez", headers=FORWARDED)).status_code == 404


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Forwarded-Proto": "HTTPS"}, "https://test"),
        ({"X-Forwarded-Proto": "https, http"}, "https://test"),
        ({"X-Forwarded-Proto": "javascript"}, "http://test"),
        ({"X-Forwarded-Host": "a.example, b.example"}, "http://a.example"),
        ({"X-Forwarded-Host": "a b"}, "http://test"),
        ({"X-Forwarded-Prefix": "/a, /b/"}, "http://test/a/b"),
        ({"X-Forwarded-Prefix": "ml/"}, "http://test/ml"),
        ({"X-Forwarded-Prefix": "/"}, "http://test"),
        ({"X-Forwarded-Prefix": "//evil.example"}, "http://test/evil.example"),
        ({"X-Forwarded-Prefix": "/a/../b"}, "http://test"),
        ({"X-Forwarded-Prefix": '/"><script>'}, "http://test"),
        ({"X-Forwarded-Prefix": "/" + "a" * 300}, "http://test"),
    ],
)
async def test_what_proxies_say_is_read_with_care(
    client: httpx.AsyncClient, headers: dict[str, str], expected: str
) -> None:
    assert await begins(client, **headers) == f"curl {expected}"


async def test_prefixes_on_several_lines_are_put_together(client: httpx.AsyncClient) -> None:
    lines = [("X-Forwarded-Prefix", "/apis"), ("X-Forwarded-Prefix", "/ml")]
    assert (await client.get("/openapi.json", headers=lines)).json()["servers"] == [{"url": "/apis/ml"}]


@pytest.mark.parametrize(
    ("trusted", "peer", "believed"),
    [
        ("127.0.0.0/8,::1,unix", "127.0.0.1", True),
        ("127.0.0.0/8,::1,unix", "127.9.9.9", True),
        ("127.0.0.0/8,::1,unix", "::1", True),
        ("127.0.0.0/8,::1,unix", "::ffff:127.0.0.1", True),
        ("127.0.0.0/8,::1,unix", "10.0.0.1", False),
        ("127.0.0.0/8,::1,unix", None, True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", None, False),
        ("10.1.2.3/24", "10.1.2.9", True),
        ("fd00::/8", "fd00::7", True),
        ("*", "8.8.8.8", True),
        ("*", None, True),
        ("", "127.0.0.1", False),
        ("", "not an address", False),
    ],
)
def test_who_is_believed(trusted: str, peer: str | None, believed: bool) -> None:
    assert trusted_peers(Settings(trusted_proxies=trusted).trusted_proxies)(peer) is believed  # type: ignore[arg-type]


# --- prefixes


WITH_PREFIX = [({"root_path": "/ml"}, {}), ({}, {"X-Forwarded-Prefix": "/ml"})]


@pytest.mark.parametrize(("settings", "headers"), WITH_PREFIX, ids=["setting", "header"])
@pytest.mark.parametrize("before", ["", "/ml"], ids=["taken off", "left on"])
async def test_every_route_is_there_whether_or_not_the_proxy_takes_the_prefix_off(
    models: Path, settings: dict[str, Any], headers: dict[str, str], before: str
) -> None:
    async with running(models, **settings) as client:
        client.headers.update(headers)
        for path in ("/livez", "/v1/models", "/v1/models/steps", "/v2", "/v2/models/steps", "/metrics", "/docs"):
            assert (await client.get(f"{before}{path}")).status_code == 200, path
        asked = await client.post(f"{before}{SERIES}", json={"values": [0, 0, 5]})
        assert asked.json()["anomalies"] == [2]
        asked = await client.post(f"{before}/v1/image-classification?top_k=1", content=graphs.png())
        assert asked.json()["results"][0]["predictions"][0]["label"] == "red"
        refused = await client.get(f"{before}/v1/models/nobody")
        assert (refused.status_code, refused.json()["instance"]) == (404, "/v1/models/nobody")
        refused = await client.get(f"{before}/v2/models/nobody")
        assert list(refused.json()) == ["error"]
        assert (await client.get(f"{before}/nowhere")).json()["instance"] == "/nowhere"
        assert (await client.get("/mlx/livez")).status_code == 404


@pytest.mark.parametrize(("settings", "headers"), WITH_PREFIX, ids=["setting", "header"])
@pytest.mark.parametrize("page", ["/", "/docs", "/redoc"])
async def test_all_that_a_page_asks_for_is_below_the_prefix(
    models: Path, settings: dict[str, Any], headers: dict[str, str], page: str
) -> None:
    async with running(models, **settings) as client:
        client.headers.update(headers)
        html = (await client.get(page)).text
        linked = re.findall(r"""(?:src|href|spec-url|url)(?:=|: )["']([^"'#]+)["']""", html)
        assert len(linked) >= 2
        for link in (urljoin(f"/ml{page}", link) for link in linked):
            assert link.startswith("/ml/"), link
            assert (await client.get(link.removeprefix("/ml"))).status_code == 200
            assert (await client.get(link)).status_code == 200
        document = (await client.get("/openapi.json")).json()
        assert document["servers"] == [{"url": "/ml"}]
        client.headers.clear()
    async with running(models) as client:
        assert "servers" not in (await client.get("/openapi.json")).json()


@pytest.mark.parametrize(("settings", "headers"), WITH_PREFIX, ids=["setting", "header"])
@pytest.mark.parametrize(
    ("path", "target"), [("/docs/", "/ml/docs"), ("/ml/docs/", "/ml/docs"), ("/docs/?a=b", "/ml/docs?a=b")]
)
async def test_redirects_keep_the_prefix_and_by_naming_no_host_the_scheme(
    models: Path, settings: dict[str, Any], headers: dict[str, str], path: str, target: str
) -> None:
    async with running(models, **settings) as client:
        there = await client.get(path, headers=headers)
        assert (there.status_code, there.headers["location"]) == (307, target)


@pytest.mark.parametrize("path", ["/", "/docs/", "/v1/models/", "/v1/anomaly-detection/", "//evil.example/docs/"])
@pytest.mark.parametrize("name", ["Host", "X-Forwarded-Host"])
async def test_no_redirect_leads_to_a_host_that_a_client_names(client: httpx.AsyncClient, path: str, name: str) -> None:
    there = await client.get(path, headers={name: "evil.example"})
    location = there.headers.get("location", "")
    assert "evil" not in location
    assert not location.startswith("//")


async def test_a_key_is_needed_below_the_prefix_too(models: Path) -> None:
    async with running(models, root_path="/ml", api_keys=("secret",)) as client:
        for path in ("/ml/v1/models", "/v1/models", "/ml/metrics"):
            assert (await client.get(path)).status_code == 401
        assert (await client.post(f"/ml{SERIES}", json={"values": [1]})).status_code == 401
    async with running(models, api_keys=("secret",)) as client:
        assert (await client.get("/ml/v1/models", headers={"X-Forwarded-Prefix": "/ml"})).status_code == 401


@pytest.mark.parametrize(
    ("path", "prefix", "ours"),
    [
        ("/ml/v1/models", "/ml", "/v1/models"),
        ("/ml", "/ml", "/"),
        ("/ml/", "/ml", "/"),
        ("/mlx", "/ml", "/mlx"),
        ("/ml/ml/v1", "/ml", "/ml/v1"),
        ("/v1/models", "/v1", "/v1/models"),
        ("/playground/app.js", "/playground", "/playground/app.js"),
        ("/v1/ml/v1/models", "/v1/ml", "/v1/models"),
        ("/v2/models/steps", "/v2/models", "/v2/models/steps"),
        ("/x", "", "/x"),
    ],
)
def test_a_prefix_is_taken_off_once_and_never_where_it_is_one_of_our_paths(path: str, prefix: str, ours: str) -> None:
    assert without_prefix(path, prefix) == ours


async def test_the_short_way_is_there_below_the_configured_prefix(models: Path) -> None:
    async with serving(models, root_path="/ml") as served:
        reader, writer = await served.connect()
        for _ in range(3):  # from the second time on the head is known
            writer.write(post(path=f"/ml{SERIES}"))
            assert (await answer(reader))[0] == 200
        body = post(path=f"/ml{SERIES}")
        writer.write(body[:-5])  # this one comes in pieces, and goes the long way
        await writer.drain()
        writer.write(body[-5:])
        assert (await answer(reader))[0] == 200
        assert served.begun >= 3
        writer.close()


async def test_a_head_that_a_trusted_proxy_sent_is_worth_nothing_from_others(models: Path) -> None:
    """Heads are remembered for all connections: what depends on the peer must not be in them."""
    async with serving(models, trusted_proxies=()) as served:
        assert [
            status for status, _ in await served.ask(post(b"{}", "X-Forwarded-Prefix: /ml", path=f"/ml{SERIES}"))
        ] == [404]
    async with serving(models) as served:
        asked = post(b'{"values": [0, 0, 5]}', "X-Forwarded-Prefix: /ml", path=f"/ml{SERIES}")
        assert [status for status, _ in await served.ask(asked, asked)] == [200, 200]
        assert served.edge.heads == {}
