"""The playground: what is served for it, and what a person sees who tries every task in a browser."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import wave
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
import soundfile

from tests import playground as steps
from tests.browser import CHROMIUM, Page, browsing
from tests.conftest import running
from tests.test_new_task import House, house
from tests.test_server import Server, serving

__all__ = ["house"]

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "models"
FOLDER = ROOT / "service" / "playground"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())
OWN = [name for name in FILES if name.endswith((".js", ".css", ".html")) and not name.startswith("vendor/")]
AXE = (ROOT / "tests" / "vendor" / "axe.min.js").read_text("utf-8")
TASKS = list(steps.SEEN)

pytestmark = pytest.mark.timeout(600)  # the first to start all models waits until they are measured


# --- what is served


async def test_the_root_is_a_page_without_inline_code_under_a_policy_that_forbids_it(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert not re.search(r"<style|style=|\bon\w+=|<script(?![^>]*src=)", page.text)
    assert "camera=(self)" in page.headers["permissions-policy"]
    assert "geolocation=()" in page.headers["permissions-policy"]


async def test_every_file_of_the_page_is_there_and_all_that_it_loads(client: httpx.AsyncClient) -> None:
    """Links of the page, imports of the modules, libraries, worklets."""
    html = (await client.get("/")).text
    linked = {urljoin("/", link) for link in re.findall(r'(?:src|href)="([^"#]+)"', html)}
    for name in (name for name in OWN if name.endswith(".js")):
        text = (FOLDER / name).read_text("utf-8")
        assert "import(" not in text
        linked |= {
            urljoin(f"/playground/{name}", link) for link in re.findall(r'(?:from|new URL\() ?"(\.[^"]+)"', text)
        }
        linked |= {f"/playground/vendor/{file}" for file in re.findall(r'library\("([^"]+)"', text)}
    assert {link.removeprefix("/playground/") for link in linked} >= {name for name in OWN if name.endswith(".js")}
    for link in linked - {"/"}:
        answer = await client.get(link)
        assert answer.status_code == 200, link
        if link.endswith(".js"):
            assert answer.headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize("name", OWN)
def test_no_file_of_the_page_names_another_host(name: str) -> None:
    text = (FOLDER / name).read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://\w", text)


@pytest.mark.parametrize("path", ["/", "/playground/app.js", "/playground/samples/cat.webp"])
@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_a_browser_keeps_what_has_not_changed(client: httpx.AsyncClient, path: str, encoding: str) -> None:
    first = await client.get(path, headers={"Accept-Encoding": encoding})
    etag = first.headers["etag"]
    again = await client.get(path, headers={"Accept-Encoding": encoding, "If-None-Match": etag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert (await client.get(path, headers={"If-None-Match": '"another"'})).status_code == 200
    assert first.headers["cache-control"] == "no-cache"
    is_packed = encoding == "gzip" and not path.endswith(".webp")
    assert first.headers.get("content-encoding") == ("gzip" if is_packed else None)
    assert first.content == (await client.get(path, headers={"Accept-Encoding": "identity"})).content


@pytest.mark.parametrize("path", ["nothing.js", "../app.py", "%2e%2e/app.py", "..%2fapp.py", "samples", "//app.js"])
async def test_nothing_else_is_served_beside_the_files(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(f"/playground/{path}")).status_code == 404


async def test_the_folder_of_the_page_leads_to_the_page(client: httpx.AsyncClient) -> None:
    for path in ("/playground", "/playground/"):
        answer = await client.get(path, follow_redirects=True)
        assert (answer.status_code, answer.url.path) == (200, "/")
        assert "text/html" in answer.headers["content-type"]


@pytest.mark.parametrize("path", ["/ml", "/ml/"])
async def test_links_lead_below_the_prefix_with_and_without_its_last_slash(models: Path, path: str) -> None:
    async with running(models, root_path="/ml") as client:
        html = (await client.get(path)).text
        links = re.findall(r'(?:src|href)="([^"#]+)"', html)
        assert len(links) == 4
        for link in links:
            assert urljoin(path, link).startswith("/ml/")
            assert (await client.get(urljoin(path, link))).status_code == 200


@pytest.mark.parametrize("folder", [FOLDER / "vendor", ROOT / "tests" / "vendor"], ids=["page", "tests"])
def test_kept_libraries_are_those_that_their_table_says(folder: Path) -> None:
    rows = re.findall(
        r"^\| (\S+) \| \S+ \| ([\d.]+) \| (\S+), .*?\((\S+)\) \| (\w{64}) \|$", (folder / "README.md").read_text(), re.M
    )
    assert {name for name, *_ in rows} == {path.name for path in folder.glob("*.*s*") if path.suffix in (".js", ".css")}
    for name, _, _, licence, digest in rows:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        assert (folder / licence).stat().st_size > 500


def test_samples_are_named_for_tasks_and_models_that_there_are() -> None:
    samples = json.loads((FOLDER / "samples" / "samples.json").read_text("utf-8"))
    origins = (FOLDER / "samples" / "README.md").read_text("utf-8")
    assert set(samples) == {*TASKS, "image", "audio"}
    used = [sample for entries in samples.values() for sample in entries]
    assert {sample["file"] for sample in used if "file" in sample} == {
        path.name for path in (FOLDER / "samples").iterdir() if path.name not in ("README.md", "samples.json")
    }
    for sample in used:
        assert "file" not in sample or sample["file"] in origins
        assert "model" not in sample or (MODELS / sample["model"]).is_dir()


def test_the_page_is_small() -> None:
    """What a wheel grows by, before it is compressed."""
    assert sum((FOLDER / name).stat().st_size for name in FILES) < 1_000_000


# --- in a browser


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(MODELS, workers=1) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser whose microphone says "four two seven" and whose camera shows a test pattern."""
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    folder = tmp_path_factory.mktemp("browser")
    samples, rate = soundfile.read(FOLDER / "samples" / "four-two-seven.flac", dtype="int16")
    with wave.open(str(folder / "spoken.wav"), "wb") as spoken:
        spoken.setparams((1, 2, rate, 0, "NONE", ""))
        spoken.writeframes(samples.tobytes())
    devices = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
    with browsing(folder, *devices, f"--use-file-for-fake-audio-capture={folder / 'spoken.wav'}%noloop") as page:
        yield page


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    """A page; at the end it has asked no other host, thrown nothing, logged no error and kept to its policy."""
    browser.resize(1280, 900)
    browser.asked.clear()
    browser.complaints.clear()
    yield browser
    browser.evaluate("0")
    assert browser.complaints == []
    assert [url for url in browser.asked if not url.startswith(("http://127.0.0.1:", "about:", "data:", "blob:"))] == []


