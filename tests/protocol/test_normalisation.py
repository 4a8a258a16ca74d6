"""Statistics of a device's windows: right however they come in, and without a trace of gain and offset."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from protocol.input_schema import DEVICE, DEVICE_MEAN
from protocol.normalisation import OUTLIER, Moments, Statistics

windows = arrays.arrays(
    np.float32,
    st.tuples(st.integers(2, 12), st.integers(1, 3), st.integers(1, 5)),
    elements=st.integers(-1000, 1000).map(float),
)


def statistics(*parts: NDArray[np.float32], normalisation: str = DEVICE) -> Statistics:
    moments = Moments()
    for part in parts:
        moments.add(part)
    found = moments.statistics(normalisation)
    assert found is not None
    return found


@given(windows, st.data())
def test_windows_may_come_in_any_parts(x: NDArray[np.float32], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=3)))
    found = statistics(*np.split(x, cuts))
    assert found.windows == len(x)
    assert found.mean == pytest.approx(x.mean((0, 2), np.float64).tolist(), abs=1e-9)
    deviation = x.std((0, 2), np.float64)
    expected = np.where(deviation > 1e-6 * np.abs(x.mean((0, 2), np.float64)), deviation, 1.0)
    assert found.deviation == pytest.approx(expected.tolist(), rel=1e-9)


@given(windows)
def test_normalised_windows_have_mean_0_and_deviation_1(x: NDArray[np.float32]) -> None:
    out = statistics(x).standardise(x)
    assert out.dtype == np.float32
    assert out.mean((0, 2)) == pytest.approx(np.zeros(x.shape[1]), abs=1e-5)
    constant = x.min((0, 2)) == x.max((0, 2))
    assert out.std((0, 2))[~constant] == pytest.approx(1, rel=1e-4)
    assert not out[:, constant].any()


@given(windows, st.integers(-6, 6), st.integers(-4096, 4096))
def test_gain_and_offset_of_a_sensor_leave_no_trace(
    x: NDArray[np.float32], exponent: int, offset: int
) -> None:
    """Not one bit of the normalised windows tells which gain and offset the sensor had."""
    # Sums of these numbers are exact only for a power of two of windows and rows.
    x = np.resize(x, (8, x.shape[1], 4)).astype(np.float32)
    other = (x * 2.0**exponent + offset).astype(np.float32)
    normalised = statistics(x).standardise(x)
    assert statistics(other).standardise(other).tobytes() == normalised.tobytes()


def test_a_small_deviation_on_a_large_mean_keeps_its_digits() -> None:
    random = np.random.Generator(np.random.PCG64(0))
    x = (101_325 + random.normal(0, 2.0, (500, 1, 20))).astype(np.float32)
    found = statistics(*np.array_split(x, 7))
    assert found.deviation[0] == pytest.approx(x.std(dtype=np.float64), rel=1e-9)


def test_rounding_of_a_constant_channel_is_not_blown_up() -> None:
    x = np.full((4, 1, 8), 101_325.1, np.float32)
    x[0, 0, 0] = np.nextafter(x[0, 0, 0], np.float32(0))
    found = statistics(x)
    assert found.deviation == (1.0,)
    assert np.abs(found.standardise(x)).max() < 0.01


def test_a_glitch_stays_finite() -> None:
    quiet = statistics(np.array([[[0.0, 1e-30]]], np.float32))
    out = quiet.standardise(np.array([[[3.4e38, -3.4e38]]], np.float32))
    assert out.tolist() == [[[OUTLIER, -OUTLIER]]]


@given(windows, st.integers(-4096, 4096))
def test_by_the_mean_alone_the_gain_stays(x: NDArray[np.float32], offset: int) -> None:
    x = np.resize(x, (8, x.shape[1], 4)).astype(np.float32)
    found = statistics(x, normalisation=DEVICE_MEAN)
    assert found.deviation is None
    other = statistics(x + np.float32(offset), normalisation=DEVICE_MEAN)
    normalised = found.standardise(x)
    assert other.standardise(x + np.float32(offset)).tobytes() == normalised.tobytes()
    assert normalised == pytest.approx(x - x.mean((0, 2), np.float64)[:, None], abs=1e-3)


def test_by_the_mean_alone_a_value_stays_within_float32() -> None:
    low = statistics(np.full((1, 1, 2), -3.4e38, np.float32), normalisation=DEVICE_MEAN)
    assert np.isfinite(low.standardise(np.full((1, 1, 2), 3.4e38, np.float32))).all()


def test_without_windows_there_are_no_statistics() -> None:
    moments = Moments()
    moments.add(np.zeros((0, 2, 4), np.float32))
    assert moments.statistics(DEVICE) is None


def test_other_statistics_have_another_name() -> None:
    first = Statistics(4, (1.0,), (2.0,))
    assert first.name == Statistics(8, (1.0,), (2.0,)).name
    others = {Statistics(4, (1.5,), (2.0,)), Statistics(4, (1.0,), (2.5,)), Statistics(4, (1.0,))}
    assert len({other.name for other in others} | {first.name}) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"windows": 0},
        {"mean": (float("nan"),)},
        {"deviation": (0.0,)},
        {"deviation": (-1.0,)},
        {"deviation": (float("inf"),)},
        {"deviation": (1.0, 1.0)},
    ],
)
def test_statistics_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Statistics(**(asdict(Statistics(4, (1.0,), (2.0,))) | change))
