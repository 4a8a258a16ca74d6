"""The quantiser: unbiased, the same bits everywhere, and closed to values out of range."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.entropy_coding import MAX_SYMBOL
from protocol.errors import EncodingError
from protocol.quantisation import VALUE_BITS, Quantised, dequantise, dither_seed, quantise, to_float

SEED = dither_seed("pumps", "pump-1", 3, b"b" * 32)
PARTS = [slice(0, 600), slice(600, 1000)]


def vector(size: int = 1000, seed: int = 1, scale: float = 0.01) -> NDArray[np.float32]:
    values = np.random.Generator(np.random.PCG64(seed)).laplace(size=size) * scale
    values[:600] *= 20  # segments of different size want different steps
    return values.astype(np.float32)


def restored(values: NDArray[np.float32], seed: bytes = SEED, ratio: float = 2.0) -> NDArray[np.float64]:
    return to_float(dequantise(quantise(values, PARTS, seed, ratio), PARTS, seed))


def test_the_bits_never_change() -> None:
    """A device and a server of different versions must agree on every bit."""
    values = (np.arange(1000, dtype=np.float32) % 37 - 18) / np.float32(256)
    quantised = quantise(values, PARTS, SEED, 2.0)
    fixed = dequantise(quantised, PARTS, SEED)
    assert SEED.hex() == "7ff0edf4d7e935f3e16f27d08d92347114578b837908c7459c55c9744418b3f6"
    assert quantised.steps.hex() == "ac13aa13"
    assert (
        hashlib.sha256(quantised.symbols.astype("<i4").tobytes()).hexdigest()
        == "71d6403afcc4be82e96bed91d92fea8af05f8536e5204a13bf0ce155cc62d8c4"
    )
    assert (
        hashlib.sha256(fixed.astype("<i8").tobytes()).hexdigest()
        == "b0f71f921d6b9995a040a307676f427f66ec089396b70047432bbd409bc32c3e"
    )


@pytest.mark.parametrize("ratio", [0.5, 2.0, 4.0])
def test_the_error_is_within_half_a_step(ratio: float) -> None:
    values = vector()
    error = np.abs(restored(values, ratio=ratio) - values)
    for part in PARTS:
        step = ratio * float(np.sqrt(np.mean(values[part].astype(np.float64) ** 2)))
        assert error[part].max() <= step / 2 * 1.005  # the step itself is rounded to 8 bits


def test_the_mean_over_many_dithers_is_the_value() -> None:
    values = vector()
    rounds = 400
    seeds = [dither_seed("pumps", "pump-1", number, b"") for number in range(rounds)]
    mean = np.mean([restored(values, seed) for seed in seeds], axis=0)
    for part in PARTS:
        step = 2.0 * float(np.sqrt(np.mean(values[part].astype(np.float64) ** 2)))
        # Uniform in a step: a standard deviation of step / sqrt(12) each; six of the mean's.
        assert np.abs(mean - values)[part].max() < 6 * step / np.sqrt(12 * rounds)


def test_the_error_does_not_depend_on_the_value() -> None:
    values = vector(seed=5)
    errors = np.concatenate(
        [restored(values, dither_seed("f", "d", number, b"")) - values for number in range(100)]
    )
    assert (
        abs(np.corrcoef(np.tile(values[:600], 100), errors.reshape(100, -1)[:, :600].reshape(-1))[0, 1])
        < 0.02
    )


def test_device_round_and_base_each_have_their_own_dither() -> None:
    seeds = {
        dither_seed(federation, device, number, base)
        for federation in ("a", "b")
        for device in ("c", "d")
        for number in (1, 2)
        for base in (b"e" * 32, b"f" * 32)
    }
    assert len(seeds) == 16
    assert len({quantise(vector(), PARTS, seed, 2.0).symbols.tobytes() for seed in seeds}) == 16


def test_the_same_seed_gives_the_same_integers() -> None:
    first, second = (quantise(vector(), PARTS, SEED, 2.0) for _ in range(2))
    assert first.steps == second.steps
    assert np.array_equal(first.symbols, second.symbols)


def test_a_zero_segment_costs_no_symbol() -> None:
    values = vector()
    values[600:] = 0
    quantised = quantise(values, PARTS, SEED, 2.0)
    assert quantised.steps[2:] == b"\x00\x00"
    assert not quantised.symbols[600:].any()
    assert not dequantise(quantised, PARTS, SEED)[600:].any()


def test_values_below_the_unit_count_as_zero() -> None:
    assert quantise(np.full(1000, 1e-12, np.float32), PARTS, SEED, 2.0).steps == bytes(4)


@settings(max_examples=60)
@given(
    st.lists(st.floats(-0.5, 0.5, width=32), min_size=2, max_size=64),
    st.floats(0.25, 4.0),
    st.binary(min_size=32, max_size=32),
)
def test_any_small_vector_comes_back_within_half_a_step(
    values: list[float], ratio: float, seed: bytes
) -> None:
    parts = [slice(0, 1), slice(1, len(values))]
    array = np.array(values, np.float32)
    error = np.abs(to_float(dequantise(quantise(array, parts, seed, ratio), parts, seed)) - array)
    for part in parts:
        step = ratio * float(np.sqrt(np.mean(array[part].astype(np.float64) ** 2)))
        assert error[part].max() <= step / 2 * 1.01 + 2.0**-31


@settings(max_examples=300)
@given(
    st.integers(0, 255),
    st.integers(0, 255),
    st.lists(st.integers(-MAX_SYMBOL, MAX_SYMBOL) | st.integers(-3, 3), min_size=1, max_size=8),
    st.binary(min_size=32, max_size=32),
)
def test_what_is_accepted_stays_below_sixteen(
    mantissa: int, exponent: int, symbols: list[int], seed: bytes
) -> None:
    quantised = Quantised(bytes([mantissa, exponent]), np.array(symbols, np.int32))
    try:
        fixed = dequantise(quantised, [slice(0, len(symbols))], seed)
    except EncodingError:
        return
    step = mantissa << exponent
    assert np.abs(fixed).max() < 1 << VALUE_BITS
    for value, symbol in zip(fixed.tolist(), symbols, strict=True):
        assert abs(value - symbol * step) <= (step + 1) // 2 + 1


@pytest.mark.parametrize(
    ("steps", "symbol", "reason"),
    [
        (b"", 0, "expected 1 steps, got 0"),
        (b"\x01", 0, "expected 1 steps, got 0.5"),
        (bytes(4), 0, "expected 1 steps, got 2"),
        (b"\x00\x01", 0, "expected no symbols in a segment without a step"),
        (b"\x00\x00", 1, "expected no symbols in a segment without a step"),
        (b"\x01\x1c", 0, "step out of range"),
        (b"\xff\xff", 0, "step out of range"),
        (b"\x80\x1b", 2, "out of range"),
        (b"\xff\x1b", -2, "out of range"),
        (b"\xff\x10", MAX_SYMBOL, "out of range"),
    ],
)
def test_crafted_steps_and_symbols_are_refused(steps: bytes, symbol: int, reason: str) -> None:
    with pytest.raises(EncodingError, match=reason):
        dequantise(Quantised(steps, np.full(4, symbol, np.int32)), [slice(0, 4)], SEED)


def test_fixed_point_numbers_are_exact() -> None:
    assert to_float(np.array([1 << 30, -(3 << 29), 1, 0])).tolist() == [1.0, -1.5, 2.0**-30, 0.0]
