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


def test_a_tag_is_taken_only_where_it_is_named() -> None:
    tagged = cbor2.dumps(cbor2.CBORTag(18, [1]))
    cbor.check(tagged, limit=LIMIT, tag=18)
    with pytest.raises(EncodingError, match="expected CBOR tag 17 in front"):
        cbor.check(tagged, limit=LIMIT, tag=17)
    with pytest.raises(EncodingError, match="expected CBOR tag 18 in front"):
        cbor.check(b"\x81\x01", limit=LIMIT, tag=18)
    with pytest.raises(EncodingError, match="unexpected CBOR tag 18"):
        cbor.check(b"\xd2" + tagged, limit=LIMIT, tag=18)


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
    ],
)
def test_a_kilobyte_cannot_claim_a_megabyte(data: bytes) -> None:
    tracemalloc.start()
    try:
        cbor.decode(data, limit=LIMIT)
    except EncodingError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1 << 20