def keeps_people_out(page: Page) -> list[str]:
    """What axe finds: rule and element."""
    page.evaluate(AXE)
    found = page.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then(({ violations }) =>"
        " violations.flatMap(({ id, nodes }) => nodes.map(({ target, any, all }) => `${id}: ${target} ${[...any, ...all].map(c => c.message)}`)))"
    )
    assert isinstance(found, list)
    return found


def test_the_page_says_what_the_service_does_and_lists_every_task(server: Server, page: Page) -> None:
    page.open(f"{server.url}/")
    page.wait_for("!!document.querySelector('.cards')")
    assert steps.count(page, ".cards .card") == len(TASKS)
    assert "HTTP endpoint" in steps.text(page, ".lead")
    assert keeps_people_out(page) == []
    page.prefer("dark")
    assert keeps_people_out(page) == []
    page.prefer("light")


EXPLAINED = {
    "anomaly-detection": (".anomalies li", 2),
    "forecasting": (".bars li .fill", 10),
    "image-captioning": (".captions .word", 5),
    "image-classification": ("canvas.heat", 1),
    "image-segmentation": ("button[aria-pressed]", 3),
    "music-composition": (".sheet .shaded title", 30),
    "speech-recognition": (".frames canvas.heat + ul li", 10),
}
"""What explains the answer to a sample, and how many of them there are at least: a CSS selector, a number."""


