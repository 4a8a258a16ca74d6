"""The fleet's default: the sign of the mean gain, unless that is mere luck."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.evaluation import first_default, fleet_default, release_gain

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


# With a discriminant head

TASKS = ("classification", "discriminant")
HOPEFUL = [0.3, -0.2, 0.2, -0.2, 0.1, -0.1, 0.1, 0.1]
"""Too little to leave a default for, and enough to stay with one."""
COMBINED_GAINS = [0.3, 0.2, 0.4, 0.1, 0.2, 0.3, 0.2, 0.1]
CHOICES = ("combined", "discriminant", "ensemble", "local")


def headed(**more: list[float]) -> list[dict[str, float]]:
    """Reports of eight devices: all together helps, and what `more` names is better by so much."""
    return [
        {
            "holdout_windows": 8,
            "combined_gain": combined,
            **{f"{choice}_gain": combined + by[index] for choice, by in more.items()},
        }
        for index, combined in enumerate(COMBINED_GAINS)
    ]


@pytest.mark.parametrize(
    ("tasks", "first"),
    [
        (("classification",), "ensemble"),
        (("classification", "anomaly"), "ensemble"),
        (TASKS, "combined"),
        ((*TASKS, "anomaly"), "combined"),
    ],
)
def test_a_package_begins_with_the_largest_ensemble_that_it_has(tasks: tuple[str, ...], first: str) -> None:
    assert first_default(tasks) == first
    assert fleet_default([], first, tasks) == first


@pytest.mark.parametrize("held", [*CHOICES, "personal", ""])
def test_without_reports_a_fleet_with_a_head_uses_all_together(held: str) -> None:
    assert fleet_default([], held, TASKS) == "combined"
    assert fleet_default(headed(), held, TASKS) == "combined"


@pytest.mark.parametrize("choice", ["discriminant", "ensemble"])
@pytest.mark.parametrize("held", CHOICES)
def test_clear_evidence_against_the_combined_one_decides_and_is_taken_back(choice: str, held: str) -> None:
    better = headed(**{choice: BETTER})
    assert fleet_default(better, held, TASKS) == choice
    assert fleet_default(headed(**{choice: [-gain for gain in BETTER]}), choice, TASKS) == "combined"


@pytest.mark.parametrize("held", CHOICES)
def test_a_fleet_that_everything_hurts_trains_alone_and_comes_back(held: str) -> None:
    hurt = [{"holdout_windows": 8, "combined_gain": -gain} for gain in COMBINED_GAINS]
    both = [{**report, "discriminant_gain": -0.5, "ensemble_gain": -0.5} for report in hurt]
    assert fleet_default(both, held, TASKS) == "local"
    assert fleet_default(headed(ensemble=[-0.05] * 8), "local", TASKS) == "combined"


@pytest.mark.parametrize("choice", ["discriminant", "ensemble"])
def test_what_is_held_stays_where_the_evidence_is_weak_but_points_its_way(choice: str) -> None:
    hopeful = headed(**{choice: HOPEFUL})
    assert fleet_default(hopeful, choice, TASKS) == choice
    assert fleet_default(hopeful, "combined", TASKS) == "combined"
    for gains in (UNCLEAR, [-gain for gain in HOPEFUL]):
        assert fleet_default(headed(**{choice: gains}), choice, TASKS) == "combined"


def test_of_two_that_beat_the_combined_one_the_better_is_taken() -> None:
    both = headed(discriminant=BETTER, ensemble=[gain + 0.1 for gain in BETTER])
    assert fleet_default(both, "combined", TASKS) == "ensemble"
    both = headed(discriminant=[gain + 0.1 for gain in BETTER], ensemble=BETTER)
    assert fleet_default(both, "combined", TASKS) == "discriminant"


@pytest.mark.parametrize("choice", ["discriminant", "ensemble"])
def test_one_device_that_boasts_of_a_choice_does_not_win_the_fleet(choice: str) -> None:
    boasting = headed(**{choice: [1e9, *[-0.1] * 7]})
    assert fleet_default(boasting, "combined", TASKS) == "combined"


@pytest.mark.parametrize("choice", ["discriminant", "ensemble"])
def test_devices_without_held_out_windows_have_no_say_in_a_head_either(choice: str) -> None:
    silent = [{**report, "holdout_windows": 0} for report in headed(**{choice: BETTER})]
    assert fleet_default(silent, "combined", TASKS) == "combined"


def test_devices_of_a_version_without_the_head_do_not_vote_it_out() -> None:
    older = [{"holdout_windows": 8, "ensemble_gain": gain} for gain in UNCLEAR]
    assert fleet_default(older, "combined", TASKS) == "combined"
    # A package without the head does not ask for it.
    boasting = [{"holdout_windows": 8, "combined_gain": 2.0, "discriminant_gain": 2.0}] * 8
    assert fleet_default(boasting, "ensemble", ("classification", "anomaly")) == "ensemble"
    assert fleet_default(boasting, "local", ("classification",)) == "local"


gains = st.lists(st.tuples(*[st.floats(-5, 5)] * 3), max_size=20)


@given(gains, st.sampled_from(CHOICES))
def test_the_combined_one_is_never_left_for_one_that_is_worse_on_the_mean(
    found: list[tuple[float, float, float]], held: str
) -> None:
    names = ("combined", "discriminant", "ensemble")
    votes = [
        {"holdout_windows": 8, **{f"{name}_gain": gain for name, gain in zip(names, row, strict=True)}}
        for row in found
    ]
    chosen = fleet_default(votes, held, TASKS)
    assert chosen in CHOICES
    if chosen != "combined":
        of = {name: np.clip([vote.get(f"{name}_gain", 0.0) for vote in votes], -4, 4) for name in CHOICES}
        assert of[chosen].mean() > of["combined"].mean()


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
