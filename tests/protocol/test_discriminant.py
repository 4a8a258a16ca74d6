"""The discriminant head: what is written is read, what does not fit is refused, and no value is dangerous."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from protocol.discriminant import (
    BETWEEN,
    LARGEST_BETWEEN,
    MAX_DIMENSION,
    MEANS,
    MOST_ROUNDS,
    ROUNDS,
    SEGMENTS,
    WITHIN,
    Statistics,
    check_sizes,
    classes_of,
    dimension_of,
    sizes,
)

dimensions, classes = st.integers(1, 12), st.integers(1, 6)


def statistics(seed: int, dimension: int, count: int) -> Statistics:
    random = np.random.Generator(np.random.PCG64(seed))
    roots = random.normal(size=(dimension, dimension))
    return Statistics(
        roots @ roots.T,
        random.normal(size=(count, dimension)),
        random.uniform(0, LARGEST_BETWEEN, count),
        float(random.uniform(0, LARGEST_BETWEEN)),
        float(random.integers(0, 50)),
    )


@given(st.integers(0, 1 << 32), dimensions, classes)
def test_a_head_is_read_as_it_was_written(seed: int, dimension: int, count: int) -> None:
    written = statistics(seed, dimension, count)
    head = written.head()
    assert head.dtype == np.float32
    assert head.shape == (sum(sizes(dimension, count).values()),)
    found = Statistics.of(head, dimension)
    np.testing.assert_allclose(found.within, written.within, rtol=1e-6)
    np.testing.assert_array_equal(found.within, found.within.T)
    np.testing.assert_allclose(found.means, written.means, rtol=1e-6)
    np.testing.assert_allclose(found.between, written.between, rtol=1e-6)
    assert found.shared == pytest.approx(written.shared, rel=1e-6)
    assert found.rounds == pytest.approx(written.rounds, rel=1e-6)
    # Once it was rounded, nothing of it changes any more, but for the last bit of a product and a quotient.
    np.testing.assert_allclose(found.head(), head, rtol=1e-6)


def test_each_statistic_stands_in_the_segment_that_is_named_for_it() -> None:
    whole = Statistics(
        np.array([[1.0, 2.0], [2.0, 3.0]]),
        np.array([[4.0, 5.0], [6.0, 7.0], [8.0, 9.0]]),
        np.array([1.0, 2.0, 3.0]),
        4.0,
        5.0,
    ).head()
    parts, start = {}, 0
    for name, size in sizes(2, 3).items():
        parts[name] = (2 * whole[start : start + size]).tolist()  # all are divided by the dimension
        start += size
    assert tuple(parts) == SEGMENTS
    assert sum(map(len, parts.values())) == len(whole)
    assert parts == {
        WITHIN: [1.0, 2.0, 3.0],
        MEANS: [4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
        BETWEEN: [1.0, 2.0, 3.0, 4.0],  # that which all classes have in common comes last
        ROUNDS: [5.0],
    }


@given(dimensions, classes)
def test_the_number_of_classes_follows_from_size_and_dimension(dimension: int, count: int) -> None:
    found = sizes(dimension, count)
    parameters = sum(found.values())
    assert classes_of(parameters, dimension) == count
    assert dimension_of(slice(7, 7 + found[WITHIN])) == dimension
    check_sizes(found, count)
    for wrong in range(1, dimension + 1):
        with pytest.raises(ValueError, match=f"a discriminant head of dimension {dimension}, got"):
            classes_of(parameters + wrong, dimension)


@pytest.mark.parametrize("parameters", [-5, 0, 1, 6, 7, 10])
def test_a_head_without_any_class_is_refused(parameters: int) -> None:
    with pytest.raises(ValueError, match="expected a discriminant head of dimension 3"):
        classes_of(parameters, 3)


@given(dimensions, classes, st.sampled_from(SEGMENTS), st.sampled_from([-1, 1]))
def test_sizes_that_do_not_fit_together_are_refused(
    dimension: int, count: int, name: str, change: int
) -> None:
    found = sizes(dimension, count)
    with pytest.raises(ValueError, match=f"segments: expected .* head of {count} classes"):
        check_sizes({**found, name: found[name] + change}, count)


@given(dimensions, classes)
def test_sizes_of_another_number_of_classes_are_refused(dimension: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"of {count + 1} classes and up to 1024 dimensions, got"):
        check_sizes(sizes(dimension, count), count + 1)


@pytest.mark.parametrize("dimension", [0, MAX_DIMENSION + 1])
def test_a_head_of_a_dimension_out_of_range_is_refused(dimension: int) -> None:
    check_sizes(sizes(MAX_DIMENSION, 2), 2)
    with pytest.raises(ValueError, match="up to 1024 dimensions"):
        check_sizes(sizes(dimension, 2), 2)


@given(
    st.tuples(dimensions, classes).flatmap(
        lambda both: st.tuples(
            st.just(both[0]),
            arrays.arrays(
                np.float32,
                sum(sizes(*both).values()),
                elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
            ),
        )
    )
)
def test_a_hostile_head_is_read_as_something_finite(case: tuple[int, np.ndarray]) -> None:
    dimension, head = case
    found = Statistics.of(head, dimension)
    for values in (found.within, found.means, found.between):
        assert np.isfinite(values).all()
    np.testing.assert_array_equal(found.within, found.within.T)
    assert (found.between >= 0).all()
    assert (found.between <= LARGEST_BETWEEN).all()
    assert 0 <= found.shared <= LARGEST_BETWEEN
    assert 0 <= found.rounds <= MOST_ROUNDS


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_counts_as_zero_and_spoils_nothing_else(value: float) -> None:
    head = statistics(0, 4, 3).head()
    expected = Statistics.of(head, 4)
    head[0] = head[10] = value
    found = Statistics.of(head, 4)
    assert (found.within[0, 0], found.means[0, 0]) == (0, 0)
    np.testing.assert_array_equal(found.within[1:], expected.within[1:])
    np.testing.assert_array_equal(found.means[:, 1:], expected.means[:, 1:])
    np.testing.assert_array_equal(found.between, expected.between)


def test_a_head_that_is_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a discriminant head of dimension 4"):
        Statistics.of(statistics(0, 4, 3).head()[:-1], 4)
