"""Releases as differences: the same bits on both sides, nothing lost for good, memory bounded."""

import contextlib
import hashlib
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol import entropy_coding
from protocol.errors import ArtifactError, EncodingError, ProtocolError
from protocol.messages import BASE_BYTES, Release, adapter_bytes
from protocol.quantisation import to_float
from protocol.release_coding import (
    MAX_EXPONENT,
    Difference,
    adapter_sha256,
    add_difference,
    check_adapter,
    decode_difference,
    decode_keyframe,
    encode_difference,
    encode_keyframe,
    keyframe_limit,
    release_adapter,
)

UNIT = 1 << 30
LARGEST = (1 << 38) - 1
ratios = st.floats(0.25, 16.0)
targets = st.lists(
    st.integers(-LARGEST, LARGEST) | st.integers(-UNIT, UNIT) | st.integers(-20, 20) | st.just(0),
    min_size=1,
    max_size=60,
).map(lambda values: np.array(values, np.int64))
seeds = st.integers(0, 2**32 - 1)


def parts_of(size: int, cut: int) -> list[slice]:
    cut = min(cut, size)
    return [slice(0, cut), slice(cut, size)]


def steps_of(difference: Difference) -> list[int]:
    return [m << e for m, e in zip(difference.steps[::2], difference.steps[1::2], strict=True)]


def normal(seed: int, size: int, scale: float = 0.01) -> NDArray[np.int64]:
    values = np.random.Generator(np.random.PCG64(seed)).normal(size=size) * scale
    return np.asarray(values * UNIT, np.int64)


@settings(max_examples=300)
@given(targets, st.integers(0, 60), ratios)
def test_what_is_lost_is_less_than_a_step(target: NDArray[np.int64], cut: int, ratio: float) -> None:
    parts = parts_of(target.size, cut)
    difference = encode_difference(target, parts, ratio)
    decoded = decode_difference(difference, parts, target.size)
    for part, step in zip(parts, steps_of(difference), strict=True):
        left = np.abs(target[part] - decoded[part])
        if step:
            assert left.max(initial=0) <= -(-5 * step // 8)
        else:
            assert not decoded[part].any()
        # Nothing overshoots by more than what rounding up may add.
        assert (np.abs(decoded[part]) <= np.abs(target[part]) + 3 * step // 8 + 1).all()


@settings(max_examples=50)
@given(seeds, st.integers(1, 3000), st.floats(0.5, 4.0))
def test_the_order_of_parameters_changes_no_step(seed: int, size: int, ratio: float) -> None:
    """A step comes from integer sums, so no machine's way of summing shows in it."""
    target = normal(seed, size)
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(target)
    whole = [slice(0, size)]
    assert encode_difference(target, whole, ratio).steps == encode_difference(shuffled, whole, ratio).steps


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 4.0])
def test_a_step_is_the_ratio_in_root_mean_squares(ratio: float) -> None:
    for scale in (1e-6, 1e-3, 1.0):
        target = normal(1, 5000, scale)
        [step] = steps_of(encode_difference(target, [slice(0, 5000)], ratio))
        expected = ratio * float(np.sqrt(np.mean(target.astype(np.float64) ** 2)))
        assert step == pytest.approx(expected, rel=0.01)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 4000), st.floats(1e-6, 10.0), st.floats(0.5, 4.0))
def test_never_worse_than_sending_it_whole(seed: int, size: int, scale: float, ratio: float) -> None:
    target = normal(seed, size, scale)
    difference = encode_difference(target, [slice(0, size)], ratio)
    base = np.random.Generator(np.random.PCG64(seed)).normal(size=size).astype(np.float32)
    whole = encode_keyframe(add_difference(base, decode_difference(difference, [slice(0, size)], size)))
    table = 64  # the largest part of a short body
    assert len(difference.steps) + len(difference.body) <= len(whole) + table


def test_a_release_takes_about_a_bit_per_parameter() -> None:
    size = 100_000
    difference = encode_difference(normal(3, size), [slice(0, size)], 2.0)
    assert 0.8 < 8 * len(difference.body) / size < 1.3


