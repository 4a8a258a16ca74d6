"""A poisoned release in a whole federation of real agents: reported as worse, withdrawn, and left behind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent import outbox
from agent.update import Contribution, make_update
from protocol.charter import TrainingPolicy
from protocol.messages import Round
from server.replay import SAME, replay_all
from server.round import RoundPolicy
from server.rules.policy import AggregationPolicy
from simulation.in_process import FEDERATION, InProcessFederation
from tests.builders import (
    WIDE_PARAMETERS,
    WIDE_SEGMENTS,
    WideEngine,
    tiny_package,
    two_levels,
    write_recording,
)

NAMES = tuple(f"pump-{number}" for number in range(1, 9))
LIAR, POISONED = NAMES[-1], 2
PACKAGE = tiny_package((0.0,) * WIDE_PARAMETERS, segments=WIDE_SEGMENTS)


def lie(current: Round, contribution: Contribution, *arguments: Any, **names: Any) -> bytes:
    """In one round a device sends the contrary of what it learned, longer and with the largest weight."""
    if names["device"] == LIAR and current.number == POISONED:
        contribution = replace(contribution, difference=-50 * contribution.difference, windows=4096)
    return make_update(current, contribution, *arguments, **names)


def federation(folder: Path, rounds: int) -> InProcessFederation:
    spools = {name: folder / "spools" / name for name in NAMES}
    for index, spool in enumerate(spools.values()):
        spool.mkdir(parents=True)
        write_recording(spool / "a.csv", two_levels(10 + 2 * index))
    return InProcessFederation(
        folder / "run",
        PACKAGE,
        spools,
        RoundPolicy(minimum_devices=8, quorum=1.0, deadline_seconds=1e7, gather_seconds=1e7, rounds=rounds),
        training=TrainingPolicy(learning_rate=0.02, epochs=2),
        server={"aggregation": AggregationPolicy(rule="mean")},  # the one rule that bears no liar
        make_engine=lambda *_: WideEngine(),
    )


def test_a_poisoned_release_is_left_behind_by_real_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "make_update", lie)
    with federation(tmp_path, rounds=4) as run:
        run.run()
        store = run.server_store
        assert store is not None
        [row] = store.withdrawals()
        assert (row["release"], row["replacement"]) == (POISONED, POISONED + 1)
        assert row["evidence"]["worse"] >= 7
        adapters = {number: store.release(number) for number in range(5)}
        assert {found.verdict for found in replay_all(store, FEDERATION)} == {SAME}
        assert adapters[3] is not None
        assert adapters[1] is not None
        assert adapters[3].sha256 == adapters[1].sha256
        engine = WideEngine()
        features = np.float32([[-1.5, 0], [1.5, 0]])
        margins = [
            float(np.diff(engine.predict(record.adapter, features), axis=1).ravel() @ np.array([-1, 1]))
            for record in adapters.values()
            if record is not None
        ]
        assert margins[2] < margins[1] == margins[3] < margins[4]
        for agent in run.agent_stores.values():
            assert agent.state().release >= 4
            assert agent.number("compared_with", -1) >= 3


def test_undisturbed_rounds_withdraw_nothing(tmp_path: Path) -> None:
    with federation(tmp_path, rounds=4) as run:
        run.run()
        assert run.server_store is not None
        assert run.server_store.withdrawals() == []
        reports = run.server_store.reports(1)
        assert {figures["compared_with"] for figures in reports.values()} == {0}
        assert np.mean([figures["release_gain"] for figures in reports.values()]) > 0
