"""The benchmark of schedules: what holds from release to release counts as long as it holds."""

from pathlib import Path

import numpy as np
import pytest

from agent.config import AgentConfig, SourceConfig
from benchmarks import schedule
from benchmarks.schedule import HOURS, Meter, Run
from protocol.package import Manifest
from tests.builders import FEATURES, PARAMETERS, LogisticEngine, tiny_manifest, tiny_members


def test_an_accuracy_counts_for_as_long_as_it_holds() -> None:
    run = Run(
        hours=[0.0, 40.0, 50.0],
        kib=[1.0, 2.0, 4.0],
        cpu_seconds=[0.1, 0.2, 0.4],
        steps=[10.0, 20.0, 40.0],
        used=[50.0, 80.0, 90.0],
        release=[40.0, 60.0, 70.0],
    )
    early, late = run.figures(48), run.figures(HOURS)
    assert (early["releases"], early["steps"], early["kib_up"]) == (2, 20.0, 2.0)
    assert early["used"] == pytest.approx((4 * 50 + 8 * 80) / 12)
    assert early["used_mean"] == pytest.approx((40 * 50 + 8 * 80) / 48)
    assert (late["releases"], late["used"], late["release"], late["kib_up"]) == (3, 90.0, 70.0, 4.0)


def test_a_metered_engine_is_the_engine_and_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain, meter, manifest = LogisticEngine(), Meter(), tiny_manifest(tiny_members())

    def make(_directory: Path, _manifest: Manifest, _config: AgentConfig) -> LogisticEngine:
        return plain

    monkeypatch.setattr(schedule, "configured_engine", make)
    config = AgentConfig("pump-1", "pumps", "ab" * 32, SourceConfig(str(tmp_path)))
    engine = meter.engine(tmp_path, manifest, config)
    adapter, features = np.zeros(PARAMETERS, np.float32), np.ones((3, FEATURES), np.float32)
    labels, weights = np.array([0, 1, 0]), np.ones(3, np.float32)
    loss, gradient = engine.loss_and_gradient(adapter, features, labels, weights)
    assert loss == plain.loss_and_gradient(adapter, features, labels, weights)[0]
    assert gradient.shape == adapter.shape
    assert engine.predict(adapter, features).shape == (3, 2)
    assert meter.steps == 1
    assert meter.cpu_seconds >= 0
