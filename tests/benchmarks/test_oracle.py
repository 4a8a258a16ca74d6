"""Our rules and attacks compute what ByzFL's compute, and a rule that is slightly off is seen."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import oracle
from benchmarks.adversaries import ATTACKS, Vectors
from benchmarks.counterparts import ATTACK_COUNTERPARTS, COUNTERPARTS, UNIT, Vector, median_norm
from benchmarks.peers import environment
from benchmarks.peers.environment import BYZFL, Environment
from server.rules.policy import RULES

SETS = {"as many as in a laboratory": (20, 2000), "few": (7, 300), "many": (38, 300)}
"""Updates and parameters."""


@pytest.fixture(scope="session")
def byzfl() -> Path:
    if not BYZFL.complete:
        pytest.skip("ByzFL's environment is not there (make test-oracle)")
    return BYZFL.interpreter


@pytest.mark.oracle
@pytest.mark.parametrize("name", SETS)
def test_every_rule_gives_byzfls_aggregate_up_to_rounding(byzfl: Path, name: str) -> None:
    updates, parameters = SETS[name]
    rows = oracle.compared(byzfl, name, oracle.heavy_tails(updates, updates, parameters))
    assert {row["rule"] for row in rows} == set(RULES)
    assert {row["attack"] for row in rows} == {*oracle.ATTACKS, "none", "noise"}
    assert [row for row in rows if row["part"] > 1] == []
    exact = ("mean", "trimmed_mean", "median", "multi_krum")
    assert max(row["relative"] for row in rows if row["rule"] in exact) < 1e-6
    assert max(row["relative"] for row in rows) < 1e-3


@pytest.mark.oracle
def test_attacks_send_what_byzfls_send(byzfl: Path) -> None:
    found = oracle.attack_differences(byzfl, oracle.heavy_tails(3))
    assert set(found) == set(ATTACK_COUNTERPARTS) <= set(ATTACKS)
    assert max(found.values()) < 1e-12


@pytest.fixture(scope="session")
def round_and_aggregates(byzfl: Path) -> tuple[Vectors, Mapping[str, Vector]]:
    """A round whose updates are alike, under attack, and ByzFL's aggregate of it by every rule."""
    random = np.random.default_rng(5)
    honest = 0.05 * random.standard_normal((21, 40)) + 0.01 * random.standard_normal(40)
    updates = oracle.attacked(byzfl, honest)["IPM 0.5"]
    calls = [
        (rule, "centred" if counterpart.centred else "updates", counterpart.steps(updates, policy))
        for rule, counterpart in COUNTERPARTS.items()
        for policy in [replace(counterpart.policy(updates), iterations=3)]
    ]
    centred = updates - updates.mean(0)
    theirs = oracle.answers(byzfl, {"updates": updates, "centred": centred}, calls)
    return updates, {rule: theirs[rule] + COUNTERPARTS[rule].shift(updates) for rule in COUNTERPARTS}


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("rule", "off"),
    [
        ("mean", {"rule": "bounded_mean"}),
        ("bounded_mean", {"rule": "mean"}),
        ("bounded_mean", {"rule": "centered_clipping", "iterations": 1, "clipping_radius": 1.001}),
        ("trimmed_mean", {"assumed_attackers": 0.25}),
        ("median", {"rule": "trimmed_mean", "assumed_attackers": 0.45}),
        ("geometric_median", {"iterations": 2}),
        ("geometric_median", {"iterations": 4}),
        ("centered_clipping", {"iterations": 2}),
        ("centered_clipping", {"clipping_radius": 1.001}),
        ("centered_clipping", {"clipping_radius": 0.0}),
        ("multi_krum", {"assumed_attackers": 0.25}),
    ],
)
def test_a_rule_that_is_slightly_off_is_beyond_rounding(
    round_and_aggregates: tuple[Vectors, Mapping[str, Vector]], rule: str, off: dict[str, object]
) -> None:
    updates, theirs = round_and_aggregates
    counterpart = COUNTERPARTS[rule]
    right = replace(counterpart.policy(updates), iterations=3)
    bound = counterpart.bound(updates, theirs[rule], right)
    assert np.linalg.norm(counterpart.ours(updates, right) - theirs[rule]) <= bound
    if off.get("clipping_radius"):
        off = {**off, "clipping_radius": float(off["clipping_radius"]) * median_norm(updates)}  # type: ignore[arg-type]
    wrong = replace(right, **off)  # type: ignore[arg-type]
    assert np.linalg.norm(counterpart.ours(updates, wrong) - theirs[rule]) > bound


@pytest.mark.oracle
def test_multi_krum_counts_one_neighbour_less_than_byzfl(byzfl: Path) -> None:
    """As its paper says; where updates are alike, that chooses others."""
    found = []
    for seed in range(4):
        honest = 0.05 * np.random.default_rng(seed).standard_normal((12, 10))
        rows = oracle.compared(byzfl, "alike", honest)
        found += [row for row in rows if row["rule"] == "multi_krum"]
    assert all(row["part"] <= 1 for row in found)
    assert any(row["as_in_the_paper"] > 1e-3 for row in found)


def test_updates_come_to_the_rules_as_from_the_intake() -> None:
    random = np.random.default_rng(0)
    updates = oracle.on_grid(random.standard_normal((4, 50)) * np.array([[0.01], [1.0], [10.0], [1e6]]))
    assert np.array_equal(updates, np.rint(updates / UNIT) * UNIT)
    norms = np.linalg.norm(updates, axis=1)
    assert norms[0] < 0.2
    assert (norms <= oracle.BOUND).all()
    assert (norms[2:] > 0.99 * oracle.BOUND).all()


def test_the_table_has_the_largest_difference_of_every_rule() -> None:
    rows = [
        {"updates": "some", "attack": attack, "rule": rule, "relative": relative, "part": 100 * relative}
        for rule in RULES
        for attack, relative in (("none", 1e-8), ("noise", 3e-3))
    ]
    lines = oracle.table(rows, ["some"]).splitlines()
    assert lines[2:] == [f"| {rule} | 3.0e-03 (0.30) |" for rule in RULES]


def test_an_environment_of_other_requirements_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "FOLDER", tmp_path)
    (tmp_path / "peer").mkdir()
    made = Environment("peer", ("first==1", "second==2"), ("third==3",))
    assert not made.complete
    (tmp_path / "peer" / "complete").write_text("first==1\nsecond==2\nthird==3\n", "utf-8")
    assert made.complete
    assert not replace(made, needs=("first==1", "second==2.1")).complete