def test_cnn_or_rnn_is_answered_with_what_was_measured_and_both_can_be_asked(server: Server, page: Page) -> None:
    measured = json.loads((FOLDER / "evidence.json").read_bytes())
    page.open(f"{server.url}/#/cnn-or-rnn")
    text = page.wait_for("document.querySelector('[data-page=cnn-or-rnn] table') && main.innerText")
    for contender in measured["contenders"]:
        assert f"{contender['model']}@{contender['version']}" in text
        assert f"{contender['weights']:,}" in text
    for training in measured["trainings"]:
        assert training["name"] in text
    assert keeps_people_out(page) == []
    page.evaluate("document.querySelector('[data-page=cnn-or-rnn] button').click()")
    chosen = "[...document.querySelectorAll('[data-panel] .pickers select')].map(s => s.value)"
    page.wait_for("!!document.querySelector('[data-panel=image-classification]')")
    assert page.evaluate(chosen) == ["cifar10-cnn", "cifar10-rnn"]
    steps.press_sample(page)
    steps.wait_for_answer(page, "image-classification", columns=2)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_answers_its_sample_after_one_press(server: Server, page: Page, task: str) -> None:
    """Seen on a desktop and a phone: facts before asking, then the answer drawn and explained, times, three calls."""
    steps.open_panel(page, server.url, task)
    assert "Licence" in steps.text(page, ".facts") or "Restricted use" in steps.text(page, ".facts")
    steps.press_sample(page)
    steps.wait_for_answer(page, task)
    assert re.search(r"@\d+ answered in \d+ ms: \S", steps.text(page, ".status"))
    assert {"decode", "queue", "infer", "encode"} <= set(steps.text(page, ".timing").split())
    selector, least = EXPLAINED.get(task, (".view", 1))
    assert steps.count(page, selector) >= least
    for language, words in {"curl": "curl ", "Python": "import httpx", "JavaScript": "await fetch("}.items():
        steps.press(page, language)
        assert words in steps.text(page, ".calls pre")
    assert keeps_people_out(page) == []
    for width in (1280, 390):
        page.resize(width, 900)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.prefer("dark")
    assert keeps_people_out(page) == []
    page.prefer("light")


@pytest.mark.parametrize(("task", "size"), [("image-classification", "32 × 32"), ("object-detection", "416 × 416")])
def test_a_picture_is_shown_as_the_model_saw_it_beside_the_one_sent(
    server: Server, page: Page, task: str, size: str
) -> None:
    steps.open_panel(page, server.url, task)
    steps.press_sample(page)
    steps.wait_for_answer(page, task)
    assert steps.text(page, ".picture:not(.seen) figcaption").startswith("As sent: ")
    steps.wait_for_seen(page)
    assert steps.text(page, ".seen figcaption") == f"As the model saw it: {size} pixels."
    assert keeps_people_out(page) == []


@pytest.mark.parametrize("task", ["image-captioning", "image-segmentation"])
def test_a_licence_that_restricts_use_is_said_before_asking(server: Server, page: Page, task: str) -> None:
    steps.open_panel(page, server.url, task)
    assert re.search("Restricted use: .*(only|Non-commercial)", steps.text(page, ".facts [role=note]"))


def test_a_models_card_is_shown_as_text_and_tables(server: Server, page: Page) -> None:
    steps.open_panel(page, server.url, "image-classification")
    page.evaluate("[...document.querySelectorAll('summary')].find(s => s.textContent === 'Model card').click()")
    page.wait_for("!!document.querySelector('.markdown table')")
    assert steps.count(page, ".markdown h3") > 3
    assert keeps_people_out(page) == []


def test_a_captions_words_light_up_where_the_model_looked(server: Server, page: Page) -> None:
    steps.open_panel(page, server.url, "image-captioning")
    steps.press_sample(page)
    steps.wait_for_answer(page, "image-captioning")
    seen = set()
    for index in range(3):
        page.evaluate(f"document.querySelectorAll('.captions .word')[{index}].focus()")
        seen.add(page.evaluate("document.querySelector('canvas.heat').toDataURL()"))
        assert page.evaluate(f"document.querySelectorAll('.captions .word')[{index}].ariaPressed") == "true"
    assert len(seen) == 3


def test_a_label_shows_its_mask_alone_and_a_button_the_models_doubt(server: Server, page: Page) -> None:
    steps.open_panel(page, server.url, "image-segmentation")
    steps.press_sample(page)
    steps.wait_for_answer(page, "image-segmentation")
    covered = (
        "(c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;"
        " for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n / (d.length / 4); })(document.querySelector('.over canvas'))"
    )
    assert page.evaluate(covered) == 1
    share = float(steps.text(page, ".found button").split()[-2]) / 100
    page.evaluate("document.querySelector('.found button').click()")
    assert page.evaluate(covered) == pytest.approx(share, abs=0.001)
    steps.press(page, "Where it is unsure")
    assert 0 < page.evaluate(covered) < 1
    pressed = "[...document.querySelectorAll('.view [aria-pressed=true]')].map(b => b.textContent)"
    assert page.evaluate(pressed) == ["Where it is unsure"]
    steps.press(page, "Where it is unsure")
    assert page.evaluate(covered) == 1


def choose_beside(page: Page, model: str) -> None:
    page.evaluate(
        f"(select => {{ select.value = '{model}'; select.dispatchEvent(new Event('change')); }})"
        "(document.querySelectorAll('.pickers select')[1])"
    )


