"""Makes the pictures in docs/screenshots/: every panel of the playground, answered, at 1280 and 390 pixels.

    python docs/screenshots.py

Needs Chromium. The models are those of this repository; the steps are those of the browser's tests.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests import playground as steps  # noqa: E402
from tests.browser import Page, browsing  # noqa: E402
from tests.test_server import serving  # noqa: E402

FOLDER = ROOT / "docs" / "screenshots"
TALLEST = {1280: 1700, 390: 2900}
"""Height of a picture of each width (pixels): what is below is cut."""


def take(page: Page, name: str, width: int) -> None:
    """Write one picture, the whole page high."""
    page.resize(width, 900)
    time.sleep(0.3)  # charts and sheet music follow the width
    page.resize(width, min(TALLEST[width], page.evaluate("document.documentElement.scrollHeight")))
    time.sleep(0.3)
    with Image.open(io.BytesIO(page.screenshot())) as shot:
        picture = shot.convert("RGB")
    # Text is smaller without loss, in few colours of which rare ones stay what they are; photographs are with loss.
    few = picture.quantize(160, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).convert("RGB")
    ways = (_webp(picture, quality=36), _webp(few, lossless=True))
    (FOLDER / f"{name}-{width}.webp").write_bytes(min(ways, key=len))


def _webp(picture: Image.Image, **options: object) -> bytes:
    written = io.BytesIO()
    picture.save(written, "webp", method=6, **options)
    return written.getvalue()


def main() -> None:
    """Take all pictures."""
    FOLDER.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as profile,
        serving(ROOT / "models", workers=1) as server,
        browsing(Path(profile), "--hide-scrollbars") as page,
    ):
        page.resize(1280, 900)
        page.open(f"{server.url}/")
        page.wait_for("!!document.querySelector('.cards')")
        for width in TALLEST:
            take(page, "overview", width)
        for task in steps.SEEN:
            page.resize(1280, 900)
            steps.open_panel(page, server.url, task)
            steps.press_sample(page)
            steps.wait_for_answer(page, task)
            if task.startswith("image-") or task == "object-detection":
                steps.wait_for_seen(page)
            for width in TALLEST:
                take(page, task, width)
        page.resize(1280, 900)
        page.prefer("dark")
        steps.open_panel(page, server.url, "object-detection")
        steps.press_sample(page, "Blood")
        steps.wait_for_answer(page, "object-detection")
        page.evaluate(
            "(select => { select.value = 'nanodet-coco'; select.dispatchEvent(new Event('change')); })"
            "(document.querySelectorAll('.pickers select')[1])"
        )
        page.wait_for("document.querySelectorAll('.column .frame').length === 2")
        for width in TALLEST:
            take(page, "two-models-dark", width)


if __name__ == "__main__":
    main()
