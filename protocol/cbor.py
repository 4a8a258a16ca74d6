"""Bounded CBOR (RFC 8949): deterministic encoding, and decoding that a hostile sender cannot abuse.

Encoding is cbor2's. Decoding is done here, because a general decoder cannot be held to a bound of memory: an
empty map is one byte on the wire and 64 in Python, and cbor2 reads a long string by pieces that it joins.
Every item is charged with what it takes in memory before it is made. Nesting is shallow, and the constructs
that no message uses (indefinite lengths, tags, undefined values) are refused. The tests hold the decoder
against cbor2.
"""

import struct
import sys
from typing import Any

import cbor2

from protocol.errors import EncodingError

MAX_DEPTH = 8
LEAST_MEMORY = 16 * 1024
"""Bytes that a message may take even where its limit is less than half of it: a field takes more than on the
wire."""
# What an item takes at most, in bytes: CPython 3.10 to 3.13, 64 bit.
_NUMBER, _STRING, _LIST, _MAP = 48, 40, 80, 320
_PLACE = 16
"""In a list, and in the tuple that is made of it."""
_ENTRY = 160
"""In a map, while the map grows and while it is copied."""
_FIELDS = 4096
"""Beside a string that fills its message."""
_FLOATS = {25: struct.Struct(">e"), 26: struct.Struct(">f"), 27: struct.Struct(">d")}
_CONSTANTS = {20: False, 21: True, 22: None}


def encode(value: Any) -> bytes:
    """Encode deterministically (RFC 8949, section 4.2): equal values give equal bytes."""
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes, *, limit: int) -> Any:
    """Decode one item that fills `data` exactly.

    Memory: `data` and the value together take at most twice `limit` and 4 KiB (`LEAST_MEMORY` where that
    is more).

    Args:
        data: the encoded item.
        limit: largest accepted size in bytes.

    Raises:
        EncodingError: too large, on the wire or in memory, malformed, too deep, or followed by further bytes.
    """
    if len(data) > limit:
        raise EncodingError(f"expected at most {limit} bytes, got {len(data)}")
    reader = _Reader(data, max(2 * limit + _FIELDS, LEAST_MEMORY) - len(data))
    value = reader.item(0)
    if reader.position != len(data):
        raise EncodingError(f"{len(data) - reader.position} bytes follow the CBOR item")
    return value


def byte_string(data: bytes, position: int) -> tuple[int, int]:
    """Where the content of the byte string at `position` begins and ends; nothing is copied.

    Raises:
        EncodingError: no byte string stands there, or it is longer than `data`.
    """
    major, size, start = _head(data, position)
    if major != 2 or size > len(data) - start:
        raise EncodingError("expected a byte string that ends within its message")
    return start, start + size


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


class _Reader:
    """Reads items one after another, and counts what is left of the memory that they may take."""

    def __init__(self, data: bytes, memory: int) -> None:
        self.position = 0
        self._data = data
        self._memory = memory

    def item(self, depth: int) -> Any:
        """Read the item at `position`, and go behind it."""
        if depth > MAX_DEPTH:
            raise EncodingError(f"CBOR nested deeper than {MAX_DEPTH}")
        initial = self.position
        major, value, self.position = _head(self._data, initial)
        if major <= 1:
            self._charge(_NUMBER)
            return value if major == 0 else -1 - value
        if major <= 3:
            return self._string(value, text=major == 3)
        if major == 4:
            return self._list(value, depth)
        if major == 5:
            return self._map(value, depth)
        if major == 6:
            raise EncodingError(f"unexpected CBOR tag {value}")
        return self._simple(self._data[initial] & 31, value)

    def _charge(self, size: int) -> None:
        self._memory -= size
        if self._memory < 0:
            raise EncodingError("CBOR would take too much memory for a message of its kind")

    def _string(self, size: int, *, text: bool) -> bytes | str:
        start, end = self.position, self.position + size
        if end > len(self._data):
            raise EncodingError("CBOR string longer than its message")
        self.position = end
        if not text:
            self._charge(_STRING + size)
            return self._data[start:end]
        part = memoryview(self._data)[start:end]
        # A character takes as many bytes as the widest of its text, and Python widens a text while it reads.
        widest = max(part, default=0)
        while_reading = 2 * _STRING + size * (1 if widest < 0xC4 else 3 if widest < 0xF0 else 6)
        self._charge(while_reading)
        try:
            found = str(part, "utf-8")
        except UnicodeDecodeError as error:
            raise EncodingError(f"malformed CBOR text: {error.reason}") from None
        self._memory += while_reading
        self._charge(sys.getsizeof(found))
        return found

    def _list(self, size: int, depth: int) -> list[Any]:
        if size > len(self._data) - self.position:
            raise EncodingError("CBOR container longer than its message")
        self._charge(_LIST + _PLACE * size)
        items: list[Any] = [None] * size
        for index in range(size):
            items[index] = self.item(depth + 1)
        return items

    def _map(self, size: int, depth: int) -> dict[Any, Any]:
        if 2 * size > len(self._data) - self.position:
            raise EncodingError("CBOR container longer than its message")
        self._charge(_MAP + _ENTRY * size)
        entries: dict[Any, Any] = {}
        for _ in range(size):
            key = self.item(depth + 1)
            if not isinstance(key, (int, str, bytes)):
                raise EncodingError(f"expected an integer or a string as key, got {type(key).__name__}")
            entries[key] = self.item(depth + 1)
        return entries

    def _simple(self, short: int, value: int) -> Any:
        self._charge(_NUMBER)
        if short in _FLOATS:
            [number] = _FLOATS[short].unpack(value.to_bytes(1 << (short - 24), "big"))
            return number
        if short in _CONSTANTS:
            return _CONSTANTS[short]
        raise EncodingError(f"unexpected simple CBOR value {value}")