def test_two_versions_answer_side_by_side_to_one_call(server: Server, page: Page) -> None:
    steps.open_panel(page, server.url, "image-classification")
    steps.press_sample(page)
    steps.wait_for_answer(page, "image-classification")
    page.asked.clear()
    choose_beside(page, "cifar10-cnn@3")
    steps.wait_for_answer(page, "image-classification", columns=2)
    names = page.evaluate("[...document.querySelectorAll('.status')].map(s => s.textContent.split(' ')[0])")
    assert names == ["cifar10-cnn@2", "cifar10-cnn@3"]
    told = page.wait_for("document.querySelector('.agreement').textContent")
    assert re.match(r"cifar10-cnn@3 (agrees with|differs from) cifar10-cnn@2", told)
    assert re.search(r"cifar10-cnn@2 took [\d.]+ ms, cifar10-cnn@3 took [\d.]+ ms[.]$", told)
    path = "/v1/compare/image-classification?models=cifar10-cnn%2Ccifar10-cnn%403"
    assert [url for url in page.asked if "/v1/" in url and ":validate" not in url] == [
        f"{server.url}{path}&explain=true"
    ]
    calls = page.evaluate("[...document.querySelectorAll('.calls pre')].map(c => c.textContent)")
    assert [call.count(path) for call in calls] == [1, 1]
    assert keeps_people_out(page) == []


def test_two_models_that_differ_say_where(server: Server, page: Page) -> None:
    """Of an entry that has no answer, and of an agreement, the same sentence is made."""
    said = [
        {"model": {"name": "a", "version": "1"}, "answer": {}, "latency_ms": 4.21, "agrees": None, "difference": None},
        {"model": {"name": "b", "version": "2"}, "answer": {}, "latency_ms": 2, "agrees": False, "difference": "at x"},
    ]
    same = [said[0], {**said[1], "agrees": True, "difference": None}]
    none = [said[0], {**said[1], "answer": None}]
    found = module(
        page, server, "panel.js", f"{json.dumps([said, same, none])}.map(results => m.inWords(results, 0.1))"
    )
    times = "a@1 took 4.2 ms, b@2 took 2.0 ms."
    assert found == [
        f"b@2 differs from a@1 at x. {times}",
        f"b@2 agrees with a@1, numbers within 0.1. {times}",
        "",
    ]


def test_what_is_one_models_alone_is_asked_of_each_by_itself(server: Server, page: Page) -> None:
    """Models are compared by what both are asked alike: not with a state, nor in another format than JSON."""
    task = {"isCompared": True}
    one = {"path": "v1/t", "json": {"model": "a", "x": 1}}
    cases = [
        [one, {**one, "json": {"model": "b", "x": 1}}],
        [one, {**one, "json": {"model": "b", "x": 2}}],
        [one, one],
        [one],
        [{**one, "json": {"model": "a", "state": "s"}}, {**one, "json": {"model": "b", "state": "s"}}],
        [{**one, "json": {"model": "a", "format": "midi"}}, {**one, "json": {"model": "b", "format": "midi"}}],
    ]
    script = f"{json.dumps(cases)}.map(requests => m.compared({json.dumps(task)}, requests))"
    assert module(page, server, "panel.js", script) == [
        {"path": "v1/compare/t", "query": {"models": "a,b"}, "json": {"x": 1}},
        *[None] * 5,
    ]


def test_typing_is_completed_with_tab_and_sends_the_state_with_what_is_new(server: Server, page: Page) -> None:
    steps.open_panel(page, server.url, "next-word-prediction")
    page.evaluate("document.querySelector('textarea').focus()")
    page.type("How are")
    page.wait_for("document.querySelector('.ghost').textContent === 'How are you'")
    page.press("Tab")
    assert page.evaluate("document.querySelector('textarea').value") == "How are you"
    page.wait_for("document.querySelectorAll('.surprise li').length >= 2")
    page.wait_for("document.querySelector('.sent').textContent.includes('of state, which stands for the')")
    page.wait_for("document.querySelector('.calls pre').textContent.includes('\"text\":\" you\"')")
    assert '"state":"' in steps.text(page, ".calls pre")
    page.press("Escape")
    page.press("Tab")
    assert page.evaluate("document.activeElement.tagName") != "TEXTAREA"


