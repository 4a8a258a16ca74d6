"""The fleet's default: the sign of the mean gain, unless that is mere luck."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.evaluation import fleet_default, release_gain

BETTER = [0.4, 0.2, 0.6, -0.3, 0.1, -0.1, 0.4, 0.2]
UNCLEAR = [0.1, -0.1, 0.2, -0.3, 0.1, -0.2, 0.1, 0.2]


def reports(gains: list[float], holdout: int = 8) -> list[dict[str, float]]:
    return [{"ensemble_gain": gain, "holdout_windows": holdout} for gain in gains]


def test_a_fleet_without_reports_trains_alone() -> None:
    assert fleet_default([], "local") == "local"


@pytest.mark.parametrize("held", ["local", "ensemble"])
def test_clear_evidence_either_way_decides(held: str) -> None:
    assert fleet_default(reports(BETTER), held) == "ensemble"
    assert fleet_default(reports([-gain for gain in BETTER]), held) == "local"


@pytest.mark.parametrize("held", ["local", "ensemble"])
@pytest.mark.parametrize("sign", [1, -1])
def test_gains_around_zero_do_not_switch_the_fleet_back_and_forth(held: str, sign: int) -> None:
    assert fleet_default(reports([sign * gain for gain in UNCLEAR]), held) == held


def test_three_devices_that_agree_are_enough() -> None:
    assert fleet_default(reports([0.1, 0.2, 0.1]), "local") == "ensemble"
    assert fleet_default(reports([-0.1, -0.2, -0.1]), "ensemble") == "local"


@pytest.mark.parametrize("held", ["local", "ensemble"])
def test_devices_without_held_out_windows_have_no_say(held: str) -> None:
    opposite = [-gain if held == "ensemble" else gain for gain in BETTER]
    assert fleet_default(reports(opposite, holdout=0), held) == held


def test_one_device_that_boasts_does_not_win_the_fleet() -> None:
    assert fleet_default(reports([1e9, *[-0.1] * 7]), "local") == "local"
    assert fleet_default(reports([-1e9, *[0.1] * 7]), "ensemble") == "ensemble"


@pytest.mark.parametrize("held", ["mixed", "personal", ""])
def test_a_default_of_an_earlier_version_counts_as_alone(held: str) -> None:
    assert fleet_default(reports(UNCLEAR), held) == "local"
    assert (
        fleet_default([{"personal_gain": 1.0, "mixed_gain": 1.0, "holdout_windows": 8}] * 9, held) == "local"
    )
    assert fleet_default(reports(BETTER), held) == "ensemble"


@given(st.lists(st.floats(-5, 5), max_size=40), st.sampled_from(["local", "ensemble"]))
def test_a_default_is_never_left_for_one_that_is_worse_on_the_mean(gains: list[float], held: str) -> None:
    chosen = fleet_default(reports(gains), held)
    if chosen != held:
        mean = np.clip(gains, -4, 4).mean()
        assert mean > 0 if chosen == "ensemble" else mean < 0


def compared(gains: list[float], release: int = 4, windows: int = 5) -> list[dict[str, object]]:
    return [
        {"holdout_windows": windows, "release_gain": gain, "compared_with": release - 1} for gain in gains
    ]


def test_what_a_release_brought_is_the_mean_of_those_who_compared_it() -> None:
    assert release_gain(compared([0.1, 0.3]), 4) == {"release_gain": pytest.approx(0.2)}
    older, blind = compared([9.0], release=3), compared([9.0], windows=0)
    assert release_gain([*compared([0.1]), *older, *blind], 4) == {"release_gain": pytest.approx(0.1)}
    assert release_gain([], 4) == release_gain(compared([0.1], release=0), 0) == {}


def test_devices_that_lie_about_a_release_do_not_move_its_gain_far() -> None:
    honest = [0.01] * 14
    for lie in (1e3, -1e3):
        assert release_gain(compared([*honest, lie, lie]), 4) == {"release_gain": pytest.approx(0.01)}