def test_what_is_left_over_does_not_add_up() -> None:
    """Fifty releases with error feedback stay within one step of the exact model."""
    size, parts = 2000, [slice(0, 1500), slice(1500, 2000)]
    exact, sent, residual = np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size, np.int64)
    for number in range(50):
        mean = normal(number, size)
        exact += mean
        difference = encode_difference(mean + residual, parts, 2.0)
        decoded = decode_difference(difference, parts, size)
        residual = mean + residual - decoded
        sent += decoded
        assert np.array_equal(sent + residual, exact)
        for part, step in zip(parts, steps_of(difference), strict=True):
            assert np.abs(exact - sent)[part].max() <= step


@settings(max_examples=30, deadline=None)
@given(st.lists(seeds, min_size=1, max_size=6), seeds, st.integers(1, 500))
def test_a_chain_of_releases_gives_a_device_the_servers_bits(
    rounds: list[int], first: int, size: int
) -> None:
    parts = parts_of(size, size // 3)
    server = np.random.Generator(np.random.PCG64(first)).normal(size=size).astype(np.float32)
    device = server.copy()
    residual = np.zeros(size, np.int64)
    for seed in rounds:
        target = normal(seed, size) + residual
        difference = encode_difference(target, parts, 2.0)
        decoded = decode_difference(difference, parts, size)
        residual = target - decoded
        server = add_difference(server, decoded)
        device = release_adapter(release_of(server, device, difference), device, parts, size)
        assert adapter_bytes(device) == adapter_bytes(server)


def test_a_golden_release() -> None:
    """These bits are those of every machine and version; a change of them splits the fleet."""
    base = (np.arange(40, dtype=np.float32) - 20) / np.float32(7)
    target = (np.arange(40, dtype=np.int64) - 13) * 12_345_679
    parts = [slice(0, 30), slice(30, 40)]
    difference = encode_difference(target, parts, 1.5)
    adapter = add_difference(base, decode_difference(difference, parts, 40))
    assert difference.steps.hex() == GOLDEN_STEPS
    assert difference.body.hex() == GOLDEN_BODY
    assert adapter_sha256(adapter).hex() == GOLDEN_ADAPTER


GOLDEN_STEPS = "9b14c015"
GOLDEN_BODY = "100301800401e71001990b00003f000191d1d12814"
GOLDEN_ADAPTER = "ca678e74849826fd7741b9c1586d5c28647bd5ef04f927bd34b023cda01a6387"


def test_extreme_targets_at_the_finest_step() -> None:
    size = 300_000
    target = np.zeros(size, np.int64)
    target[0], target[1] = LARGEST, -LARGEST
    for ratio in (0.25, 16.0):
        decoded = decode_difference(
            encode_difference(target, [slice(0, size)], ratio), [slice(0, size)], size
        )
        assert np.abs(target - decoded).max() <= 5 << 32


def test_a_base_with_exotic_values_adds_as_ieee_says() -> None:
    base = np.array([0.0, -0.0, 1e-45, -1e-38, 3.4e38, 1.0, 16777216.0], np.float32)
    difference = np.array([0, 0, 1, -1, 1, 1, UNIT], np.int64)
    expected = [np.float32(np.float64(b) + d / UNIT) for b, d in zip(base, difference.tolist(), strict=True)]
    assert add_difference(base, difference).tobytes() == np.array(expected, np.float32).tobytes()


# Hostile bytes


def release_of(
    adapter: NDArray[np.float32], base: NDArray[np.float32] | None, difference: Difference | None = None
) -> Release:
    named = adapter_sha256(base)[:BASE_BYTES] if base is not None else b""
    body = difference.body if difference else encode_keyframe(adapter)
    steps = difference.steps if difference else b""
    return Release(1, b"p" * 32, named, adapter_sha256(adapter), body, steps=steps)


BASE = np.array([1.0, -2.0, 0.5, 0.25], np.float32)
PARTS = [slice(0, 3), slice(3, 4)]
CODED = encode_difference(np.array([UNIT, -UNIT, 5, UNIT // 3], np.int64), PARTS, 1.0)
NEXT = add_difference(BASE, decode_difference(CODED, PARTS, 4))


def test_a_difference_to_another_base_is_refused() -> None:
    release = release_of(NEXT, BASE, CODED)
    assert release_adapter(release, BASE, PARTS, 4).tobytes() == NEXT.tobytes()
    for other in (None, NEXT, BASE[:3], -BASE):
        with pytest.raises(ArtifactError, match="expected the base"):
            release_adapter(release, other, PARTS, 4)


def test_a_difference_that_gives_other_bits_is_refused() -> None:
    other = encode_difference(np.array([UNIT, -UNIT, 5, UNIT], np.int64), PARTS, 1.0)
    assert decode_difference(other, PARTS, 4).tolist() != decode_difference(CODED, PARTS, 4).tolist()
    with pytest.raises(ArtifactError, match="expected the adapter"):
        release_adapter(release_of(NEXT, BASE, other), BASE, PARTS, 4)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (CODED.steps[:2], "expected 2 steps, got 1"),
        (CODED.steps + b"\x01", "expected 2 steps, got 2.5"),
        (bytes([255, MAX_EXPONENT + 1]) + CODED.steps[2:], "step out of range"),
        (bytes([0, 0]) + CODED.steps[2:], "without a step"),
        (bytes([0, 3, 0, 0]), "without a step"),
    ],
)
def test_steps_that_do_not_fit_are_refused(steps: bytes, reason: str) -> None:
    with pytest.raises(EncodingError, match=reason):
        decode_difference(Difference(steps, CODED.body), PARTS, 4)


def test_a_value_that_would_overflow_is_refused() -> None:
    body = entropy_coding.encode(np.array([1 << 20, 0, 0, 0], np.int32))
    with pytest.raises(EncodingError, match="out of range"):
        decode_difference(Difference(bytes([255, MAX_EXPONENT, 0, 0]), body), PARTS, 4)


@settings(max_examples=300)
@given(st.binary(max_size=80), st.binary(max_size=6), st.integers(1, 5000))
def test_hostile_bytes_are_decoded_or_refused(body: bytes, steps: bytes, parameters: int) -> None:
    parts = [slice(0, parameters)]
    with contextlib.suppress(EncodingError):
        assert decode_difference(Difference(steps, body), parts, parameters).shape == (parameters,)
    with contextlib.suppress(ArtifactError):
        assert decode_keyframe(body, parameters).shape == (parameters,)


@settings(max_examples=100)
@given(st.integers(0, 200), st.integers(1, 255))
def test_a_flipped_bit_is_never_adopted(position: int, mask: int) -> None:
    release = release_of(NEXT, BASE, CODED)
    body = bytearray(release.body)
    body[position % len(body)] ^= mask
    changed = Release(1, b"p" * 32, release.base, release.adapter_sha256, bytes(body), steps=release.steps)
    with pytest.raises(ProtocolError):
        release_adapter(changed, BASE, PARTS, 4)


def test_a_small_message_cannot_ask_for_much_memory() -> None:
    bomb = zlib.compress(bytes(64 << 20), 9)
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match="expected a keyframe of 4 parameters"):
            decode_keyframe(bomb, 4)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=80)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=300))
