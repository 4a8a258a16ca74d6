"""Mutations that keep an input readable, so that a decoder's depth is reached and not only its first check.

`raw` is what the tests use where libFuzzer is not there. All take their randomness as an argument.
"""

import functools
import io
import json
import zipfile
from random import Random
from typing import Any

import cbor2
import numpy as np

from protocol import entropy_coding
from protocol.signing import sign, signed_payload
from tests.fuzz.target import Raw

INTEGERS = (
    0,
    1,
    -1,
    2,
    23,
    24,
    255,
    256,
    65535,
    1 << 20,
    1 << 31,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    -(1 << 64),
)
ODD: tuple[Any, ...] = (
    None, True, False, "", "x", b"", b"\0" * 32, [], {}, [[]], [{}], {1: 1}, {"a": 1.0}, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "\0\x1b\u20ac" * 9, "\U0001f600" * 9, [0] * 40, ["d"] * 40,
    "\0" * 3000, "\U000e0001" * 700, {"\0" * 3000: -1.0},
    {str(i): i for i in range(20)},
)  # fmt: skip


def raw(random: Random, longest: int) -> Raw:
    """Flip, cut, repeat, insert and overwrite bytes."""

    def mutate(data: bytes) -> bytes:
        out = bytearray(data)
        for _ in range(random.choice((1, 1, 2, 4))):
            at, size = random.randint(0, len(out)), random.choice((1, 1, 2, 4, 8, 32))
            kind = random.randrange(5)
            if kind == 0 and out:
                out[at % len(out)] ^= 1 << random.randrange(8)
            elif kind == 1:
                del out[at : at + size]
            elif kind == 2:
                out[at:at] = random.randbytes(size)
            elif kind == 3:
                out[at : at + size] = random.choice((b"\xff", b"\0", b"\x80", b"\x7f")) * size
            else:
                out[at:at] = out[at : at + 4 * size]
        return bytes(out[:longest])

    return mutate


def cbor_item(data: bytes, random: Random, change: Raw) -> bytes:
    """Change bytes, or one value somewhere in the tree of a CBOR item."""
    if random.random() < 0.4:
        return change(data)
    try:
        tree = cbor2.loads(data)
    except Exception:  # noqa: BLE001 - not readable: whatever the reason
        return change(data)
    try:
        return cbor2.dumps(_changed(tree, random, change))
    except (cbor2.CBORError, ValueError, TypeError, OverflowError):
        return change(data)


def json_item(data: bytes, random: Random, change: Raw) -> bytes:
    """Change bytes, or one value somewhere in the tree of a JSON document."""
    if random.random() < 0.3:
        return change(data)
    try:
        tree = _changed(json.loads(data), random, change)
        return json.dumps(tree, default=repr).encode()
    except (ValueError, TypeError, RecursionError):
        return change(data)


def _changed(value: Any, random: Random, change: Raw) -> Any:
    if isinstance(value, dict) and value and random.random() < 0.95:
        return _changed_map(value, random, change)
    if isinstance(value, list) and value and random.random() < 0.9:
        return _changed_list(value, random, change)
    kind = random.randrange(4)
    if kind == 0:
        return random.choice(ODD)
    if isinstance(value, bytes):
        return random.randbytes(len(value)) if kind == 1 else change(value)
    if isinstance(value, str):
        repeated = value * random.choice((0, 2, 30))
        return repeated if kind == 1 else change(value.encode()).decode(errors="replace")
    if type(value) is int:
        return value + random.choice((-1, 1, 7)) if kind == 1 else random.choice(INTEGERS)
    return random.choice((0.0, -1.0, 0.5, 1e-9, 1e300, float("nan"), float("-inf")))


def _changed_map(value: dict[Any, Any], random: Random, change: Raw) -> dict[Any, Any]:
    out = dict(value)
    key = random.choice(list(out))
    kind = random.randrange(12)
    if kind == 0:
        del out[key]
    elif kind == 1:
        out[random.choice((0, 5, 99, "x", -1, 1 << 70))] = out[key]
    else:
        out[key] = _changed(out[key], random, change)
    return out


