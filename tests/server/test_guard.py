"""When a release is withdrawn: enough devices, enough of them, enough harm, and never by luck or by a few."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.charter import WithdrawalPolicy
from server.guard import Evidence, at_least, judge


def reports(gains: list[float], *, holdout: int = 8, compared_with: int = 4) -> dict[str, dict[str, float]]:
    return {
        f"d{index}": {"release_gain": gain, "holdout_windows": holdout, "compared_with": compared_with}
        for index, gain in enumerate(gains)
    }


def judged(gains: list[float], **policy: float) -> Evidence:
    return judge(reports(gains), 5, WithdrawalPolicy(**policy))  # type: ignore[arg-type]


def test_a_release_that_is_worse_for_nearly_all_is_withdrawn() -> None:
    found = judged([-0.4, -0.8, -0.3, -0.6, -0.5, -0.9, -0.2, 0.1, -0.7, -0.4], share=0.5)
    assert found.withdraw
    assert (found.worse, len(found.gains)) == (9, 10)
    assert found.share_chance == pytest.approx(11 / 1024)
    assert "worse for 9 of 10 devices" in found.reason
    assert "held-out loss +0.470 on the mean" in found.reason


def test_five_devices_with_unlucky_windows_withdraw_nothing() -> None:
    for policy in ({}, {"share": 0.0, "minimum_devices": 1, "tolerance": 0.0}):
        assert not judged([-4.0] * 5, **policy).withdraw
    assert judged([-4.0] * 6, share=0.1).withdraw


def test_a_release_that_is_worse_for_half_is_the_charters_share_and_stays() -> None:
    assert not judged([-0.5] * 10 + [0.1] * 10, share=0.5).withdraw
    assert judged([-0.5] * 10 + [0.1] * 10, share=0.2).withdraw
    assert not judged([-0.5] * 20, share=1.0).withdraw


def test_harm_within_the_tolerance_is_no_harm() -> None:
    gains = [-0.04] * 20
    assert not judged(gains).withdraw
    assert judged(gains, tolerance=0.01).withdraw


def test_a_minority_that_lies_withdraws_nothing_whatever_it_claims() -> None:
    assert not judged([-1e3] * 8 + [0.02] * 12).withdraw
    # Nor do lies keep a release that is worse for all others.
    assert judged([1e3] + [-0.6] * 19).withdraw


def test_most_devices_a_little_worse_and_a_few_much_better_is_no_withdrawal() -> None:
    assert not judged([-0.06] * 14 + [3.0] * 4).withdraw


def test_devices_that_cannot_compare_have_no_say() -> None:
    bad = [-1.0] * 20
    assert judge(reports(bad), 5, WithdrawalPolicy()).withdraw
    for mute in (reports(bad, holdout=0), reports(bad, compared_with=3), reports(bad, compared_with=-1), {}):
        found = judge(mute, 5, WithdrawalPolicy())
        assert (found.withdraw, len(found.gains)) == (False, 0)
    # An agent of the version before says nothing of it.
    old = {name: {"holdout_windows": 8, "personal_gain": 0.2} for name in reports(bad)}
    assert not judge(old, 5, WithdrawalPolicy()).gains


@given(st.integers(0, 1 << 32))
def test_a_release_that_is_as_good_as_the_one_before_hardly_ever_goes(seed: int) -> None:
    random = np.random.Generator(np.random.PCG64(seed))
    rounds = [judged(list(random.normal(0, 0.5, 15)), tolerance=0.0, share=0.5) for _ in range(10)]
    assert sum(found.withdraw for found in rounds) <= 3


@pytest.mark.parametrize(
    ("successes", "trials", "share"), [(3, 8, 0.25), (8, 8, 0.5), (1, 5, 0.1), (0, 4, 0.3)]
)
def test_the_chance_of_so_many_is_that_of_the_binomial_law(successes: int, trials: int, share: float) -> None:
    exact = sum(
        math.comb(trials, count) * share**count * (1 - share) ** (trials - count)
        for count in range(successes, trials + 1)
    )
    assert at_least(successes, trials, share) == pytest.approx(exact)


def test_the_chance_of_so_many_holds_for_large_fleets() -> None:
    assert at_least(50_500, 100_000, 0.5) == pytest.approx(0.000788, rel=0.01)
    assert at_least(1, 10, 0.0) == 0.0
    assert at_least(10, 10, 1.0) == 1.0