def test_a_keyframe_restores_every_bit(values: list[float]) -> None:
    adapter = np.array(values, np.float32)
    data = encode_keyframe(adapter)
    assert decode_keyframe(data, adapter.size).tobytes() == adapter.tobytes()
    assert len(data) <= keyframe_limit(adapter.size)
    assert release_adapter(release_of(adapter, None), None, [], adapter.size).tobytes() == adapter.tobytes()


def test_a_keyframe_is_smaller_than_the_same_bytes_compressed() -> None:
    adapter = np.random.Generator(np.random.PCG64(5)).normal(size=9637).astype(np.float32) * np.float32(0.1)
    assert len(encode_keyframe(adapter)) < len(zlib.compress(adapter_bytes(adapter), 9))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "got 0 bytes"),
        (b"not zlib", "not readable"),
        (zlib.compress(bytes(12)), "got 12 bytes"),
        (zlib.compress(bytes(20)), "got 17 bytes"),
        (zlib.compress(bytes(16))[:-7], "got"),
    ],
)
def test_a_keyframe_of_another_size_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        release_adapter(Release(1, b"p" * 32, b"", hashlib.sha256(b"").digest(), data), None, PARTS, 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_adapter_that_is_not_finite_is_refused(value: float) -> None:
    adapter = np.array([1.0, value], np.float32)
    with pytest.raises(ArtifactError, match="NaN or infinite"):
        check_adapter(adapter, adapter_sha256(adapter))


def test_differences_are_exact_numbers() -> None:
    assert to_float(np.array([UNIT, -1, (1 << 40) - 1], np.int64)).tolist() == [
        1.0,
        -(2.0**-30),
        ((1 << 40) - 1) / UNIT,
    ]
