"""The demo's model package in the repository: small, sound, and what the project's own exporter makes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agent.onnxruntime_engine import OnnxruntimeEngine
from protocol.package import ModelPackage, unpack
from protocol.windows import concatenate, cut
from simulation import vibration
from simulation.recordings import read_device

PACKAGE = Path(vibration.__file__).parent / "demo" / "vibration.zip"


def test_it_is_small_and_every_byte_matches_its_manifest() -> None:
    assert PACKAGE.stat().st_size < 2_000_000
    package = unpack(PACKAGE.read_bytes(), None)
    assert package.manifest.schema == vibration.SCHEMA
    assert package.manifest.window == vibration.WINDOW
    assert package.manifest.parameters >= 5_000
    assert max(package.manifest.parity.loss, package.manifest.parity.gradient) <= 1e-5


def test_made_again_it_behaves_the_same(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="making a package needs the models extra")
    fleet = vibration.write_fleet(tmp_path / "fleet", 0)
    again = tmp_path / "again.zip"
    command = [sys.executable, "-m", "models", "pretrain", str(tmp_path / "fleet"), "--output", str(again)]
    subprocess.run(command, check=True, capture_output=True)
    kept, made = unpack(PACKAGE.read_bytes(), None), unpack(again.read_bytes(), None)
    assert made.manifest.segments == kept.manifest.segments
    assert made.manifest.feature_size == kept.manifest.feature_size
    devices = [device for device in fleet.devices if device.role == "edge"]
    recordings = [r for device in devices for r in read_device(tmp_path / "fleet", fleet, device).recordings]
    windows = concatenate([cut(recording, fleet.window) for recording in recordings])
    accuracies = [
        _accuracy(package, tmp_path / name, windows.x, windows.y)
        for name, package in (("kept", kept), ("made", made))
    ]
    # Training on another processor may differ in the last bits, and those grow over the epochs.
    assert abs(accuracies[0] - accuracies[1]) < 0.08
    assert min(accuracies) > 0.5


def _accuracy(package: ModelPackage, folder: Path, windows: np.ndarray, labels: np.ndarray) -> float:
    folder.mkdir()
    for name, content in package.members.items():
        (folder / name).write_bytes(content)
    engine = OnnxruntimeEngine(folder, package.manifest)
    logits = engine.predict(package.adapter, engine.features(windows))
    return float(np.mean(logits.argmax(axis=1) == labels))
