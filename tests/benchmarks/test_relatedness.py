"""The figures of the relatedness benchmark, by hand."""

import numpy as np
import pytest

from benchmarks.relatedness import adjusted_rand, points_lost, rank_correlation, ranks


def test_equal_values_share_their_rank() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]


def test_rank_correlation_looks_at_the_sources_of_each_device_and_not_at_itself() -> None:
    truth = np.array([[9.0, 1, 2], [1, 9.0, 3], [2, 2, 9.0]])
    assert rank_correlation(10 * truth, truth) == pytest.approx(1)
    assert rank_correlation(-truth, truth) == pytest.approx(-1)
    # A device whose sources are all alike says nothing; that of the others is 1 and -1.
    truth[:, 0] = 5
    mixed = truth.copy()
    mixed[[0, 1], 2] = mixed[[1, 0], 2]
    assert rank_correlation(mixed, truth) == pytest.approx(0)


def test_points_lost_is_what_the_wrong_choice_costs() -> None:
    accuracy = np.array([[1.0, 0.9, 0.5], [0.8, 1.0, 0.7], [0.6, 0.4, 1.0]])
    assert points_lost(accuracy, accuracy) == 0
    assert points_lost(-accuracy, accuracy) == pytest.approx((0.2 + 0.5 + 0.2) / 3)


def test_groups_agree_whatever_they_are_called() -> None:
    assert adjusted_rand([0, 0, 1, 1], ["b", "b", "a", "a"]) == 1
    assert adjusted_rand([0, 0, 0, 0], ["a", "a", "b", "b"]) == 0  # one group says nothing
    # By hand: pairs together in both 1, in the first 2, in the second 3 of 10 pairs.
    assert adjusted_rand([0, 0, 1, 1, 2], [0, 0, 0, 1, 2]) == pytest.approx((1 - 0.6) / (2.5 - 0.6))