def test_text_that_is_deleted_is_answered_as_it_was(server: Server, page: Page) -> None:
    steps.open_panel(page, server.url, "next-word-prediction")
    page.evaluate("document.querySelector('textarea').focus()")
    page.type("I would like to")
    page.wait_for("document.querySelector('.ghost').textContent.length > 'I would like to'.length")
    page.evaluate(
        "(a => { a.value = 'I would lik'; a.dispatchEvent(new Event('input')); })(document.querySelector('textarea'))"
    )
    page.wait_for("document.querySelector('.ghost').textContent === 'I would like'")
    assert steps.text(page, ".next button") == "like"


@pytest.mark.parametrize("task", ["anomaly-detection", "forecasting"])
def test_a_series_is_streamed_point_by_point_with_its_state(server: Server, page: Page, task: str) -> None:
    steps.open_panel(page, server.url, task)
    page.evaluate(
        "(a => { a.value = Array.from({length: 24}, (_, i) => i === 16 ? 50 : 10 + Math.sin(i)).join('\\n');"
        " a.dispatchEvent(new Event('input')); })(document.querySelector('textarea'))"
    )
    steps.press(page, "Stream it")
    grown = page.wait_for(
        "(t => /^Sent just now: 1 point and .* of state/.test(t) && t)(document.querySelector('.sent')?.textContent)"
    )
    page.wait_for(f"document.querySelector('.sent').textContent !== {json.dumps(grown)}")
    page.wait_for("[...document.querySelectorAll('main button')].some(b => b.textContent === 'Stream it')")
    assert "stands for the 23 points before" in steps.text(page, ".sent")
    if task == "anomaly-detection":
        assert re.search(r"point 16: 50 .*\(error 0[.]\d+, novelty [01][.]\d+\)", steps.text(page, ".anomalies"))


def test_a_table_with_several_columns_is_read_by_the_one_that_is_chosen(server: Server, page: Page) -> None:
    steps.open_panel(page, server.url, "forecasting")
    rows = "\\n".join(["day;a;b", *(f"2026-01-{day:02};{day};{100 + day}" for day in range(1, 21))])
    page.evaluate(
        f"(a => {{ a.value = '{rows}'; a.dispatchEvent(new Event('input')); }})(document.querySelector('textarea'))"
    )
    assert page.evaluate("[...document.querySelectorAll('form select option')].map(o => o.textContent)") == ["a", "b"]
    steps.press(page, "Ask")
    steps.wait_for_answer(page, "forecasting")
    call = steps.text(page, ".calls pre")
    assert '"values":[101,102,103' in call
    assert '"timestamps":["2026-01-01","2026-01-02"' in call


def test_what_is_spoken_becomes_words_while_and_after_it_is_spoken(server: Server, page: Page) -> None:
    steps.open_panel(page, server.url, "speech-recognition")
    steps.press(page, "Record")
    page.wait_for("document.querySelector('.recorder .said')?.textContent.startsWith('four two ')")
    page.wait_for("parseFloat(document.querySelector('.clock')?.textContent) > 2.6")
    steps.press(page, "Stop, and ask")
    steps.wait_for_answer(page, "speech-recognition")
    assert steps.text(page, ".said").startswith("“four two seven”")
    painted = "(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 === 3 && v > 200).length)"
    assert page.evaluate(f"{painted}(document.querySelector('.frames canvas'))") >= 3  # a step or more of each word
    assert "recording.wav" in steps.text(page, ".calls pre")


def test_a_picture_is_taken_with_the_camera(server: Server, page: Page) -> None:
    steps.open_panel(page, server.url, "image-classification")
    steps.press(page, "Use the camera")
    page.wait_for("document.querySelector('video')?.videoWidth")
    steps.press(page, "Take the picture")
    steps.wait_for_answer(page, "image-classification")
    assert "camera.jpg" in steps.text(page, "figcaption")


def test_a_picture_is_dropped_and_another_pasted(server: Server, page: Page) -> None:
    steps.open_panel(page, server.url, "image-classification")
    bring = (
        "fetch('playground/samples/{file}').then(a => a.blob()).then(blob => {{ const data = new DataTransfer();"
        " data.items.add(new File([blob], '{file}', {{type: blob.type}}));"
        " {target}.dispatchEvent(new {event}) }})"
    )
    page.evaluate(
        bring.format(
            file="cat.webp", target="document.querySelector('.drop')", event="DragEvent('drop', {dataTransfer: data})"
        )
    )
    page.wait_for("document.querySelector('.status')?.textContent.includes('cat, ')")
    page.evaluate(
        bring.format(file="spaniel.png", target="document", event="ClipboardEvent('paste', {clipboardData: data})")
    )
    page.wait_for("document.querySelector('.status').textContent.includes('dog, ')")


