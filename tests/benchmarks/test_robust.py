"""The table of attacks: every share with its own reference, and a summary that names the worst case."""

from pathlib import Path

import pytest

from benchmarks import robust
from benchmarks.adversaries import ATTACKS, Attack
from benchmarks.attacked_fleet import Accuracy
from server.rules.policy import RULES, AggregationPolicy

CLEAN, LOST = 80.0, 3.0


class StandInFleet:
    """Loses three points under any attack, and half a point for each device left out of the mean."""

    def __init__(self, lab: object) -> None:
        self.lab = lab

    def attackers(self, share: float) -> frozenset[int]:
        return frozenset(range(round(10 * share)))

    def run(
        self,
        aggregation: AggregationPolicy,
        rounds: int,
        *,
        attack: Attack | None = None,
        attackers: frozenset[int] = frozenset(),
    ) -> float:
        assert (aggregation.rule in RULES, rounds) == (True, 4)
        assert (attack is None) == (not attackers)
        return LOST if attack else 0.0

    def mean(self, found: float, left_out: frozenset[int]) -> Accuracy:
        return Accuracy(CLEAN - found - 0.5 * len(left_out), CLEAN + 5 - 0.5 * len(left_out))


class StandInLaboratory:
    def __init__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[robust.Row]:
    monkeypatch.setattr(robust, "Laboratory", StandInLaboratory)
    monkeypatch.setattr(robust, "AttackedFleet", StandInFleet)
    monkeypatch.setattr(robust, "package", lambda *_: b"")
    found = robust.measure(Path("plant"), 0, ["mean", "bounded_mean"], [0.1, 0.2], labels=5, rounds=4)
    return [{"fleet": "plant", **row} for row in found]


def test_each_kind_of_attack_is_there() -> None:
    for kind in ("sign flip", "ALIE", "IPM", "label flip", "noise at the bound"):
        assert any(name.startswith(kind) for name in ATTACKS), kind


def test_every_attack_is_measured_against_the_same_devices_without_it(rows: list[robust.Row]) -> None:
    assert len(rows) == 2 * (1 + 2 * (1 + len(ATTACKS)))
    attacked = [row for row in rows if row["attack"] != robust.NO_ATTACK]
    assert {row["share"] for row in attacked} == {0.1, 0.2}
    # Not against all devices: the attackers' own accuracy counts in neither.
    assert {(row["release_lost"], row["personal_lost"]) for row in attacked} == {(LOST, 0.0)}


def test_without_attackers_all_devices_count(rows: list[robust.Row]) -> None:
    [mean, bounded] = [row for row in rows if row["share"] == 0.0]
    assert mean["release"] == bounded["release"] == CLEAN


def test_the_summary_names_the_worst_attack_on_the_default_rule_at_the_goals_share(
    rows: list[robust.Row],
) -> None:
    for row in rows:
        if row["share"] == 0.2 or row["rule"] == "mean":
            row["release_lost"] = 50.0
        elif row["attack"] == "IPM 10":
            row["release_lost"] = 3.5
    found = robust.summary(rows)
    assert found["default_rule"] == "bounded_mean"
    assert (found["points_lost"], found["worst_attack"], found["worst_fleet"]) == (3.5, "IPM 10", "plant")
    assert found["goals"] == {"points_lost": 2.0}
    assert "points_lost" not in robust.summary([row for row in rows if row["share"] != 0.1])


def test_seeds_are_averaged_row_by_row() -> None:
    one = {"rule": "mean", "attack": "none", "share": 0.1, "release": 80.0, "release_lost": 1.0}
    [row] = robust.averaged([[one], [{**one, "release": 81.0, "release_lost": 4.0}]])
    assert row == {**one, "release": 80.5, "release_lost": 2.5, "release_lost_by_seed": [1.0, 4.0]}


def test_the_table_has_a_row_of_all_attacks_for_every_rule_and_share(rows: list[robust.Row]) -> None:
    text = robust.table(rows)
    assert text.count("| bounded_mean | 79.5 / 84.5 |" + " 3.0 / 0.0 |" * len(ATTACKS)) == 1
    assert text.count("| bounded_mean | 79.0 / 84.0 |" + " 3.0 / 0.0 |" * len(ATTACKS)) == 1
    assert "| 80.0 / 85.0 | 80.0 / 85.0 |" in text


@pytest.mark.parametrize("wrong", [["--rules", "vote"], ["--shares", "0,0.1"], ["--shares", "1"]])
def test_a_wrong_choice_ends_before_anything_is_made(
    wrong: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["robust", *wrong])
    with pytest.raises(SystemExit):
        robust.main()
    assert RULES[0] in capsys.readouterr().err
