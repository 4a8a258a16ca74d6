"""The fleet's default: won by evidence, and kept until there is doubt."""

import pytest

from server.evaluation import fleet_default

STRONG = [0.4, 0.2, 0.6, 0.3, 0.6, -0.1, 0.4, 0.6]
FAIR = [0.6, 0.4, 0.0, 0.4, -0.4, 0.1, 0.6, -0.3]
NONE = [0.1, -0.1, 0.2, -0.3, 0.1, -0.2, 0.1, 0.0]


def reports(gains: list[float], holdout: int = 8) -> list[dict[str, float]]:
    return [{"personal_gain": gain, "holdout_windows": holdout} for gain in gains]


@pytest.mark.parametrize("held", ["local", "personal"])
def test_clear_evidence_either_way_decides(held: str) -> None:
    assert fleet_default(reports(STRONG), held) == "personal"
    assert fleet_default(reports(NONE), held) == "local"
    assert fleet_default(reports([-gain for gain in STRONG]), held) == "local"


def test_evidence_near_the_threshold_changes_nothing() -> None:
    assert fleet_default(reports(FAIR), "local") == "local"
    assert fleet_default(reports(FAIR), "personal") == "personal"


@pytest.mark.parametrize("held", ["local", "personal"])
def test_devices_without_held_out_windows_have_no_say(held: str) -> None:
    assert fleet_default(reports(STRONG, holdout=0), held) == "local"
    assert fleet_default([], held) == "local"


def test_one_device_that_boasts_does_not_win_the_fleet() -> None:
    assert fleet_default(reports([1e9, *[-0.1] * 7]), "local") == "local"


def both(personal: list[float], mixed: list[float]) -> list[dict[str, float]]:
    pairs = zip(personal, mixed, strict=True)
    return [{"personal_gain": p, "mixed_gain": m, "holdout_windows": 8} for p, m in pairs]


def test_of_two_candidates_that_help_the_better_one_wins() -> None:
    better = [gain + 0.3 for gain in STRONG]
    assert fleet_default(both(STRONG, better), "local") == "mixed"
    assert fleet_default(both(better, STRONG), "local") == "personal"


def test_a_candidate_that_is_hardly_better_does_not_replace_the_one_that_holds() -> None:
    hardly = [gain + (0.1 if index % 2 else -0.08) for index, gain in enumerate(STRONG)]
    assert fleet_default(both(STRONG, hardly), "personal") == "personal"
    assert fleet_default(both(hardly, STRONG), "mixed") == "mixed"
    better = [gain + 0.3 for gain in STRONG]
    assert fleet_default(both(STRONG, better), "personal") == "mixed"


def test_where_one_candidate_stops_helping_the_other_may_take_over() -> None:
    assert fleet_default(both([-gain for gain in STRONG], STRONG), "personal") == "mixed"
    assert fleet_default(both([-gain for gain in STRONG], NONE), "personal") == "local"
