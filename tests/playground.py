"""Steps in the playground, which its tests and `docs/screenshots.py` share."""

from __future__ import annotations

import json

from tests.browser import Page

SEEN = {
    "image-classification": ".bars li",
    "object-detection": ".over svg rect",
    "image-segmentation": ".over canvas",
    "image-regression": ".interval .median",
    "image-captioning": ".over canvas.heat",
    "next-word-prediction": ".surprise li",
    "anomaly-detection": ".chart canvas",
    "forecasting": ".chart canvas",
    "speech-recognition": ".spoken",
    "music-composition": ".sheet svg .abcjs-note",
}
"""What is drawn of an answer, by task: a CSS selector."""


def open_panel(page: Page, url: str, task: str) -> None:
    """Load the page anew, and wait for a task's panel."""
    page.open("about:blank")
    page.open(f"{url}/#/{task}")
    page.wait_for(f"!!document.querySelector('[data-panel={task}]')")


def press_sample(page: Page, title: str = "") -> None:
    """Press the sample of that title, or the first."""
    selector = f"[data-sample^='{title}']" if title else "[data-sample]"
    page.evaluate(f"document.querySelector({json.dumps(selector)}).click()")


def press(page: Page, words: str) -> None:
    """Press the button that says so."""
    found = f"[...document.querySelectorAll('main button')].find(b => b.textContent === {json.dumps(words)})"
    page.wait_for(f"!!{found}")
    page.evaluate(f"{found}.click()")


def wait_for_answer(page: Page, task: str, columns: int = 1) -> None:
    """Wait until as many models have answered and their answers are drawn."""
    page.wait_for(
        f"document.querySelectorAll('.column[aria-busy=false] {SEEN[task].split()[0]}').length >= {columns}"
        f" && !!document.querySelector('.column {SEEN[task]}')"
    )


def wait_for_seen(page: Page) -> None:
    """Wait until the picture is shown as the model saw it."""
    page.wait_for("!!document.querySelector('.seen:not([hidden]) img')")


def count(page: Page, selector: str) -> int:
    """How many elements there are."""
    found = page.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length")
    assert isinstance(found, int)
    return found


def text(page: Page, selector: str) -> str:
    """The visible text of the first such element."""
    return str(page.wait_for(f"document.querySelector({json.dumps(selector)})?.innerText"))
