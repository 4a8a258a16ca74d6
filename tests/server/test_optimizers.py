"""FedAdam on the server: its formula, and the same bits after a restart and in replay."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from server import optimizers
from server.replay import SAME, replay_all
from server.rules.policy import RULES, AggregationPolicy
from tests.server.databases import Database
from tests.server.federation import NAMES, Federation, update_of
from tests.server.test_replay import tamper

ADAM = AggregationPolicy(server_optimizer="adam", learning_rate=0.02, beta1=0.8, beta2=0.9, tau=0.01)


def test_averaging_moves_by_the_difference_and_keeps_nothing() -> None:
    difference = np.array([5, -7], np.int64)
    moved, moments = optimizers.step(AggregationPolicy(), difference, np.ones((2, 2)))
    assert moved is difference
    assert moments is None


def test_two_steps_are_those_of_the_paper() -> None:
    first = second = moments = None
    for values in ([0.1, -0.2, 0.0], [0.3, 0.1, 0.0]):
        delta = np.array(values)
        first = (0.2 * delta) if first is None else 0.8 * first + 0.2 * delta
        second = 0.9 * (np.full(3, 0.01**2) if second is None else second) + 0.1 * delta**2
        fixed = np.rint(delta * 2.0**30).astype(np.int64)
        moved, moments = optimizers.step(ADAM, fixed, moments)
        assert np.allclose(moved / 2.0**30, 0.02 * first / (np.sqrt(second) + 0.01), atol=1e-8)
    assert moments is not None
    assert np.allclose(moments, [first, second], atol=1e-9)


def test_a_step_cannot_leave_the_range_of_the_release() -> None:
    wild = replace(ADAM, learning_rate=10.0, beta1=0.9999, tau=1e-8)
    moments = np.array([[60.0], [0.0]])
    moved, _ = optimizers.step(wild, np.zeros(1, np.int64), moments)
    assert moved.tolist() == [(1 << 35) - 1]


def run_rounds(federation: Federation, rounds: int, *, restarts: bool) -> None:
    for number in range(rounds):
        if restarts:
            federation.restart()
        current = federation.open_round()
        for index, name in enumerate(NAMES):
            federation.deliver(name, update_of(name, current, 0.1 * (index + number) - 0.2, weight=index + 3))
            if restarts and index < 2:
                federation.restart()


def make(directory: Path, database: Database, policy: AggregationPolicy) -> Federation:
    federation = Federation(directory, database=database)
    federation.config = replace(federation.config, aggregation=policy)
    federation.restart()
    federation.push()
    federation.register()
    federation.coordinator.tick()
    return federation


@pytest.mark.parametrize("policy", [ADAM, *(AggregationPolicy(rule=rule) for rule in RULES)], ids=str)
def test_restarts_and_replay_give_the_same_bits(
    tmp_path: Path, database: Database, policy: AggregationPolicy
) -> None:
    hashes = []
    for restarts in (False, True):
        federation = make(tmp_path / f"restarts-{restarts}", database, policy)
        run_rounds(federation, 3, restarts=restarts)
        newest = federation.store.newest_release()
        assert newest is not None
        assert newest.number == 3
        assert (newest.moments is not None) == (policy.server_optimizer == "adam")
        hashes.append(newest.sha256)
        assert {one.verdict for one in replay_all(federation.store, "pumps")} == {SAME}
        federation.close()
    assert hashes[0] == hashes[1]


def test_a_changed_configuration_holds_from_the_next_round_on(tmp_path: Path, database: Database) -> None:
    federation = make(tmp_path / "data", database, AggregationPolicy(rule="median"))
    current = federation.open_round()
    federation.config = replace(federation.config, aggregation=ADAM)
    federation.restart()
    for name in NAMES:
        federation.deliver(name, update_of(name, current, 0.3))
    run_rounds(federation, 1, restarts=False)
    kept = [federation.store.round_record(number) for number in (1, 2)]
    assert [record.aggregation["server_optimizer"] for record in kept if record] == ["average", "adam"]
    assert {one.verdict for one in replay_all(federation.store, "pumps")} == {SAME}
    federation.close()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE releases SET moments = zeroblob(96) WHERE number = 2", "moments: not those"),
        ("UPDATE releases SET moments = NULL WHERE number = 2", "moments: not those"),
        ("UPDATE releases SET moments = x'00' WHERE number = 2", "release 2 is damaged"),
        ("UPDATE releases SET moments = zeroblob(96) WHERE number = 1", "adapter: expected"),
        (
            'UPDATE rounds SET aggregation = \'{"server_optimizer": "average"}\' WHERE number = 2',
            "adapter: expected",
        ),
        ('UPDATE rounds SET aggregation = \'{"rule": "vote"}\' WHERE number = 2', "rule: expected one of"),
    ],
)
def test_moments_and_policies_that_were_tampered_with_are_named(
    tmp_path: Path, database: Database, statement: str, reason: str
) -> None:
    federation = make(tmp_path / "data", database, ADAM)
    run_rounds(federation, 2, restarts=False)
    tamper(federation, statement)
    assert reason in next(one.reason for one in replay_all(federation.store, "pumps") if one.release == 2)
    federation.close()
