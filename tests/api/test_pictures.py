"""Pictures as people send them, through the whole service, to a model that gives its pixels back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.graph import Array
from tests import graphs
from tests.conftest import running
from tests.media.reading import encoded, noise

CASES = Path(__file__).parent.parent / "cases"


async def posted(
    models: Path, data: bytes, content_type: str = "application/octet-stream", **preprocessing: Any
) -> Any:
    """The answer's status and body."""
    graphs.pixels_model(models, **preprocessing)
    async with running(models) as client:
        answer = await client.post(
            "/v1/image-classification?top_k=1000", content=data, headers={"Content-Type": content_type}
        )
    return answer.status_code, answer.json()


async def pixels_of(models: Path, data: bytes, content_type: str = "application/octet-stream", **options: Any) -> Array:
    """What the graph was given: float (16, 16, 3)."""
    status, body = await posted(models, data, content_type, **options)
    assert status == 200, body
    return graphs.seen(body["results"][0])


async def test_planes_of_16_bits_in_a_tiff(tmp_path: Path) -> None:
    """Red is the column, green the row, in sixteenths, and blue 117; read otherwise, they are mixed up."""
    pixels = await pixels_of(tmp_path, (CASES / "tiff-planar-16-bit" / "picture.tif").read_bytes(), "image/tiff")
    row, column = np.mgrid[0:16, 0:16]
    assert np.abs(pixels - np.stack([column * 16, row * 16, np.full((16, 16), 117)], axis=-1)).max() <= 1


async def test_a_transparent_value_of_16_bits_in_a_png(tmp_path: Path) -> None:
    pixels = await pixels_of(tmp_path, (CASES / "png-16-bit-transparent" / "picture.png").read_bytes(), "image/png")
    expected = np.arange(256.0).reshape(16, 16)
    expected[0] = 255
    assert np.abs(pixels - expected[..., None]).max() <= 1


async def test_a_large_jpeg_is_the_same_as_decoded_whole_where_the_manifest_asks_for_it(tmp_path: Path) -> None:
    data = (CASES / "jpeg-scaled-decoding" / "picture.jpg").read_bytes()
    expected = np.array(json.loads((CASES / "jpeg-scaled-decoding" / "expected.json").read_text()))
    exact = await pixels_of(tmp_path / "exact", data, "image/jpeg", filter="box", exact=True)
    assert np.abs(exact - expected).max() <= 2
    quick = await pixels_of(tmp_path / "quick", data, "image/jpeg", filter="box")
    assert 2 < np.abs(quick - expected).max() <= 20  # docs/pictures.md says so


async def test_a_bmp_of_an_unusual_kind_is_not_called_damaged(tmp_path: Path) -> None:
    status, body = await posted(tmp_path, (CASES / "not-damaged" / "picture.bmp").read_bytes(), "image/bmp")
    assert status == 422
    assert body["detail"] == (
        "Image 1 is a kind of BMP (bitfields layout), which is not supported here. Send JPEG or PNG instead."
    )


async def test_grey_with_premultiplied_alpha_in_a_tiff(tmp_path: Path) -> None:
    """Every pixel is 90 of 180, so white adds 75."""
    pixels = await pixels_of(tmp_path, (CASES / "not-damaged" / "picture.tif").read_bytes(), "image/tiff")
    assert np.abs(pixels - 165).max() <= 1


@pytest.mark.parametrize("content_type", ["image/avif", "application/octet-stream"])
async def test_avif(tmp_path: Path, content_type: str) -> None:
    file = CASES / "avif" / "picture.avif"
    expected = np.asarray(Image.open(file).convert("RGB").resize((16, 16), Image.Resampling.BOX), float)
    pixels = await pixels_of(tmp_path, file.read_bytes(), content_type, filter="box")
    assert np.abs(pixels - expected).max() <= 1


async def test_cropping_is_torchvisions(tmp_path: Path) -> None:
    data = (CASES / "crop-as-torchvision" / "picture.png").read_bytes()
    expected = np.array(json.loads((CASES / "crop-as-torchvision" / "expected.json").read_text()))
    pixels = await pixels_of(tmp_path, data, "image/png", resize="crop", resize_to=18)
    assert np.abs(pixels - expected).max() <= 1


async def test_heic_is_named(tmp_path: Path) -> None:
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    status, body = await posted(tmp_path, data)
    assert (status, body["type"]) == (422, "/problems/invalid-input")
    assert body["detail"] == "Image 1 is a HEIC picture, which is not supported here. Send JPEG or PNG instead."


async def test_a_jpeg_turned_by_its_exif_is_cropped_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = noise(40, 30)
    data = encoded(stored, exif=exif)
    upright = stored.transpose(Image.Transpose.ROTATE_270)  # 30 x 40
    expected = np.asarray(upright.resize((18, 24), Image.Resampling.BILINEAR).crop((1, 4, 17, 20)), float)
    pixels = await pixels_of(tmp_path, data, resize="crop", resize_to=18)
    assert np.abs(pixels - expected).max() <= 1