def test_a_tune_sounds_note_by_note_and_can_be_saved_and_gone_on_from(server: Server, page: Page) -> None:
    steps.open_panel(page, server.url, "music-composition")
    steps.press_sample(page)
    steps.wait_for_answer(page, "music-composition")
    steps.press(page, "Play")
    page.wait_for("!!document.querySelector('.sheet .sounding')")
    assert int(page.evaluate("document.querySelector('[data-notes]').dataset.notes")) > 30
    steps.press(page, "Stop")
    steps.press(page, "Save as MIDI")
    page.wait_for("document.querySelector('a[download$=\".mid\"]')?.href.startsWith('blob:')")
    assert steps.count(page, "a[download$='.abc']") == 1
    first = page.evaluate("document.querySelector('[aria-label=\"ABC notation\"]').textContent")
    steps.press(page, "Go on from here")
    page.wait_for(f"document.querySelector('[aria-label=\"ABC notation\"]').textContent !== {json.dumps(first)}")
    assert '"state":"' in steps.text(page, ".calls pre")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_calls_that_are_shown_answer_as_the_page_did(server: Server, page: Page) -> None:
    expected = {"image-classification": ('"label":"cat"', "'label': 'cat'"), "music-composition": ('"seed":7',) * 2}
    for task, (words, python_words) in expected.items():
        steps.open_panel(page, server.url, task)
        steps.press_sample(page)
        steps.wait_for_answer(page, task)
        options = {"cwd": FOLDER / "samples", "capture_output": True, "text": True, "timeout": 60, "check": True}
        shown = page.evaluate("document.querySelector('.calls pre').textContent")
        assert words in subprocess.run(["bash", "-c", shown.replace("curl ", "curl -s ", 1)], **options).stdout
        steps.press(page, "Python")
        shown = page.evaluate("document.querySelector('.calls pre').textContent")
        printed = subprocess.run([sys.executable, "-c", shown], **options).stdout
        assert python_words in printed


def test_an_error_is_the_services_own_sentence(server: Server, page: Page) -> None:
    steps.open_panel(page, server.url, "music-composition")
    page.evaluate("document.querySelector('input[name=key]').value = 'H'")
    steps.press(page, "Ask")
    shown = steps.text(page, ".column .problem")
    refused = httpx.post(f"{server.url}/v1/music-composition", json={"key": "H"}).json()
    assert refused["detail"] in shown
    assert keeps_people_out(page) == []
    page.complaints.clear()  # the browser logs every 422


def test_asking_without_a_picture_says_what_to_do(server: Server, page: Page) -> None:
    steps.open_panel(page, server.url, "image-classification")
    steps.press(page, "Ask")
    assert "Choose a picture first" in steps.text(page, ".column .problem")


def module(page: Page, server: Server, name: str, script: str) -> Any:
    """What a script says with the exports of a module, `m`."""
    page.open(f"{server.url}/")
    page.wait_for("!!document.querySelector('.cards')")
    return page.evaluate(f"import('{server.url}/playground/{name}').then(m => {script})")


def test_nothing_in_a_card_becomes_a_script_or_asks_another_host(server: Server, page: Page) -> None:
    card = (
        "# <img src=x onerror=alert(1)>\n\n![a picture](https://elsewhere.example/a.png) [go](javascript:alert(1)) "
        "**<script>alert(1)</script>** [there](https://example.org/a)\n\n| a |\n|---|\n| <b>x</b> |\n"
    )
    html = module(page, server, "markdown.js", f"m.markdown({json.dumps(card)}).outerHTML")
    assert re.findall(r"<(\w+)", html) == [
        "div",
        "h2",
        "p",
        "span",
        "strong",
        "a",
        "div",
        "table",
        *["thead", "tr", "th"],
        *["tbody", "tr", "td"],
    ]
    assert re.findall(r'(?:href|src)="([^"]*)"', html) == ["https://example.org/a"]


def test_a_sample_that_the_document_holds_is_a_file(server: Server, page: Page) -> None:
    """What a task on files of another kind than pictures and recordings has."""
    script = "m.fileOf('data:audio/L16;rate=8000;base64,AAEC').arrayBuffer().then(b => [...new Uint8Array(b)])"
    assert module(page, server, "api.js", script) == [0, 1, 2]


