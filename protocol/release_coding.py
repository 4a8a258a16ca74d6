"""Releases on the wire: a coded difference to the release before, and the keyframe for whoever lacks that.

A release is *defined* by its coded difference: adapter = adapter before + difference, where the difference
is what the wire carries. So the device that applies it holds the server's bits, and its hash can be checked.
What the quantiser leaves over stays at the server and goes into the next difference (error feedback, Seide et
al. 2014; Karimireddy et al. 2019, arXiv:1901.09847), so it is late and not lost, and does not add up.

The quantiser is plain: each value goes to a multiple of its segment's step, towards zero up to 5/8 of a step.
Rounding to the nearest costs 0.1 bit per parameter more for the same error, because the zeros are what the
entropy coder makes cheap (Sullivan 1996). Dither would make the error independent of the value; with error
feedback nothing needs that, and it costs another 0.15 bit.

All is integer arithmetic in units of 2**-30, but for the last step: one exact conversion, one addition and
one rounding per parameter, which IEEE 754 fixes to the bit. No sum of floats is taken, for its bits depend on
the machine.
"""

import hashlib
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol import entropy_coding
from protocol.domains import restacked, stacked
from protocol.errors import ArtifactError, EncodingError
from protocol.messages import BASE_BYTES, Release, adapter_bytes
from protocol.quantisation import FRACTION_BITS, MAX_STEP, StepRatio, by_segment, round_step, to_float

MIN_STEP_RATIO, MAX_STEP_RATIO = 1 / 64, 16.0
MAX_EXPONENT = 27
"""Of a step: then it stays below 2**35 units, which is 32.0."""
DIFFERENCE_BITS = 40
"""Differences stay below 2**DIFFERENCE_BITS units in magnitude, 1024.0: far more than any mean of updates,
and little enough for an exact conversion to float64."""
MEMORY_PER_PARAMETER = 48
"""Bytes that restoring an adapter takes at most for each parameter, beside entropy coding's tables and the
body once more."""
_ROUND_UP = 3
"""Eighths of a step from which on a value is rounded up: the last 3 of 8."""
_SQUARED_BITS = 20
_ROOT_BITS = 8


@dataclass(frozen=True)
class Difference:
    """A coded difference of two adapters."""

    steps: bytes
    """Two bytes a segment, as in an update (see quantisation.py)."""
    body: bytes
    """Entropy-coded symbols (see entropy_coding.py)."""


def encode_difference(
    target: NDArray[np.int64], segments: Iterable[slice], step_ratio: StepRatio
) -> Difference:
    """Quantise and code a difference.

    Args:
        target: int64 [parameters], units of 2**-30, below 2**38 in magnitude, at most 4,000,000 parameters.
        segments: the parts that get a step of their own; together they cover the vector.
        step_ratio: step in root mean squares of each segment, for all or one by one, 0.25 to 16. From 0.25
            on, symbols stay below 2**20 and are fewer than 4096, whatever the vector.
    """
    symbols = np.zeros(target.size, np.int32)
    steps = bytearray()
    parts = list(segments)
    for part, ratio in zip(parts, by_segment(step_ratio, len(parts)), strict=True):
        values = target[part]
        units = min(int(ratio * _root_mean_square(values)), int(MAX_STEP) << FRACTION_BITS)
        mantissa, exponent = round_step(units)
        steps += bytes([mantissa, exponent])
        if mantissa:
            step = mantissa << exponent
            magnitudes = (np.abs(values) + (step * _ROUND_UP >> 3)) // step
            symbols[part] = np.where(values < 0, -magnitudes, magnitudes)
    return Difference(bytes(steps), entropy_coding.encode(symbols))


def decode_difference(
    difference: Difference, segments: Iterable[slice], parameters: int
) -> NDArray[np.int64]:
    """Restore a difference, int64 [parameters] in units of 2**-30, below 2**40 in magnitude.

    Memory is bounded by `parameters`, whatever the bytes.

    Raises:
        EncodingError: steps that do not fit the segments, a malformed body, or values out of range.
    """
    parts = list(segments)
    if len(difference.steps) != 2 * len(parts):
        raise EncodingError(f"expected {len(parts)} steps, got {len(difference.steps) / 2:g}")
    values = entropy_coding.decode(difference.body, parameters).astype(np.int64)
    for part, mantissa, exponent in zip(parts, difference.steps[::2], difference.steps[1::2], strict=True):
        if exponent > MAX_EXPONENT:
            raise EncodingError("quantisation step out of range")
        if mantissa == 0 and (exponent or values[part].any()):
            raise EncodingError("expected no symbols in a segment without a step")
        step = mantissa << exponent
        if int(np.abs(values[part]).max(initial=0)) * step >= 1 << DIFFERENCE_BITS:
            raise EncodingError("a value of the difference is out of range")
        values[part] *= step
    return values


