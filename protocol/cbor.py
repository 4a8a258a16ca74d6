"""Bounded CBOR (RFC 8949): deterministic encoding, and decoding that a hostile sender cannot abuse.

`decode` walks the heads of all items before the decoder allocates anything: a declared length never
exceeds the bytes that are there, nesting is shallow, and the constructs that no message uses
(indefinite lengths, tags) are refused. So the memory that decoding takes is proportional to the input.
"""

from typing import Any

import cbor2

from protocol.errors import EncodingError

MAX_DEPTH = 8
COSE_SIGN1_TAG = 18


def encode(value: Any) -> bytes:
    """Encode deterministically (RFC 8949, section 4.2): equal values give equal bytes."""
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes, *, limit: int) -> Any:
    """Decode one item that fills `data` exactly.

    Args:
        data: the encoded item.
        limit: largest accepted size in bytes.

    Raises:
        EncodingError: too large, malformed, too deep, or followed by further bytes.
    """
    check(data, limit=limit)
    try:
        return cbor2.loads(data)
    except (cbor2.CBORError, ValueError, TypeError, RecursionError, MemoryError, OverflowError) as error:
        raise EncodingError(f"malformed CBOR: {error}") from error


def check(data: bytes, *, limit: int, tag: int | None = None) -> None:
    """Check that `data` is one well-formed bounded item, with `tag` in front where one is named.

    Raises:
        EncodingError: as `decode`.
    """
    if len(data) > limit:
        raise EncodingError(f"expected at most {limit} bytes, got {len(data)}")
    start = 0
    if tag is not None:
        major, value, start = _head(data, 0)
        if (major, value) != (6, tag):
            raise EncodingError(f"expected CBOR tag {tag} in front")
    end = _skip(data, start, 0)
    if end != len(data):
        raise EncodingError(f"{len(data) - end} bytes follow the CBOR item")


def _head(data: bytes, position: int) -> tuple[int, int, int]:
    """Read an item's head: its major type, its value, and where the head ends."""
    if position >= len(data):
        raise EncodingError("CBOR ends early")
    major, short = data[position] >> 5, data[position] & 31
    position += 1
    if short < 24:
        return major, short, position
    if short > 27:
        raise EncodingError("indefinite or reserved CBOR length")
    width = 1 << (short - 24)
    if position + width > len(data):
        raise EncodingError("CBOR ends early")
    return major, int.from_bytes(data[position : position + width], "big"), position + width


def _skip(data: bytes, position: int, depth: int) -> int:
    if depth > MAX_DEPTH:
        raise EncodingError(f"CBOR nested deeper than {MAX_DEPTH}")
    major, value, position = _head(data, position)
    if major == 6:
        raise EncodingError(f"unexpected CBOR tag {value}")
    if major in (2, 3):
        if value > len(data) - position:
            raise EncodingError("CBOR string longer than its message")
        return position + value
    if major in (4, 5):
        items = value if major == 4 else 2 * value
        if items > len(data) - position:
            raise EncodingError("CBOR container longer than its message")
        for _ in range(items):
            position = _skip(data, position, depth + 1)
    return position
