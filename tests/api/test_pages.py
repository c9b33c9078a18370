"""The pages that a browser opens: they ask no other host, and an endpoint can be tried with one press."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from PIL import Image

from tests.api.test_openapi import operations
from tests.browser import CHROMIUM, Page, browsing
from tests.test_server import Server, serving

PAGES = ["/docs", "/redoc"]
MODELS = Path(__file__).parent.parent.parent / "models"


@pytest.mark.parametrize("page", PAGES)
async def test_a_page_links_to_what_is_there_and_to_no_other_host(client: httpx.AsyncClient, page: str) -> None:
    """Relative links, so that they lead to the same below any path prefix."""
    html = (await client.get(page)).text
    links = re.findall(r'(?:src|href|spec-url)="([^"]+)"', html)
    assert len(links) >= 3
    for link in links:
        assert not link.startswith(("/", "http")), link
        assert (await client.get(urljoin(page, link))).status_code == 200, link
    assert "//" not in html


async def test_what_the_pages_load_names_no_other_host_to_load_from(client: httpx.AsyncClient) -> None:
    for own in ("docs.js", "docs.css", "redoc.css"):
        assert "//" not in re.sub(r"(^|\s)// .*", "", (await client.get(f"/static/{own}")).text)
    library = (await client.get("/static/redoc.js")).text
    assert len(library) > 500_000
    assert not re.search(r'src:"https?:', library)


@pytest.mark.parametrize("page", PAGES)
async def test_the_browser_is_told_to_load_from_here_only(client: httpx.AsyncClient, page: str) -> None:
    policy = (await client.get(page)).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy


@pytest.mark.parametrize("page", PAGES)
async def test_the_browser_is_told_what_a_page_may_do_and_who_may_frame_it(
    client: httpx.AsyncClient, page: str
) -> None:
    headers = (await client.get(page)).headers
    assert "frame-ancestors 'self'" in headers["content-security-policy"]
    assert headers["x-frame-options"] == "SAMEORIGIN"
    assert headers["referrer-policy"] == "no-referrer"
    for sensor in ("camera", "microphone", "geolocation"):
        assert f"{sensor}=()" in headers["permissions-policy"]


@pytest.mark.parametrize(
    "path", ["/", *PAGES, "/static/docs.js", "/openapi.json", "/v1/models", "/<b>", "/v2/models/<b>"]
)
async def test_no_browser_may_take_an_answer_for_something_else(client: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "HEAD", "PUT"):
        assert (await client.request(method, path)).headers["x-content-type-options"] == "nosniff"


async def test_there_is_an_icon(client: httpx.AsyncClient) -> None:
    answer = await client.get("/favicon.ico")
    assert answer.headers["content-type"] == "image/x-icon"
    with Image.open(io.BytesIO(answer.content)) as icon:
        assert icon.format == "ICO"
        assert icon.size == (48, 48)
    for page in PAGES:
        assert 'rel="icon" type="image/svg+xml" href="static/favicon.svg"' in (await client.get(page)).text
    assert (await client.get("/static/favicon.svg")).headers["content-type"] == "image/svg+xml"


# --- in a browser


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(MODELS, workers=1) as running:
        yield running


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with browsing(tmp_path_factory.mktemp("profile")) as page:
        yield page


def tag_of(path: str) -> str:
    """Under what an operation is on the documentation page."""
    return str(next(op["tags"][0] for where, _, op in operations() if where == path))


def opened(path: str, name: str) -> str:
    """Selects the block of an operation on the documentation page."""
    return f"document.getElementById('operations-{tag_of(path)}-{name}')"


MEDIA = [
    (path, op["operationId"])
    for path, _, op in operations()
    if "multipart/form-data" in op.get("requestBody", {}).get("content", {})
    and (op["tags"] == ["tasks"] or op["operationId"].endswith("image_classification"))
]
"""Every task that takes files, and what else takes them as it does, for one of them."""


@pytest.mark.parametrize(("path", "name"), MEDIA, ids=[path for path, _ in MEDIA])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_file_endpoint_shows_an_answer_after_one_press(
    server: Server, page: Page, path: str, name: str, width: int
) -> None:
    """The form comes first, its file chooser holds the sample, and errors are one line each until they are opened."""
    page.resize(width, 900)
    page.open("about:blank")
    page.open(f"{server.url}/docs#/{tag_of(path)}/{name}")
    block = opened(path, name)
    page.wait_for(f"{block}?.querySelector('input[type=file]')?.files.length")
    assert page.evaluate(f"{block}.querySelector('.body-param-content-type select').value") == "multipart/form-data"
    errors = f"[...{block}.querySelectorAll('tr.response')].filter(row => /^[45]/.test(row.dataset.code))"
    assert page.evaluate(f"{errors}.length") > 5
    assert page.evaluate(f"{errors}.filter(row => row.querySelector('pre, textarea')).length") == 0
    page.evaluate(f"{errors}[0].querySelector('button').click()")
    page.wait_for(f"{errors}[0].querySelector('.example')?.innerText")
    page.evaluate(f"{block}.querySelector('.execute').click()")
    answer = page.wait_for(f"{block}.querySelector('.live-responses-table .response')?.innerText")
    assert answer.split()[0] == "200"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.complaints == []
    assert [url for url in page.asked if not url.startswith((server.url, "about:", "data:", "blob:"))] == []


@pytest.mark.parametrize("width", [1280, 390])
def test_redoc_shows_every_operation_and_asks_no_other_host(server: Server, page: Page, width: int) -> None:
    page.resize(width, 900)
    page.open("about:blank")
    page.open(f"{server.url}/redoc")
    page.wait_for("document.querySelectorAll('h2').length >= 5")
    text = page.evaluate("document.body.innerText")
    assert [op["summary"] for _, _, op in operations() if op["summary"] not in text] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.complaints == []
    assert [url for url in page.asked if not url.startswith((server.url, "about:", "data:", "blob:"))] == []
