"""Estimators of transfer: values by hand, what holds for any input, and which source they prefer."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.transferability import (
    Gaussian,
    frechet,
    gaussian,
    head_loss,
    leep,
    maximum_mean_discrepancy,
    softmax,
    unsureness,
)

SEEDS = st.integers(0, 1 << 32)


def random_of(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def test_leep_by_hand() -> None:
    shares = np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]])
    labels = np.array([0, 0, 1])
    # Joint of (label, source class) times 3: [[1.4, .6], [.1, .9]]; so P(0|.) is 1.4/1.5 and .6/1.5.
    expected = [
        1.4 / 1.5 * 0.8 + 0.6 / 1.5 * 0.2,
        1.4 / 1.5 * 0.6 + 0.6 / 1.5 * 0.4,
        0.1 / 1.5 * 0.1 + 0.9 / 1.5 * 0.9,
    ]
    assert leep(np.log(shares), labels) == pytest.approx(float(np.mean(np.log(expected))))


def test_leep_reads_a_head_whose_classes_have_other_names() -> None:
    random = random_of(0)
    labels = random.integers(0, 3, 60)
    logits = 8.0 * np.eye(3)[labels]
    assert leep(logits, labels) > -0.01
    assert leep(logits[:, [2, 0, 1]], labels) == pytest.approx(leep(logits, labels))
    assert head_loss(logits[:, [2, 0, 1]], labels) > 5
    assert leep(random.normal(size=(60, 3)), labels) < leep(logits, labels) - 0.5


def test_head_loss_by_hand() -> None:
    shares = np.array([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]])
    labels = np.array([0, 0, 1])
    of_zero = (math.log(2) + math.log(4)) / 2
    assert head_loss(np.log(shares), labels) == pytest.approx((of_zero + math.log(10)) / 2)


def test_unsureness_by_hand() -> None:
    shares = np.array([[0.5, 0.5], [1.0, 0.0]])
    assert unsureness(np.log(shares + 1e-300)) == pytest.approx(math.log(2) / 2)


@given(SEEDS, st.integers(1, 30), st.integers(2, 6))
def test_what_heads_say_is_bounded_and_does_not_depend_on_an_offset(
    seed: int, count: int, classes: int
) -> None:
    random = random_of(seed)
    logits, labels = random.normal(0, 5, (count, classes)), random.integers(0, classes, count)
    shift = random.normal(0, 100, (count, 1))
    assert softmax(logits).sum(1) == pytest.approx(np.ones(count))
    assert leep(logits, labels) <= 1e-12
    assert head_loss(logits, labels) >= 0
    assert 0 <= unsureness(logits) <= math.log(classes) + 1e-12
    for estimate in (leep, head_loss):
        assert estimate(logits + shift, labels) == pytest.approx(estimate(logits, labels), abs=1e-8)


def test_discrepancy_by_hand() -> None:
    # Points 0 and 1 against 2: the squared distances 1, 4, 1 have the median 1.
    one, other = np.array([[0.0], [1.0]]), np.array([[2.0]])
    near, far = math.exp(-1), math.exp(-4)
    expected = (2 + 2 * near) / 4 + 1 - 2 * (far + near) / 2
    assert maximum_mean_discrepancy(one, other) == pytest.approx(expected)


def test_frechet_by_hand() -> None:
    one = Gaussian(np.array([0.0, 1.0]), np.diag([4.0, 1.0]))
    other = Gaussian(np.array([3.0, 5.0]), np.diag([9.0, 1.0]))
    assert frechet(one, other) == pytest.approx(25 + (2 - 3) ** 2)
    diagonal = [Gaussian(g.mean, np.diag(g.covariance)) for g in (one, other)]
    assert frechet(*diagonal) == pytest.approx(26)
    # Matrices that do not share their axes: tr((AB)^1/2) from the eigenvalues of AB themselves.
    a, b = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 3.0]])
    roots = np.sqrt(np.linalg.eigvals(a @ b)).sum()
    zero = np.zeros(2)
    assert frechet(Gaussian(zero, a), Gaussian(zero, b)) == pytest.approx(4 + 4 - 2 * roots)


@given(SEEDS, st.integers(1, 12), st.integers(1, 12), st.integers(1, 5))
def test_distances_are_symmetric_never_negative_and_zero_on_themselves(
    seed: int, first: int, second: int, size: int
) -> None:
    random = random_of(seed)
    one, other = random.normal(0, 2, (first, size)), random.normal(1, 1, (second, size))
    assert maximum_mean_discrepancy(one, one) == pytest.approx(0, abs=1e-9)
    found = maximum_mean_discrepancy(one, other)
    assert 0 <= found <= 2
    assert maximum_mean_discrepancy(other, one) == pytest.approx(found)
    for diagonal in (False, True):
        a, b = (gaussian(features, diagonal=diagonal) for features in (one, other))
        assert frechet(a, a) == pytest.approx(0, abs=1e-6)
        assert frechet(a, b) >= 0
        assert frechet(b, a) == pytest.approx(frechet(a, b), abs=1e-6)


def test_the_nearer_domain_is_found_without_any_label() -> None:
    random = random_of(3)
    here = random.normal(0, 1, (80, 6))
    near, far = random.normal(0.2, 1, (80, 6)), random.normal(1.5, 1.3, (80, 6))
    assert maximum_mean_discrepancy(here, near) < maximum_mean_discrepancy(here, far)
    for diagonal in (False, True):
        a, b, c = (gaussian(features, diagonal=diagonal) for features in (here, near, far))
        assert frechet(a, b) < frechet(a, c)
