"""The weighted mean: the same bits in every order and split, and no overflow anywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.quantisation import VALUE_BITS, to_float
from server.aggregation import MAX_TOTAL_WEIGHT, WeightedMean, bound_norm
from server.errors import ServerError

SIZE = 5
LARGEST = (1 << VALUE_BITS) - 1
UNIT = 1 << 30
vectors = st.lists(
    st.integers(-LARGEST, LARGEST) | st.integers(-UNIT, UNIT), min_size=SIZE, max_size=SIZE
).map(lambda values: np.array(values, np.int64))
updates = st.lists(st.tuples(vectors, st.integers(1, 1 << 16)), min_size=1, max_size=12)


def mean_of(parts: list[tuple[NDArray[np.int64], int]]) -> WeightedMean:
    mean = WeightedMean(SIZE)
    for vector, weight in parts:
        mean.add(vector, weight)
    return mean


@given(updates, st.randoms())
def test_the_order_of_arrival_changes_no_bit(
    parts: list[tuple[NDArray[np.int64], int]], random: object
) -> None:
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert mean_of(parts).mean().tobytes() == mean_of(shuffled).mean().tobytes()


@given(updates, st.data())
def test_any_split_over_workers_changes_no_bit(
    parts: list[tuple[NDArray[np.int64], int]], data: st.DataObject
) -> None:
    worker = data.draw(st.lists(st.integers(0, 2), min_size=len(parts), max_size=len(parts)))
    merged = WeightedMean(SIZE)
    for name in range(3):
        merged.merge(mean_of([part for part, of in zip(parts, worker, strict=True) if of == name]))
    whole = mean_of(parts)
    assert (merged.weight, merged.updates) == (whole.weight, whole.updates)
    assert merged.mean().tobytes() == whole.mean().tobytes()


@given(vectors, st.lists(st.integers(1, 1 << 16), min_size=1, max_size=9))
def test_the_mean_of_equal_updates_is_the_update(vector: NDArray[np.int64], weights: list[int]) -> None:
    mean = mean_of([(vector, weight) for weight in weights])
    assert np.array_equal(mean.mean(), vector)


@given(updates)
def test_the_mean_is_within_the_updates(parts: list[tuple[NDArray[np.int64], int]]) -> None:
    mean = mean_of(parts)
    exact = [
        sum(int(vector[i]) * weight for vector, weight in parts) // mean.weight for i in range(SIZE)
    ]  # in Python's unbounded integers
    assert mean.mean().tolist() == exact


def test_extreme_values_at_the_full_weight_do_not_overflow() -> None:
    for value in (LARGEST, -LARGEST):
        vector = np.full(SIZE, value, np.int64)
        mean = WeightedMean(SIZE)
        left = MAX_TOTAL_WEIGHT
        while left:
            weight = min(1 << 24, left)
            mean.add(vector, weight)
            left -= weight
        assert np.array_equal(mean.mean(), vector)


def test_more_weight_than_can_be_summed_is_refused_and_changes_nothing() -> None:
    mean = mean_of([(np.ones(SIZE, np.int64), MAX_TOTAL_WEIGHT - 1)])
    before = mean.total.copy()
    with pytest.raises(ServerError, match=f"exceed {MAX_TOTAL_WEIGHT}"):
        mean.add(np.ones(SIZE, np.int64), 2)
    with pytest.raises(ServerError, match=f"exceed {MAX_TOTAL_WEIGHT}"):
        mean.merge(mean_of([(np.ones(SIZE, np.int64), 2)]))
    assert np.array_equal(mean.total, before)
    mean.add(np.ones(SIZE, np.int64), 1)
    assert (mean.weight, mean.updates) == (MAX_TOTAL_WEIGHT, 2)


def test_without_updates_the_mean_is_zero() -> None:
    assert WeightedMean(SIZE).mean().tolist() == [0] * SIZE


def norm(vector: NDArray[np.int64]) -> float:
    return float(np.linalg.norm(to_float(vector)))


@settings(max_examples=200)
@given(vectors, st.floats(0.01, 60.0))
def test_no_update_is_longer_than_the_bound(vector: NDArray[np.int64], bound: float) -> None:
    bounded = bound_norm(vector, bound)
    # A value loses at most 2**-16 before the norm is taken, and one unit when it is scaled.
    rounding = np.sqrt(SIZE) * (2.0**-16 + 2.0**-30)
    assert norm(bounded) <= bound + rounding
    if norm(vector) <= bound:
        assert bounded is vector or np.array_equal(bounded, vector) or norm(vector) > bound - 2 * rounding
    assert (np.sign(bounded) * np.sign(vector) >= 0).all()


@given(vectors)
def test_a_scaled_update_keeps_its_direction(vector: NDArray[np.int64]) -> None:
    if norm(vector) > 2.0:
        bounded = bound_norm(vector, 1.0)
        cosine = float(to_float(bounded) @ to_float(vector)) / (norm(bounded) * norm(vector))
        assert cosine > 0.999
        assert norm(bounded) > 0.99


def test_a_short_update_is_left_untouched() -> None:
    vector = np.array([UNIT, -UNIT, 0, 1, -1], np.int64)
    assert bound_norm(vector, 1.5) is vector


def test_the_largest_update_of_the_largest_adapter_does_not_overflow() -> None:
    vector = np.full(4_000_000, LARGEST, np.int64)
    bounded = bound_norm(vector, 1000.0)
    assert 900.0 < norm(bounded) <= 1000.0
