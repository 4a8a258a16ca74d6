"""Targets: what stands for an adapter on the wire, from coded symbols to a counted update or a release."""

from collections.abc import Callable
from random import Random

import numpy as np

from protocol import cbor, entropy_coding
from protocol.charter import StalenessPolicy, TrainingPolicy
from protocol.errors import ProtocolError
from protocol.messages import BASE_BYTES, Release, Update
from protocol.package import Segment
from protocol.quantisation import Quantised, dequantise, dither_seed, quantise
from protocol.records import to_numbered
from protocol.release_coding import (
    MEMORY_PER_PARAMETER,
    Difference,
    adapter_sha256,
    add_difference,
    decode_difference,
    decode_keyframe,
    encode_difference,
    encode_keyframe,
    release_adapter,
)
from protocol.signing import sign
from protocol.topics import Topics, context
from server.intake import Accepted, Lateness, Rejected, RoundTerms, examine, open_update
from tests.builders import private_key, tiny_manifest, tiny_members
from tests.fuzz import mutations
from tests.fuzz.target import Case, Raw, Target

KEY = private_key(1)
TOPICS = Topics("pumps")
DEVICE = "pump-1"
MANIFEST = tiny_manifest(tiny_members(), segments=(Segment("first", 16), Segment("second", 8)))
PARAMETERS = MANIFEST.parameters
"""Few: decoding goes through a row of lanes at a time, and a million inputs are wanted."""
SEGMENTS = list(MANIFEST.slices().values())
BASE = np.linspace(-1, 1, PARAMETERS, dtype=np.float32)
CURRENT = RoundTerms(7, 6, adapter_sha256(BASE), frozenset({DEVICE}), TrainingPolicy())
ON_TIME = Lateness(6, StalenessPolicy())
SEED = dither_seed("pumps", DEVICE, CURRENT.number, CURRENT.base)
UPDATE_LIMIT = 4096
MOST_SYMBOLS = 32
"""Of one lane; with more lanes the same code runs on wider rows."""


def _symbols(data: bytes) -> Case:
    """Two bytes say how many symbols are wanted, the rest is the body."""
    count = _count(data)
    return Case(
        _passing(lambda: entropy_coding.decode(data[2:], count), "symbol table"),
        entropy_coding.MEMORY_OF_TABLES + entropy_coding.MEMORY_PER_SYMBOL * count,
    )


def _count(data: bytes) -> int:
    return 1 + int.from_bytes(data[:2], "little") % MOST_SYMBOLS


def _passing(decode: Callable[[], object], _: str) -> Callable[[Callable[[], None]], object]:
    """Errors that come from behind the symbol table speak of the body or the last tuple."""

    def run(passed: Callable[[], None]) -> object:
        try:
            return decode()
        except ProtocolError as error:
            if "body" in str(error) or "range" in str(error) or "without a step" in str(error):
                passed()
            raise

    return run


