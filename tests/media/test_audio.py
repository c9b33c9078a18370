"""Recordings of every format, rate and kind of damage, read as the sound they hold."""

from __future__ import annotations

import io
import itertools
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import InvalidInput, TooLarge, UnsupportedMedia
from service.media.audio import FORMATS, Resampler, is_recording, open_recording


def tone(rate: int, seconds: float = 0.5, hz: float = 440.0) -> np.ndarray:
    """A tone of half of full scale, float64 (n,)."""
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)


def encoded(sound: np.ndarray, rate: int, container: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound, rate, subtype, format=container)
    return file.getvalue()


def decoded(data: bytes, *, most_s: float = 600, content_type: str | None = None) -> tuple[int, np.ndarray]:
    with open_recording(data, "Recording 1", most_s=most_s, content_type=content_type) as recording:
        return recording.rate, np.concatenate([np.empty(0, np.int16), *recording.blocks()])


WAV_KINDS = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW"]


@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        *(("WAV", kind) for kind in WAV_KINDS),
        *(("WAVEX", kind) for kind in WAV_KINDS[:6]),
        ("RF64", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_tone_is_read_from_every_format(container: str, subtype: str, channels: int) -> None:
    rate = 48_000
    sound = tone(rate)
    rate_read, samples = decoded(encoded(np.stack([sound] * channels, 1), rate, container, subtype))
    assert rate_read == rate
    assert abs(len(samples) - len(sound)) < 0.06 * rate  # MP3 has silence at both ends
    middle = samples[len(samples) // 4 : -len(samples) // 4] / 32768
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert abs(spectrum.argmax() * rate / len(middle) - 440) < 8
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


@pytest.mark.parametrize("rate", [4000, 8000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_every_rate_is_brought_to_8_khz_with_its_tone(rate: int) -> None:
    resampler = Resampler(rate, 8000)
    samples = np.rint(tone(rate) * 32767).astype(np.int16)
    out = np.concatenate([resampler.feed(samples), resampler.finish()])
    assert len(out) == pytest.approx(4000, abs=330)
    expected = 32767 * tone(8000)
    inside = slice(200, 3600)
    error = out[inside] - expected[inside]
    assert np.sqrt((error**2).mean()) < 0.003 * 32767


@given(
    rate=st.sampled_from([4000, 8000, 11_025, 12_345, 16_000, 22_050, 44_100, 48_000, 192_000]),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_a_stream_cut_anywhere_is_resampled_as_the_whole(rate: int, cuts: list[float], seed: int) -> None:
    samples = np.random.default_rng(seed).integers(-20_000, 20_000, rate // 4).astype(np.int16)
    whole = Resampler(rate, 8000)
    expected = np.concatenate([whole.feed(samples), whole.finish()])
    places = sorted({0, len(samples), *(int(cut * len(samples)) for cut in cuts)})
    got, held = [], None
    for start, end in itertools.pairwise(places):
        piece = Resampler(rate, 8000, held)
        got.append(piece.feed(samples[start:end]))
        held = piece.held
        assert len(held) <= piece.most_held
    got.append(Resampler(rate, 8000, held).finish())
    np.testing.assert_allclose(np.concatenate(got), expected, atol=0.05)


def test_samples_without_a_header_are_read_as_declared() -> None:
    samples = np.array([[100, 300], [-32768, -32768], [7, 8]])
    data = samples.astype(">i2").tobytes()
    rate, mono = decoded(data + b"\x01", content_type="audio/L16; rate=22050; channels=2")
    assert (rate, mono.tolist()) == (22_050, [200, -32768, 8])
    _, little = decoded(samples.astype("<i2").tobytes(), content_type="audio/l16;rate=8000;endianness=little-endian")
    assert little.tolist() == samples.reshape(-1).tolist()


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF, 0x7FFFFFFF, 40_000])
def test_a_wav_that_was_streamed_is_read_to_its_end(length: int) -> None:
    """What `ffmpeg - | …` writes: the length is not known yet; and one that breaks off."""
    data = bytearray(encoded(tone(8000), 8000, "WAV", "PCM_16"))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", length)
    data[4:8] = struct.pack("<I", length)
    assert len(decoded(bytes(data))[1]) == 4000
    assert len(decoded(bytes(data[:-3001]))[1]) == 2499


@pytest.mark.parametrize(
    ("container", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)]
)
def test_a_recording_that_breaks_off_is_read_as_far_as_it_goes(container: str, subtype: str | None) -> None:
    data = encoded(
        tone(16_000, 6.0) + 0.1 * np.random.default_rng(0).standard_normal(96_000), 16_000, container, subtype
    )
    _, samples = decoded(data[: len(data) // 2])
    assert 1.0 * 16_000 < len(samples) < 5.0 * 16_000
    assert np.abs(samples[4000:12_000]).max() > 10_000


def test_what_is_too_long_is_refused_by_its_header() -> None:
    for container in ("WAV", "FLAC", "OGG"):
        data = encoded(tone(8000, 3.0), 8000, container)
        with pytest.raises(TooLarge, match="3 seconds, more than the 2 seconds.*GRIDLOOP_MAX_AUDIO_S"):
            open_recording(data, "Recording 1", most_s=2)
        assert len(decoded(data, most_s=3)[1]) == 24_000
    with pytest.raises(TooLarge):
        open_recording(b"\0" * 48_002, "Recording 1", most_s=3, content_type="audio/L16;rate=8000")


def test_numbers_that_are_none_are_silence() -> None:
    sound = np.array([0.25, np.nan, np.inf, -np.inf, 2.0, -2.0], np.float32)
    assert decoded(encoded(sound, 8000, "WAV", "FLOAT"))[1].tolist() == [8192, 0, 32767, -32768, 32767, -32768]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\xff\xf1\x50\x80" + bytes(40), "AAC"),
        (b"\0\0\0\x20ftypM4A " + bytes(40), "MPEG-4"),
        (b"#!AMR\n" + bytes(40), "AMR"),
        (b"\x1aE\xdf\xa3" + bytes(40), "WebM"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "a picture"),
        (b"hello", "of no known format"),
    ],
)
def test_other_formats_are_named_and_refused(data: bytes, name: str) -> None:
    assert not is_recording(data)
    with pytest.raises(UnsupportedMedia, match=name) as refused:
        open_recording(data, "Recording 'x'", most_s=600)
    assert all(kind in str(refused.value) for kind in FORMATS)


@pytest.mark.parametrize(
    ("rate", "channels", "sentence"), [(3999, 1, "3,999 Hz"), (192_001, 1, "192,001 Hz"), (8000, 65, "65 channels")]
)
def test_headers_that_cannot_be_are_refused(rate: int, channels: int, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        open_recording(encoded(np.zeros((10, channels)), rate, "WAV"), "Recording 1", most_s=600)


@pytest.mark.parametrize("content_type", ["audio/L16", "audio/L16;rate=fast", "audio/L16;rate=99999999999"])
def test_samples_without_a_header_need_their_rate(content_type: str) -> None:
    with pytest.raises(InvalidInput, match="rate=16000"):
        open_recording(b"\1\2\3\4", "Recording 1", most_s=600, content_type=content_type)


def test_nothing_is_refused() -> None:
    with pytest.raises(InvalidInput, match="empty"):
        open_recording(b"", "Recording 1", most_s=600)


@given(
    container=st.sampled_from(
        [("WAV", "PCM_16"), ("WAV", "ULAW"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)]
    ),
    changes=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=30),
    keep=st.integers(0, 4000),
)
@settings(deadline=None, max_examples=150)
def test_hostile_bytes_are_read_or_refused(
    container: tuple[str, str | None], changes: list[tuple[int, int]], keep: int
) -> None:
    data = bytearray(encoded(tone(8000, 0.2), 8000, *container))
    for place, value in changes:
        if place < len(data):
            data[place] = value
    try:
        rate, samples = decoded(bytes(data[:keep]), most_s=2)
    except (InvalidInput, UnsupportedMedia, TooLarge):
        return
    assert samples.dtype == np.int16 and len(samples) <= 2 * rate
