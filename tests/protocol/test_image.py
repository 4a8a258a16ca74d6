"""Pictures: what a model gets to see of them, and which are refused before they cost memory."""

import io
import struct
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from protocol.errors import DataError
from protocol.image import MAX_BYTES, decode
from protocol.input_schema import ImageSpec, InputSchema

GREY = InputSchema("image", ("grey",), 1.0, ("a", "b"), ImageSpec(4, 6))
COLOUR = replace(GREY, channels=("red", "green", "blue"))


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    stream.seek(0)
    return stream


def refusal(stream: io.BytesIO, schema: InputSchema = GREY) -> str:
    with pytest.raises(DataError) as caught:
        decode(stream, "7/late.png", schema)
    assert str(caught.value).startswith("7/late.png: ")
    return str(caught.value)


def test_a_grey_picture_of_the_right_size_keeps_its_pixels() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    found = decode(encoded(Image.fromarray(pixels)), "p", GREY)
    assert (found.shape, found.dtype, found.flags.c_contiguous) == ((1, 4, 6), np.float32, True)
    assert np.array_equal(found[0], pixels / np.float32(255))


def test_colours_come_channel_by_channel() -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = 255, 51
    found = decode(encoded(Image.fromarray(pixels)), "p", COLOUR)
    assert found.mean((1, 2)).tolist() == pytest.approx([1.0, 0.0, 0.2])
    assert decode(encoded(Image.fromarray(pixels)), "p", GREY).shape == (1, 4, 6)


@pytest.mark.parametrize(("kind", "size"), [("PNG", (60, 40)), ("JPEG", (600, 400)), ("JPEG", (3, 2))])
def test_a_picture_of_another_size_is_resized(kind: str, size: tuple[int, int]) -> None:
    left = np.zeros(size[::-1], np.uint8)
    left[:, : size[0] // 2] = 200
    found = decode(encoded(Image.fromarray(left), kind), "p", GREY)[0]
    assert found.shape == (4, 6)
    assert found[:, 0].mean() > 0.5
    assert found[:, -1].mean() < 0.3


def test_a_camera_held_upright_is_turned_as_it_says() -> None:
    pixels = np.zeros((6, 4), np.uint8)
    pixels[0] = 255  # the top row of what the sensor wrote
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter clockwise
    found = decode(encoded(Image.fromarray(pixels), exif=exif.tobytes()), "p", GREY)[0]
    assert found[:, -1].min() == 1
    assert found[:, 0].max() == 0


def test_sixteen_bits_of_grey_are_scaled_and_not_cut_off() -> None:
    pixels = np.full((4, 6), 32768, np.uint16)
    assert decode(encoded(Image.fromarray(pixels)), "p", GREY).mean() == pytest.approx(128 / 255, abs=1e-6)


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "LA", "CMYK"])
def test_other_kinds_of_pixels_are_converted(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    white = Image.new("RGB", (6, 4), "white").convert(mode)
    assert decode(encoded(white, kind), "p", COLOUR).min() > 0.95


@pytest.mark.parametrize("side", [4_001, 10_000, 40_000])
def test_a_picture_that_claims_a_huge_size_is_refused_before_it_is_decoded(side: int) -> None:
    """A PNG of 200 bytes that would unfold to as much as 1.6 GB."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    assert "expected at most 16,000,000 pixels, got " in refusal(io.BytesIO(data))


def test_a_file_that_is_too_long_is_refused() -> None:
    assert "expected at most 33,554,432 bytes" in refusal(io.BytesIO(bytes(MAX_BYTES + 1)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        encoded(Image.new("L", (6, 4)), "GIF").getvalue(),
        encoded(Image.effect_noise((64, 64), 90), "JPEG").getvalue()[:800],
        encoded(Image.effect_noise((64, 64), 90), "PNG").getvalue()[:800],
    ],
    ids=["empty", "text", "gif", "half a jpeg", "half a png"],
)
def test_what_is_no_whole_jpeg_or_png_is_refused(data: bytes) -> None:
    assert "expected a readable JPEG or PNG picture: " in refusal(io.BytesIO(data))


GOOD = [encoded(Image.effect_noise((16, 16), 90), kind).getvalue() for kind in ("JPEG", "PNG")]


@given(st.sampled_from(GOOD), st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_damaged_bytes_give_a_picture_or_a_data_error(good: bytes, place: int, damage: bytes) -> None:
    place %= len(good)
    data = good[:place] + damage + good[place + len(damage) :]
    try:
        found = decode(io.BytesIO(data), "p", GREY)
    except DataError:
        return
    assert found.shape == (1, 4, 6)
    assert 0 <= found.min() <= found.max() <= 1


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert 'pip install "graftwork[agent-image]"' in refusal(io.BytesIO(b""))


def test_a_schema_of_time_series_is_refused() -> None:
    series = InputSchema("timeseries", ("x",), 1.0, ("a", "b"))
    assert "expected a schema of kind 'image'" in refusal(io.BytesIO(b""), series)
