"""A backbone for normalised windows, from source devices to the test of edge devices with other sensors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.installation import Installation
from agent.onnxruntime_engine import OnnxruntimeEngine
from models.__main__ import main
from models.calibration import from_fleet
from protocol.input_schema import DEVICE, WindowSpec
from protocol.package import ADAPTER, read_adapter, unpack
from server.round import RoundPolicy
from simulation.evaluation import evaluate
from simulation.experiment import Settings, prepare
from simulation.in_process import InProcessFederation
from simulation.recordings import read_fleet
from tests.models.fleets import DEVICE as DEVICE_TABLE
from tests.models.fleets import FLEET, write_recording

GAINS = {"source0": 1.0, "source1": 3.0, "edge0": 400.0, "edge1": 0.02}
ROWS = 1600


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Machines whose oscillation is strong or weak, by sensors of very different gains and offsets."""
    folder = tmp_path_factory.mktemp("fleet")
    tables = [DEVICE_TABLE.format(id=name, domain=name, role=name[:-1]) for name in GAINS]
    (folder / "fleet.toml").write_text(FLEET + "".join(tables))
    random = np.random.default_rng(0)
    for name, gain in GAINS.items():
        for label, strength in (("slow", 0.3), ("quick", 1.0)):
            wave = strength * np.sin(0.7 * np.arange(ROWS)) + random.normal(0, 0.03, ROWS)
            samples = gain * np.stack([wave, random.normal(0, 1, ROWS)], 1) + 10 * gain
            write_recording(folder / name / f"{label}.csv", samples, [label] * ROWS)
    return folder


def test_an_edge_device_is_normalised_and_tested_by_its_own_statistics(fleet: Path, tmp_path: Path) -> None:
    file = tmp_path / "package.graft"
    arguments = ["--output", str(file), "--epochs", "12", "--normalisation", "device", "--adapter", "head"]
    assert main(["pretrain", str(fleet), *arguments]) == 0
    manifest = unpack(file.read_bytes(), None).manifest
    assert (manifest.format_version, manifest.schema.normalisation) == (2, DEVICE)
    experiment = prepare(tmp_path / "run", fleet, Settings(rounds=1, labels_per_class=4))
    spools = {p.device.id: p.directory / "spool" for p in experiment.participants}
    policy, programs = RoundPolicy(minimum_devices=2, rounds=1), tmp_path / "programs"
    with InProcessFederation(programs, file.read_bytes(), spools, policy) as federation:
        federation.run()
    for participant in experiment.participants:
        participant.state.symlink_to(programs / participant.device.id)
    assert min(result.backbone for result in evaluate(experiment)) > 0.95
    for participant in experiment.participants:
        packages = Installation(participant.state / "packages", ())
        [folder] = (participant.state / "packages").iterdir()
        engine = OnnxruntimeEngine(folder, packages.manifest(bytes.fromhex(folder.name)))
        windows, labels = experiment.test_set(participant.device.id)
        initial = read_adapter((folder / ADAPTER).read_bytes(), manifest.parameters)
        as_they_are = engine.predict(initial, engine.features(windows)).argmax(1)
        assert float(np.mean(as_they_are == labels)) < 0.8


def test_an_int8_prefix_gets_its_ranges_from_normalised_windows(fleet: Path) -> None:
    schema = read_fleet(fleet).schema
    largest = {
        normalisation: np.abs(
            from_fleet(
                fleet, replace(schema, normalisation=normalisation), WindowSpec(64, 32), labelled=True
            ).windows
        ).max()
        for normalisation in (None, DEVICE)
    }
    assert largest[DEVICE] < 8
    assert largest[None] > 30