def add_difference(base: NDArray[np.float32], difference: NDArray[np.int64]) -> NDArray[np.float32]:
    """Add a difference, int64 [parameters] in units of 2**-30, to an adapter; the same bits everywhere."""
    return np.asarray(base.astype(np.float64) + to_float(difference), np.float32)


def encode_keyframe(adapter: NDArray[np.float32]) -> bytes:
    """Code a whole adapter: its bytes by significance, so that zlib finds signs and exponents together.

    Equal adapters give equal bytes under one version of zlib; under another one they may differ.
    """
    planes = np.frombuffer(adapter_bytes(adapter), np.uint8).reshape(-1, 4).T
    return zlib.compress(planes.tobytes(), 9)


def decode_keyframe(data: bytes, parameters: int) -> NDArray[np.float32]:
    """Restore a whole adapter, float32 [parameters]; memory is bounded by `parameters`.

    Raises:
        ArtifactError: not readable, or of another size.
    """
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data, 4 * parameters + 1)
    except zlib.error as error:
        raise ArtifactError(f"the keyframe is not readable: {error}") from error
    if len(raw) != 4 * parameters:
        raise ArtifactError(f"expected a keyframe of {parameters} parameters, got {len(raw)} bytes")
    return np.frombuffer(np.frombuffer(raw, np.uint8).reshape(4, -1).T.tobytes(), "<f4").astype(np.float32)


def keyframe_limit(parameters: int) -> int:
    """Most bytes of a keyframe: what zlib makes of bytes that it cannot compress."""
    return 4 * parameters + parameters // 256 + 64


def adapter_sha256(adapter: NDArray[np.float32]) -> bytes:
    """The name of an adapter: SHA-256 of its bytes."""
    return hashlib.sha256(adapter_bytes(adapter)).digest()


def check_adapter(adapter: NDArray[np.float32], sha256: bytes) -> NDArray[np.float32]:
    """Return `adapter` if it has the name `sha256` and only finite values.

    Raises:
        ArtifactError: it does not.
    """
    found = adapter_sha256(adapter)
    if found != sha256:
        raise ArtifactError(f"expected the adapter {sha256.hex()[:16]}, got {found.hex()[:16]}")
    if not np.isfinite(adapter).all():
        raise ArtifactError("the release's adapter holds NaN or infinite values")
    return adapter


def release_adapter(
    release: Release, base: NDArray[np.float32] | None, segments: Iterable[slice], parameters: int
) -> NDArray[np.float32]:
    """Restore the adapters of a release from its message, and check them against its name.

    Memory: at most MEMORY_PER_PARAMETER * parameters for each domain, the tables of entropy coding, and once
    the body.

    Args:
        release: a message with a body.
        base: the adapters that `release.base` names; None where the body holds whole adapters.
        segments: parts of one adapter that have a step of their own.
        parameters: length of one adapter.

    Returns:
        float32 [release.domains * parameters].

    Raises:
        ProtocolError: a malformed body, another base, or a result with another hash.
    """
    size = release.domains * parameters
    if not release.base:
        return check_adapter(decode_keyframe(release.body, size), release.adapter_sha256)
    if base is None or adapter_sha256(base)[:BASE_BYTES] != release.base:
        raise ArtifactError(f"expected the base {release.base.hex()}, which the difference starts from")
    start = restacked(base, parameters, release.domains)
    parts = stacked(segments, parameters, release.domains)
    difference = decode_difference(Difference(release.steps, release.body), parts, size)
    return check_adapter(add_difference(start, difference), release.adapter_sha256)


def _root_mean_square(values: NDArray[np.int64]) -> float:
    """Root mean square in the units of `values`, from integer sums: no order of addition changes a bit."""
    magnitudes = np.abs(values)
    # 20 bits a value make 40 bits a square and, with 4 million of them (22 bits), 62 bits a sum.
    shift = max(0, int(magnitudes.max(initial=0)).bit_length() - _SQUARED_BITS)
    coarse = magnitudes >> shift
    square = int(np.sum(coarse * coarse))
    root = math.isqrt((square << 2 * (shift + _ROOT_BITS)) // max(1, values.size))
    return math.ldexp(root, -_ROOT_BITS)
