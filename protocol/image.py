"""One picture, decoded from JPEG or PNG to what a model takes: float32 [channels, height, width], 0 to 1.

Decides what a valid picture is; opens no file. The header is read first, so that a picture that would
unfold to more memory than a small device has is refused before a single pixel is decoded.
"""

import io
import warnings
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from protocol.errors import DataError
from protocol.input_schema import InputSchema

SUFFIXES = (".jpg", ".jpeg", ".png")
FORMATS = ("JPEG", "PNG")
MAX_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 16_000_000
"""About 48 MB in three colours."""


def decode(stream: BinaryIO, name: str, schema: InputSchema) -> NDArray[np.float32]:
    """Decode one picture and bring it to the schema's channels and size.

    Pictures are turned as their EXIF orientation says and resized with a bilinear filter that takes all
    pixels into account (the proportions are not kept). Transparency is dropped.

    Args:
        stream: open binary stream, read to its end.
        name: the file's name, for messages.
        schema: of kind "image".

    Returns:
        float32 [channels, height, width], 0 (black) to 1.

    Raises:
        DataError: not a picture that can be decoded, too large, or Pillow is not installed.
    """
    if schema.image is None:
        raise DataError(f"{name}: expected a schema of kind 'image', got {schema.kind!r}")
    # An optional part of the agent: imported only when a picture comes.
    try:
        from PIL import Image, ImageOps  # noqa: PLC0415
    except ImportError:
        raise DataError(
            f'{name}: pictures need Pillow, which is not installed: pip install "graftwork[agent-image]"'
        ) from None
    data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise DataError(f"{name}: expected at most {MAX_BYTES:,} bytes, the file has more")
    mode = "L" if len(schema.channels) == 1 else "RGB"
    height, width = schema.image.height, schema.image.width
    try:
        # Pillow warns of odd metadata and of large pictures; the size is checked here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                _check_size(picture, name)
                # A large JPEG is decoded at a fraction of its size, never below what is wanted.
                picture.draft(mode, (max(height, width), max(height, width)))
                upright = ImageOps.exif_transpose(picture)
                pixels = _eight_bit(upright).convert(mode)
    except DataError:
        raise
    except Image.DecompressionBombError:  # Pillow's own bound is higher, and meant here as well
        raise DataError(f"{name}: expected at most {MAX_PIXELS:,} pixels, got far more") from None
    except Exception as error:  # noqa: BLE001 - hostile bytes: decoders raise all kinds
        reason = str(error) if str(error) and "BytesIO" not in str(error) else "no such picture"
        raise DataError(f"{name}: expected a readable JPEG or PNG picture: {reason}") from None
    resized = np.asarray(pixels.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    planes = resized[None] if mode == "L" else resized.transpose(2, 0, 1)
    return np.ascontiguousarray(planes / np.float32(255))


def _check_size(picture: Any, name: str) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise DataError(
            f"{name}: expected at most {MAX_PIXELS:,} pixels, got {picture.width} x {picture.height}"
        )


def _eight_bit(picture: Any) -> Any:
    """Scale 16-bit grey, which Pillow would cut off at 255."""
    if not picture.mode.startswith("I"):
        return picture
    from PIL import Image  # noqa: PLC0415

    values = np.asarray(picture).astype(np.int64)
    return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
