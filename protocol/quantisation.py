"""Quantisation of updates: a dithered uniform quantiser with a step per segment.

Subtractive dither (Schuchman 1964; Roberts 1962) makes the error uniform and independent of the value, so
the quantiser is unbiased at any step. The dither comes from a seed that both sides derive from what
identifies the update, so it costs no byte and the device keeps no state. The default step of two root mean
squares with entropy coding takes about 1.2 bit per parameter.

Decoding is integer arithmetic throughout, in units of 2**-30: the server's sums are the same bits on every
machine and in every order of arrival.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.errors import EncodingError

FRACTION_BITS = 30
"""Fixed-point values are integers in units of 2**-FRACTION_BITS."""
VALUE_BITS = 36
"""Fixed-point values stay below 2**VALUE_BITS in magnitude: 64.0."""
MAX_VALUE = 15.0
MAX_STEP = 16.0
"""With values up to 15, what is decoded stays below 31, well within the range."""
_DITHER_BITS = 16


StepRatio = float | Sequence[float]
"""One for all segments, or one for each."""


@dataclass(frozen=True)
class Quantised:
    """A quantised vector."""

    steps: bytes
    """Two bytes a segment: mantissa m and exponent e of a step of m * 2**e units of 2**-30; 0 0 where the
    whole segment is zero."""
    symbols: NDArray[np.int32]
    """int32 [parameters]."""


def dither_seed(federation: str, device: str, round_number: int, base: bytes) -> bytes:
    """Derive the seed that device and server share, 32 bytes, from what identifies an update."""
    text = f"graftwork dither {federation} {device} {round_number} ".encode()
    return hashlib.sha256(text + base).digest()


def by_segment(step_ratio: StepRatio, segments: int) -> Sequence[float]:
    """A step ratio for each segment."""
    return [step_ratio] * segments if isinstance(step_ratio, float | int) else step_ratio


def quantise(
    vector: NDArray[np.float32], segments: Iterable[slice], seed: bytes, step_ratio: StepRatio
) -> Quantised:
    """Quantise a vector.

    Args:
        vector: float32 [parameters], finite, at most 15 in magnitude.
        segments: the parts that get a step of their own; together they cover the vector.
        seed: from `dither_seed`.
        step_ratio: step in root mean squares of each segment, for all or one by one.

    Raises:
        EncodingError: the vector is not finite or out of range.
    """
    if not (np.abs(vector) <= MAX_VALUE).all():  # also false for NaN
        raise EncodingError(f"expected finite values up to {MAX_VALUE}")
    dither = _dither(seed, vector.size).astype(np.float64) / (1 << _DITHER_BITS)
    symbols = np.zeros(vector.size, np.int32)
    steps = bytearray()
    parts = list(segments)
    for part, ratio in zip(parts, by_segment(step_ratio, len(parts)), strict=True):
        values = vector[part].astype(np.float64)
        wanted = min(MAX_STEP, ratio * float(np.sqrt(np.mean(values**2))))
        mantissa, exponent = round_step(int(np.ldexp(wanted, FRACTION_BITS)))
        steps += bytes([mantissa, exponent])
        if mantissa:
            step = (mantissa << exponent) / (1 << FRACTION_BITS)
            symbols[part] = np.floor(values / step + dither[part])
    return Quantised(bytes(steps), symbols)


def dequantise(quantised: Quantised, segments: Iterable[slice], seed: bytes) -> NDArray[np.int64]:
    """Restore a vector in units of 2**-30, int64 [parameters], each below 2**36 in magnitude.

    Raises:
        EncodingError: steps that do not fit the segments, or values out of range.
    """
    parts = list(segments)
    if len(quantised.steps) != 2 * len(parts):
        raise EncodingError(f"expected {len(parts)} steps, got {len(quantised.steps) / 2:g}")
    half = 1 << (_DITHER_BITS - 1)
    offsets = half - _dither(seed, quantised.symbols.size).astype(np.int64)
    fixed = np.zeros(quantised.symbols.size, np.int64)
    for index, part in enumerate(parts):
        mantissa, exponent = quantised.steps[2 * index : 2 * index + 2]
        if mantissa == 0:
            if exponent or quantised.symbols[part].any():
                raise EncodingError("expected no symbols in a segment without a step")
            continue
        if exponent > VALUE_BITS - 9:  # then a step is below 2**35, and a value below 2**36
            raise EncodingError("quantisation step out of range")
        step = mantissa << exponent
        if int(np.abs(quantised.symbols[part].astype(np.int64)).max()) * step >= 1 << (VALUE_BITS - 1):
            raise EncodingError("a value of the update is out of range")
        scaled = ((quantised.symbols[part].astype(np.int64) << _DITHER_BITS) + offsets[part]) * step
        fixed[part] = scaled >> _DITHER_BITS
    return fixed


def to_float(fixed: NDArray[np.int64]) -> NDArray[np.float64]:
    """Turn units of 2**-30 into numbers, exactly."""
    return np.ldexp(fixed.astype(np.float64), -FRACTION_BITS)


def round_step(units: int) -> tuple[int, int]:
    """Round a step in units of 2**-30 to 8 significant bits, two bytes: (mantissa, exponent)."""
    if units == 0:
        return 0, 0
    exponent = max(0, units.bit_length() - 8)
    mantissa = (units + ((1 << exponent) >> 1)) >> exponent
    if mantissa == 256:
        return 128, exponent + 1
    return mantissa, exponent


def _dither(seed: bytes, size: int) -> NDArray[np.uint16]:
    """Uniform 16-bit integers, the same on every machine (Philox is a stable bit generator)."""
    key = int.from_bytes(hashlib.sha256(seed).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw(-(-size // 4))
    return np.asarray(raw, "<u8").view("<u2")[:size]
