"""Entropy coding: every vector comes back, near its entropy, and no hostile body does harm."""

import contextlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.entropy_coding import MAX_SYMBOL, SCALE, decode, encode
from protocol.errors import EncodingError

Symbols = NDArray[np.int32]


def entropy_bytes(symbols: Symbols) -> float:
    _, counts = np.unique(symbols, return_counts=True)
    shares = counts / counts.sum()
    return float(-(counts * np.log2(shares)).sum() / 8)


def drawn(shape: str, bits: float, size: int, seed: int = 1) -> Symbols:
    """Symbols of a distribution, as wide as makes them worth about `bits` each."""
    random = np.random.Generator(np.random.PCG64(seed))
    draw = {
        "laplace": lambda: random.laplace(size=size),
        "gauss": lambda: random.standard_normal(size),
        "heavy tail": lambda: np.clip(random.standard_t(2, size), -1e3, 1e3),
    }[shape]
    values = draw()
    low, high = 1e-3, 1e3
    for _ in range(40):
        scale = float(np.sqrt(low * high))
        symbols = np.round(values * scale).astype(np.int32)
        if entropy_bytes(symbols) * 8 / size < bits:
            low = scale
        else:
            high = scale
    return symbols


@settings(max_examples=80)
@given(
    st.integers(1, 5000),
    st.integers(0, 300),
    st.integers(-MAX_SYMBOL + 300, MAX_SYMBOL - 300),
    st.integers(0, 99),
)
def test_symbols_come_back(size: int, spread: int, centre: int, seed: int) -> None:
    random = np.random.Generator(np.random.PCG64(seed))
    symbols = (centre + random.integers(-spread, spread + 1, size)).astype(np.int32)
    decoded = decode(encode(symbols), size)
    assert decoded.dtype == np.int32
    assert np.array_equal(decoded, symbols)


@settings(max_examples=60)
@given(st.lists(st.integers(-MAX_SYMBOL, MAX_SYMBOL), min_size=1, max_size=60))
def test_any_few_symbols_come_back(values: list[int]) -> None:
    assert decode(encode(np.array(values, np.int32)), len(values)).tolist() == values


@pytest.mark.parametrize("size", [1, 1023, 1024, 2047, 2048, 4096, 1_048_576 + 1])
def test_sizes_at_which_the_lanes_change(size: int) -> None:
    symbols = np.random.Generator(np.random.PCG64(size)).integers(-3, 4, size).astype(np.int32)
    assert np.array_equal(decode(encode(symbols), size), symbols)


@pytest.mark.parametrize("value", [0, 7, -MAX_SYMBOL, MAX_SYMBOL])
def test_one_symbol_over_and_over_costs_nearly_nothing(value: int) -> None:
    symbols = np.full(100_000, value, np.int32)
    body = encode(symbols)
    assert len(body) < 300
    assert np.array_equal(decode(body, symbols.size), symbols)


def test_as_many_different_symbols_as_there_are_frequencies() -> None:
    symbols = np.arange(SCALE, dtype=np.int32) - SCALE // 2
    assert np.array_equal(decode(encode(symbols), SCALE), symbols)
    with pytest.raises(EncodingError, match="at most 4096 distinct symbols"):
        encode(np.arange(SCALE + 1, dtype=np.int32))


def test_a_symbol_out_of_range_is_refused() -> None:
    with pytest.raises(EncodingError, match="up to 1048576"):
        encode(np.array([MAX_SYMBOL + 1], np.int32))


@pytest.mark.parametrize("shape", ["laplace", "gauss", "heavy tail"])
@pytest.mark.parametrize("bits", [0.4, 1.2, 2.5, 4.0])
@pytest.mark.parametrize("size", [8_000, 100_000])
def test_the_code_is_near_the_entropy(shape: str, bits: float, size: int) -> None:
    symbols = drawn(shape, bits, size)
    body = encode(symbols)
    assert len(body) <= 1.06 * entropy_bytes(symbols) + 80
    assert np.array_equal(decode(body, size), symbols)


def test_equal_symbols_have_equal_bytes() -> None:
    symbols = drawn("laplace", 1.2, 5000)
    assert encode(symbols) == encode(symbols.copy())


@settings(max_examples=200)
@given(st.binary(max_size=80), st.integers(0, 5000))
def test_hostile_bytes_are_refused(data: bytes, count: int) -> None:
    with contextlib.suppress(EncodingError):
        assert decode(data, count).size == count


@settings(max_examples=150)
@given(st.integers(1, 3000), st.data())
def test_a_flipped_byte_is_refused_or_gives_as_many_symbols(size: int, data: st.DataObject) -> None:
    body = bytearray(encode(drawn("gauss", 2.0, size)))
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(EncodingError):
        symbols = decode(bytes(body), size)
        assert symbols.size == size
        assert np.abs(symbols).max() <= MAX_SYMBOL


@pytest.mark.parametrize("size", [1, 100, 5000])
def test_a_body_cut_or_extended_is_refused(size: int) -> None:
    body = encode(drawn("gauss", 2.0, size) if size > 1 else np.array([3], np.int32))
    for end in range(0, len(body), max(1, len(body) // 50)):
        with pytest.raises(EncodingError):
            decode(body[:end], size)
    for more in (b"\x00", b"\x00\x00", bytes(100), body):
        with pytest.raises(EncodingError):
            decode(body + more, size)


@pytest.mark.parametrize("count", [0, 1, 999, 1001, 2048, 100_000])
def test_another_number_of_symbols_is_refused(count: int) -> None:
    with pytest.raises(EncodingError):
        decode(encode(drawn("gauss", 3.0, 1000)), count)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("00", "1 to 4096 distinct symbols, got 0"),
        ("8120", "1 to 4096 distinct symbols, got 4097"),
        ("ffffffff0f", "too long"),
        ("02 00 8010 00 8010", "ascending order"),
        ("01 00 00", "out of range"),
        ("01 00 8120", "out of range"),
        ("01 feffff7f 8020", "out of range"),
        ("01 00 01", "sum to 4096, got 1"),
        ("02 00 8020 01 01", "sum to 4096, got 4097"),
        ("02 00", "ends early"),
        ("", "ends early"),
    ],
)
def test_a_hostile_table_is_refused(table: str, reason: str) -> None:
    with pytest.raises(EncodingError, match=reason):
        decode(b"\x10" + bytes.fromhex(table), 1)


def test_a_tiny_body_for_the_largest_adapter_costs_what_the_adapter_costs() -> None:
    count = 4_000_000
    body = b"\x1a\x01\x00\x80\x20" + (1 << 16).to_bytes(4, "little") * 1024
    tracemalloc.start()
    symbols = decode(body, count)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not symbols.any()
    assert peak < 32 * count


def test_a_body_of_the_format_before_is_still_read() -> None:
    old = bytes.fromhex("000301800401e71001990b5900d80080003fe20bbe")
    new = bytes.fromhex("100301800401e71001990b00003f000191d1d12814")
    assert decode(old, 40).tolist() == decode(new, 40).tolist()
    with pytest.raises(EncodingError):
        decode(old, 41)


@pytest.mark.parametrize("first", [0x20, 0xF0])
def test_a_format_to_come_is_refused(first: int) -> None:
    body = bytearray(encode(np.zeros(5, np.int32)))
    body[0] = first
    with pytest.raises(EncodingError, match="unexpected format"):
        decode(bytes(body), 5)