def _symbols_seeds() -> list[bytes]:
    out = []
    for wanted in (0, 1, 5, 12, 31):
        head = wanted.to_bytes(2, "little")
        symbols = _drawn(_count(head))
        out += [head + entropy_coding.encode(symbols // scale) for scale in (1, 4, 40)]
    # Format 0, as journals hold it: one symbol over and over takes no words.
    return [*out, b"\x00\x00\x00\x01\x00\x80\x20\x00\x00\x01\x00"]


def _drawn(size: int) -> np.ndarray:
    random = np.random.Generator(np.random.PCG64(size))
    return (random.standard_t(3, size) * 6).clip(-500, 500).astype(np.int32)


def _mutate_symbols(data: bytes, random: Random, change: Raw) -> bytes:
    return mutations.coded_body(data, random, change, _count(data) if random.random() < 0.9 else 77, 2)


def _quantised(data: bytes) -> Case:
    """Four bytes are the steps of two segments, the rest are symbols."""
    symbols = np.zeros(PARAMETERS, np.int32)
    words = np.frombuffer(data[4 : 4 + 4 * PARAMETERS].ljust(4, b"\0")[: len(data[4:]) // 4 * 4 or 4], "<i4")
    symbols[: words.size] = words.clip(-entropy_coding.MAX_SYMBOL, entropy_coding.MAX_SYMBOL)
    quantised = Quantised(data[:4], symbols)
    return Case(_passing(lambda: dequantise(quantised, SEGMENTS, SEED), ""), 64 * PARAMETERS)


def _quantised_seeds() -> list[bytes]:
    whole = quantise(BASE, SEGMENTS, SEED, 2.0)
    extremes = np.asarray([1 << 20, -(1 << 20), 1, -1, 0], "<i4").tobytes()
    return [whole.steps + whole.symbols.astype("<i4").tobytes(), b"\xff\x1b\x01\x00" + extremes, bytes(40)]


def _update(data: bytes) -> Case:
    """What a registered device signed, through the server's intake."""
    envelope = sign(data, KEY, context(TOPICS.up(DEVICE, "update")))

    def decode(passed: Callable[[], None]) -> object:
        update = open_update(envelope, KEY.public, TOPICS, DEVICE, UPDATE_LIMIT)
        passed()
        decision = examine(update, DEVICE, CURRENT, ON_TIME, federation="pumps", manifest=MANIFEST)
        if isinstance(decision, Rejected):
            raise ProtocolError(decision.reason)
        assert isinstance(decision, Accepted)
        assert int(np.abs(decision.vector).max()) < 1 << 36
        return decision

    return Case(decode, UPDATE_LIMIT + entropy_coding.MEMORY_OF_TABLES + 64 * PARAMETERS)


def _honest_update() -> Update:
    quantised = quantise(BASE / 16, SEGMENTS, SEED, 2.0)
    return Update(
        CURRENT.number, CURRENT.base[:BASE_BYTES], 12, quantised.steps,
        entropy_coding.encode(quantised.symbols), 0.75, 0.5,
    )  # fmt: skip


def _update_seeds() -> list[bytes]:
    fields = to_numbered(_honest_update())
    still = to_numbered(
        Update(
            7, CURRENT.base[:BASE_BYTES], 1, bytes(4), entropy_coding.encode(np.zeros(PARAMETERS, np.int32))
        )
    )
    return [cbor.encode(fields), cbor.encode(still), cbor.encode({**fields, 4: b"\xff\x1b" * 2})]


def _mutate_update(data: bytes, random: Random, change: Raw) -> bytes:
    if random.random() < 0.5:
        return mutations.cbor_item(data, random, change)
    fields = to_numbered(_HONEST)
    fields[5] = mutations.coded_body(fields[5], random, change, PARAMETERS)
    if random.random() < 0.5:
        fields[4] = (
            change(fields[4])
            if random.random() < 0.5
            else bytes(random.choice((0, 1, 27, 28, 255)) for _ in range(4))
        )
    return cbor.encode(fields)


_HONEST = _honest_update()


def _release(data: bytes) -> Case:
    """First byte: 1 a difference, 2 rightly named; four bytes of steps; the body."""
    flags, steps, body = data[0] if data else 0, data[1:5], data[5:]
    difference = bool(flags & 1)
    name = bytes(32)
    if flags & 2:
        try:
            found = (
                add_difference(BASE, decode_difference(Difference(steps, body), SEGMENTS, PARAMETERS))
                if difference
                else decode_keyframe(body, PARAMETERS)
            )
            name = adapter_sha256(found)
        except ProtocolError:
            pass
    base = CURRENT.base[:BASE_BYTES] if difference else b""
    release = Release(1, bytes(32), base, name, body, steps=steps if difference else b"")

    def decode(passed: Callable[[], None]) -> object:
        try:
            return release_adapter(release, BASE if difference else None, SEGMENTS, PARAMETERS)
        except ProtocolError as error:
            if "expected the adapter" in str(error) or "NaN" in str(error) or "range" in str(error):
                passed()
            raise

    return Case(decode, entropy_coding.MEMORY_OF_TABLES + MEMORY_PER_PARAMETER * PARAMETERS + len(body))


def _release_seeds() -> list[bytes]:
    difference = encode_difference((BASE * (1 << 24)).astype(np.int64), SEGMENTS, 2.0)
    odd = np.asarray([np.nan, np.inf, 3e38, -3e38] * (PARAMETERS // 4), np.float32)
    return [
        b"\x03" + difference.steps + difference.body,
        b"\x01" + difference.steps + difference.body,
        *(
            b"\x02\0\0\0\0" + encode_keyframe(adapter)
            for adapter in (BASE, odd, np.resize(BASE, 23), np.resize(BASE, 9_999))
        ),
    ]


def _mutate_release(data: bytes, random: Random, change: Raw) -> bytes:
    if random.random() < 0.3 or len(data) < 6:
        return change(data)
    head = (data[:1] if random.random() < 0.5 else random.choice((b"\x02", b"\x03"))) + (
        data[1:5] if random.random() < 0.7 else bytes(random.choice((0, 1, 27, 28, 255)) for _ in range(4))
    )
    if head[0] & 1:
        return head + mutations.coded_body(data[5:], random, change, PARAMETERS)
    if random.random() < 0.5:
        return head + change(data[5:])
    values = np.frombuffer(change(BASE.tobytes()).ljust(4 * PARAMETERS, b"\0")[: 4 * PARAMETERS], "<f4")
    return head + encode_keyframe(values)


TARGETS = (
    Target(
        "entropy_coding", _symbols, _symbols_seeds, _mutate_symbols, 4096, "format, symbol table and length"
    ),
    Target(
        "quantisation",
        _quantised,
        _quantised_seeds,
        lambda data, _, change: change(data),
        4096,
        "number of steps",
    ),
    Target("update", _update, _update_seeds, _mutate_update, UPDATE_LIMIT, "signature and fields"),
    Target("release", _release, _release_seeds, _mutate_release, 4096, "body and its size"),
)
