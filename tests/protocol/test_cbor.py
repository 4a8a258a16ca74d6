"""Bounded CBOR: what a hostile sender may declare, and what decoding it may cost."""

import contextlib
import tracemalloc

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import cbor
from protocol.errors import EncodingError

LIMIT = 1024
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.integers(0, 99) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(plain)
def test_what_is_encoded_is_decoded(value: object) -> None:
    data = cbor.encode(value)
    if depth(value) <= cbor.MAX_DEPTH:
        assert cbor.decode(data, limit=len(data)) == value


def test_equal_maps_have_equal_bytes_whatever_their_order() -> None:
    assert cbor.encode({2: "b", 1: "a"}) == cbor.encode({1: "a", 2: "b"}) == bytes.fromhex("a2016161026162")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "ends early"),
        ("18", "ends early"),
        ("1b00000000", "ends early"),
        ("01 02", "1 bytes follow"),
        ("5f 41 00 ff", "indefinite"),
        ("7f 61 61 ff", "indefinite"),
        ("9f 01 ff", "indefinite"),
        ("bf 01 02 ff", "indefinite"),
        ("ff", "indefinite or reserved"),
        ("1c", "indefinite or reserved"),
        ("1e", "indefinite or reserved"),
        ("c0 60", "unexpected CBOR tag 0"),
        ("c2 41 01", "unexpected CBOR tag 2"),
        ("81 d8 1c 80", "unexpected CBOR tag 28"),
        ("d9 d9f7 01", "unexpected CBOR tag 55799"),
        ("5b ffffffffffffffff 00", "longer than its message"),
        ("7b 7fffffffffffffff 61", "longer than its message"),
        ("9b ffffffffffffffff 00", "longer than its message"),
        ("bb 7fffffffffffffff 00 00", "longer than its message"),
        ("43 0000", "longer than its message"),
        ("82 01", "longer than its message"),
        ("82 18 01", "ends early"),
        ("a1 01", "longer than its message"),
        ("61 ff", "malformed"),
        ("62 c3 28", "malformed"),
        ("f7", "unexpected simple CBOR value 23"),
        ("f8 20", "unexpected simple CBOR value 32"),
        ("e0", "unexpected simple CBOR value 0"),
        ("a1 80 00", "expected an integer or a string as key, got list"),
        ("a1 a0 00", "expected an integer or a string as key, got dict"),
        ("a1 f9 7e00 00", "expected an integer or a string as key, got float"),
    ],
)
def test_a_malformed_item_is_refused_with_its_reason(data: str, reason: str) -> None:
    with pytest.raises(EncodingError, match=reason):
        cbor.decode(bytes.fromhex(data), limit=LIMIT)


def test_nesting_stops_at_the_bound() -> None:
    allowed = b"\x81" * cbor.MAX_DEPTH + b"\x00"
    assert depth(cbor.decode(allowed, limit=LIMIT)) == cbor.MAX_DEPTH
    for head in (b"\x81", b"\xa1\x00", b"\xa1"):
        with pytest.raises(EncodingError, match="nested deeper"):
            cbor.decode(head * (cbor.MAX_DEPTH + 1) + b"\x00" * (cbor.MAX_DEPTH + 2), limit=LIMIT)


def test_a_thousand_levels_do_not_exhaust_the_stack() -> None:
    with pytest.raises(EncodingError, match="nested deeper"):
        cbor.decode(b"\x81" * 100_000 + b"\x00", limit=1 << 20)


def test_size_is_checked_before_content() -> None:
    with pytest.raises(EncodingError, match="expected at most 4 bytes, got 5"):
        cbor.decode(b"\xff" * 5, limit=4)


def test_a_byte_string_is_found_where_it_stands_or_refused() -> None:
    data = b"\x00\x43abc\x63abc"
    assert cbor.byte_string(data, 1) == (2, 5)
    for position in (0, 5, 9):
        with pytest.raises(EncodingError):
            cbor.byte_string(data, position)
    with pytest.raises(EncodingError, match="within its message"):
        cbor.byte_string(b"\x5b" + b"\xff" * 8 + b"abc", 0)


@settings(max_examples=300)
@given(plain)
def test_another_decoder_reads_the_same(value: object) -> None:
    data = cbor2.dumps(value)
    if depth(value) <= cbor.MAX_DEPTH:
        mine, other = cbor.decode(data, limit=1 << 16), cbor2.loads(data)
        assert mine == other
        assert cbor.encode(mine) == cbor.encode(other)  # floats of the same bits, no True for 1


@settings(max_examples=300)
@given(
    st.binary(max_size=64)
    | plain.map(cbor2.dumps).flatmap(lambda data: st.binary(max_size=4).map(data.__add__))
)
def test_hostile_bytes_are_decoded_or_refused(data: bytes) -> None:
    with contextlib.suppress(EncodingError):
        cbor.decode(data, limit=LIMIT)


@settings(max_examples=200)
@given(plain, st.data())
def test_a_flipped_byte_is_decoded_or_refused(value: object, data: st.DataObject) -> None:
    encoded = bytearray(cbor.encode(value))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(EncodingError):
        cbor.decode(bytes(encoded), limit=1 << 16)


@pytest.mark.parametrize(
    "data",
    [
        b"\x99\x03\xfd" + b"\x80" * 1021,  # empty arrays
        b"\x99\x03\xfd" + b"\xa0" * 1021,  # empty maps
        b"\x99\x01\xfe" + b"\xa1\x00" * 510,
        b"\xb9\x01\x54" + b"".join(b"\x19" + i.to_bytes(2, "big") for i in range(340)),
        b"\x5b" + b"\x7f" * 8 + bytes(1015),
        b"\x9b\x00\x00\x00\x00\x7f\xff\xff\xff" + bytes(1015),
        b"\xbb\x00\x00\x00\x00\x7f\xff\xff\xff" + bytes(1015),
        b"\x81" * 1023 + b"\x00",
        b"\x79\x03\xfd" + b"x" * 1017 + "\U0001f600".encode(),
    ],
)
def test_a_message_takes_no_more_memory_than_twice_its_limit(data: bytes) -> None:
    tracemalloc.start()
    try:
        cbor.decode(data, limit=LIMIT)
    except EncodingError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < cbor.LEAST_MEMORY + 4096  # the error itself


def test_of_a_large_message_memory_is_bounded_as_well() -> None:
    limit = 1 << 20
    for body in (b"\x80", b"\xa0", b"\xa1\x80\x80", b"\x20", b"\x61\xc3"):
        items = (limit - 5) // len(body)
        data = b"\x9a" + items.to_bytes(4, "big") + body * items
        with pytest.raises(EncodingError, match=r"too much memory|key|malformed"):
            cbor.decode(data, limit=limit)


def test_the_longest_string_that_fits_is_not_refused() -> None:
    value = {1: bytes(1 << 20), **dict.fromkeys(range(2, 15), 0.5)}
    data = cbor.encode(value)
    assert cbor.decode(data, limit=len(data)) == value