@pytest.mark.parametrize(
    ("pasted", "names", "values", "stamps"),
    [
        ("1\n2\n\n3.5", ["column 1"], [1, 2, 3.5], None),
        ("1, 2, null, 4", ["values"], [1, 2, None, 4], None),
        ("[1, 2,3]", ["values"], [1, 2, 3], None),
        ("1 2 3\n4 5 6", ["values"], [1, 2, 3, 4, 5, 6], None),
        ("load\n1\nNA\n3", ["load"], [1, None, 3], None),
        ("time,load\n2026-01-01T00:00,1\n2026-01-01T01:00,\n2026-01-01T02:00,3", ["load"], [1, None, 3], ["2026-01-01T00:00", "2026-01-01T01:00", "2026-01-01T02:00"]),
        ("2026-01-01;1;a\n2026-01-02;2;b\n2026-01-03;3;c", ["column 2"], [1, 2, 3], ["2026-01-01", "2026-01-02", "2026-01-03"]),
        ("timestamp\tx\n1700000000\t5\n1700000060\t6\n1700000120\t7", ["x"], [5, 6, 7], [1700000000, 1700000060, 1700000120]),
    ],
)  # fmt: skip
def test_a_series_is_read_from_what_people_paste(
    server: Server, page: Page, pasted: str, names: list[str], values: list[float | None], stamps: list[Any] | None
) -> None:
    if not page.evaluate("location.href").startswith(server.url):
        module(page, server, "csv.js", "1")
    read = page.evaluate(f"import('{server.url}/playground/csv.js').then(m => m.series({json.dumps(pasted)}))")
    assert [column["name"] for column in read["columns"]] == names
    assert read["columns"][-1]["values"] == values
    assert read["timestamps"] == stamps


# --- part by part

WATCHED = (
    "window.watched = []; new MutationObserver(() => { const t = document.querySelector({selector})?.textContent;"
    " if (t && t !== watched.at(-1)) watched.push(t); {then} })"
    ".observe(document.querySelector('main'), {childList: true, subtree: true, characterData: true})"
)


def watch(page: Page, selector: str, then: str = "") -> None:
    """From now on, keep every text that an element has in turn, and do something each time."""
    page.evaluate(WATCHED.replace("{selector}", json.dumps(selector)).replace("{then}", then))


def test_a_tune_grows_bar_by_bar_and_its_call_reads_events(server: Server, page: Page) -> None:
    steps.open_panel(page, server.url, "music-composition")
    watch(page, "[aria-label='ABC notation']")
    page.evaluate("document.querySelector('input[name=bars]').value = 64")
    steps.press(page, "Ask")
    steps.wait_for_answer(page, "music-composition")
    page.wait_for("document.querySelector('.status').textContent.includes('answered in')")
    grown = page.evaluate("watched")
    assert len(grown) > 1
    assert all(later.startswith(sooner) for sooner, later in pairwise(grown))
    assert steps.text(page, ".calls pre").startswith("curl -N ")
    assert "-H 'Accept: text/event-stream'" in steps.text(page, ".calls pre")
    assert {"decode", "queue", "infer", "encode"} <= set(steps.text(page, ".timing").split())


def test_an_answer_can_be_stopped_and_what_has_come_stays(server: Server, page: Page) -> None:
    steps.open_panel(page, server.url, "music-composition")
    stop = "[...document.querySelectorAll('.column button')].find(b => b.textContent === 'Stop here')?.click()"
    watch(page, "[aria-label='ABC notation']", then=stop)
    page.evaluate("document.querySelector('input[name=bars]').value = 64")
    steps.press(page, "Ask")
    page.wait_for("/^Stopped after \\d+ parts?[.]$/.test(document.querySelector('.status')?.textContent)")
    assert "X:1" in page.evaluate("watched").pop()
    assert steps.text(page, ".calls pre").startswith("curl -N ")
    assert page.evaluate("document.querySelector('.column').ariaBusy") == "false"
    assert keeps_people_out(page) == []


def test_several_words_are_asked_for_part_by_part_and_one_is_not(server: Server, page: Page) -> None:
    steps.open_panel(page, server.url, "next-word-prediction")
    page.evaluate("document.querySelector('textarea').focus()")
    page.type("How are ")
    page.wait_for("document.querySelector('.status')?.textContent.includes(': next you')")
    assert "event-stream" not in steps.text(page, ".calls pre")
    page.evaluate("document.querySelector('input[name=words]').value = 3")
    steps.press(page, "Ask")
    page.wait_for("document.querySelector('.status')?.textContent.includes('next you going to')")
    assert steps.text(page, ".calls pre").startswith("curl -N ")