def _changed_list(value: list[Any], random: Random, change: Raw) -> list[Any]:
    at, kind = random.randrange(len(value)), random.randrange(5)
    if kind == 0:
        return value[:at] + value[at + 1 :]
    if kind == 1:
        return value[:at] + value[at : at + 1] * random.choice((2, 9, 60)) + value[at + 1 :]
    return [*value[:at], _changed(value[at], random, change), *value[at + 1 :]]


def coded_body(data: bytes, random: Random, change: Raw, count: int, prefix: int = 0) -> bytes:
    """Change a rANS body behind `prefix` bytes: as bytes, by coding other symbols, or by another table."""
    kind = random.randrange(5)
    if kind <= 1:
        return change(data)
    if kind == 2:
        return data[:prefix] + change(data[prefix:])
    body = bytearray(_body(max(1, count), random.randrange(256)))
    if kind == 3 and len(body) > 8:
        body[random.randrange(1, len(body))] ^= 1 << random.randrange(8)
    if random.random() < 0.1:
        body[0] &= 15  # as if it were of format 0
    return data[:prefix] + bytes(body)


@functools.lru_cache(maxsize=16_384)
def _body(count: int, variant: int) -> bytes:
    random = Random(variant)
    scale = random.choice((1, 1, 1, 999))
    symbols = [scale * random.choice((0, 0, 0, 1, -1, 2, random.randint(-40, 40))) for _ in range(count)]
    return entropy_coding.encode(np.asarray(symbols, np.int32))


def envelope(data: bytes, random: Random, change: Raw, key: Any, context: bytes) -> bytes:
    """Change an envelope, or its payload, and sign it again."""
    if random.random() < 0.4:
        return change(data)
    try:
        payload = signed_payload(data, limit=1 << 20)
    except Exception:  # noqa: BLE001 - not readable: whatever the reason
        return change(data)
    return sign(cbor_item(payload, random, change), key, context)


def archive(data: bytes, random: Random, change: Raw, resign: Any) -> bytes:
    """Change a ZIP: its bytes, its directory, or one member, with the checksums and signature it needs."""
    if random.random() < 0.2:
        return change(data)
    if random.random() < 0.3:  # the directory, which stands at the end
        cut = max(0, data.rfind(b"PK\x01\x02") - random.choice((0, 60, 300)))
        return data[:cut] + change(data[cut:])
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = {info.filename: file.read(info) for info in file.infolist()}
    except Exception:  # noqa: BLE001 - not readable: whatever the reason
        return change(data)
    return bytes(resign(members, random, change))


def safetensors_file(data: bytes, random: Random, change: Raw) -> bytes:
    """Change a safetensors file: bytes, or its JSON header with the length that it needs."""
    size = int.from_bytes(data[:8], "little")
    if random.random() < 0.4 or len(data) < 8 + size or not size:
        return change(data)
    header = data[8 : 8 + size]
    try:
        tree = json.loads(header)
        name = random.choice(list(tree))
        kind = random.randrange(6)
        if kind == 0:
            tree[name]["dtype"] = random.choice(
                ("F64", "BF16", "F8_E5M2", "F8_E4M3", "BOOL", "U64", "I8", "C64", "F4", "?")
            )
        elif kind == 1:
            tree[name]["shape"] = random.choice(
                ([], [6, 1], [1 << 62, 4], [0], [24], [-6], [1 << 32, 1 << 32])
            )
        elif kind == 2:
            tree[name]["data_offsets"] = random.choice(([0, 0], [0, 1 << 62], [24, 0], [4, 24], [-1, 24]))
        elif kind == 3:
            tree["__metadata__"] = random.choice(({}, {"a": "b" * 99}, {"a": 1}, []))
        elif kind == 4:
            tree[random.choice(("adapter", "x", ""))] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        else:
            return data[:8] + change(header) + data[8 + size :]
        header = json.dumps(tree).encode()
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        header = change(header)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]
