"""A registered device lies: about its windows, and with an update as long as the charter allows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from server.rules.policy import RULES, AggregationPolicy
from tests.server.databases import Database
from tests.server.federation import NAMES, Federation, update_of

A, B, C = NAMES
Start = Callable[[str], Federation]


@pytest.fixture
def start(tmp_path: Path, database: Database) -> Start:
    def begin(rule: str) -> Federation:
        federation = Federation(tmp_path / rule, database=database)
        policy = AggregationPolicy(rule=rule, assumed_attackers=0.34)  # one of three
        federation.config = replace(federation.config, aggregation=policy)
        federation.restart()
        federation.push()
        federation.register()
        federation.coordinator.tick()
        return federation

    return begin


def released(federation: Federation, lie: dict[str, object]) -> float:
    """Two devices learn +0.2 from ten windows, the third says the contrary; the mean of the release."""
    current = federation.open_round()
    for name in (A, B):
        assert federation.deliver(name, update_of(name, current, 0.2))[0].verdict == "counted"
    assert federation.deliver(C, update_of(C, current, **lie))[0].verdict == "counted"
    newest = federation.store.newest_release()
    assert newest is not None
    assert newest.number == 1
    federation.close()
    return float(np.mean(newest.adapter))


@pytest.mark.parametrize("lie", [{"level": -3.0, "weight": 4096}, {"level": -0.3, "weight": 4096}], ids=str)
def test_a_device_that_lies_about_its_windows_does_not_decide_the_round(
    start: Start, lie: dict[str, object]
) -> None:
    assert released(start("mean"), lie) < -0.1  # what a coded release of six parameters still shows
    for rule in set(RULES) - {"mean", "multi_krum"}:  # multi-Krum cannot leave anyone out of three
        assert released(start(rule), lie) > 0.02, rule


def test_the_default_rule_is_one_that_bears_it(start: Start) -> None:
    assert released(start(AggregationPolicy().rule), {"level": -3.0, "weight": 4096}) > 0.02