PARTS = {
    "words": [{"place": 0, "word": "you"}, {"place": 1, "word": "going"}],
    "heard": [{"recording": 0, "place": 0, "word": "four"}, {"recording": 0, "place": 1, "word": "two"}],
    "caption": [
        {"image": 0, "place": 0, "word": "a", "probability": 0.9, "heatmap": {"values": [[0, 1]]}},
        {"image": 0, "place": 1, "word": "dog", "probability": 0.5, "heatmap": {"values": [[1, 0]]}},
    ],
}


@pytest.mark.parametrize(("kind", "selector"), [("words", ".next"), ("heard", ".said"), ("caption", ".captions")])
def test_words_are_shown_as_they_come(server: Server, page: Page, kind: str, selector: str) -> None:
    """The view is found by the first part, and shows those that are there."""
    parts = [{"name": "word", "data": data} for data in PARTS[kind]]
    script = (
        f"(parts => {{ const view = new (m.viewForPart(parts[0]))(); document.querySelector('main').append(view.element);"
        f" const file = {{name: 'sent', blob: new Blob(), url: '{server.url}/playground/samples/house.png'}};"
        " return [1, 2].map(count => { view.showParts(parts.slice(0, count), {file});"
        f" return view.element.querySelector('{selector}').innerText.trim(); }}); }})({json.dumps(parts)})"
    )
    first, second = module(page, server, "views/index.js", script)
    assert [first.strip("“ …"), second.strip("“ …")] == [
        " ".join(data["word"] for data in PARTS[kind][:count]) for count in (1, 2)
    ]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("task", ["music-composition", "speech-recognition"])
def test_the_calls_that_read_events_end_in_the_whole_answer(server: Server, page: Page, task: str) -> None:
    steps.open_panel(page, server.url, task)
    steps.press_sample(page)
    steps.wait_for_answer(page, task)
    calls = {"curl": ["bash", "-c"], "Python": [sys.executable, "-c"]}
    for language, run in calls.items():
        steps.press(page, language)
        shown = page.evaluate("document.querySelector('.calls pre').textContent").replace("curl -N", "curl -sN")
        printed = subprocess.run([*run, shown], cwd=FOLDER / "samples", capture_output=True, text=True, check=True)
        assert printed.stdout.count("event: ") > 1
        assert "event: done" in printed.stdout


# --- a task that nobody knows, behind a prefix and a key


@pytest.fixture(scope="module")
def guarded(house: House) -> Iterator[Server]:
    with serving(house.models, workers=1, tasks=house.tasks, api_keys="secret-1", root_path="/ml") as running:
        yield running


def test_a_new_task_has_a_panel_by_itself_behind_a_prefix_and_a_key(guarded: Server, page: Page) -> None:
    """Its form comes from its Input, its answer is shown field by field; the key is sent, and kept in this tab alone."""
    page.open("about:blank")
    page.open(f"{guarded.url}/ml#/stretching")
    assert "API key" in steps.text(page, "main [role=alert]")
    page.complaints.clear()  # the browser logs the 401
    page.evaluate("document.querySelector('.key input').focus()")
    page.type("secret-1")
    page.press("Enter")
    page.wait_for("!!document.querySelector('[data-panel=stretching]')")
    assert page.evaluate("JSON.stringify(localStorage)") == "{}"
    assert page.evaluate(
        "[...document.querySelectorAll('form .field')].map(f => f.querySelector('[name]').name + ' ' + f.className)"
    ) == [
        "numbers field array",
        "times field integer",
        "backwards field boolean",
        "format field choice",
    ]
    page.evaluate(
        "document.querySelector('[name=numbers]').value = '1, 2'; document.querySelector('[name=backwards]').click()"
    )
    steps.press(page, "Ask")
    page.wait_for("document.querySelector('.plain td')?.textContent === '[5, 3]'")
    assert "rubber@1 answered" in steps.text(page, ".status")
    call = steps.text(page, ".calls pre")
    assert f"{guarded.url}/ml/v1/stretching" in call
    assert '"numbers":[1,2]' in call
    assert "secret-1" not in call
    assert "$GRIDLOOP_KEY" in call
    assert keeps_people_out(page) == []
    page.evaluate("(s => { s.value = 'text'; })(document.querySelector('[name=format]'))")
    steps.press(page, "Ask")
    assert steps.text(page, ".column pre[aria-label=Answer]") == "5 3"
