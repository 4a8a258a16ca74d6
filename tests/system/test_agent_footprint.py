"""The agent stays small: no torch, and less memory than the smallest board has to spare."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.plant import PACKAGE, Plant, memory, needs_mosquitto

PRIVATE_BYTES = 50_000_000
"""What no other process shares: it does not depend on the kernel's cache."""
LIMIT_BYTES = 120_000_000
"""The goal is 80 MB, which benchmarks.vs_flower measures. Right after an installation the kernel counts up to
25 MB more of the same: files that were just written stand in its cache in large pieces, and are mapped so."""
TRAIN = """
import json, sys, tempfile
from pathlib import Path
import numpy as np
import agent.__main__, agent.daemon
from agent.onnxruntime_engine import OnnxruntimeEngine
from protocol.package import unpack
package = unpack(Path(sys.argv[1]).read_bytes(), None)
folder = Path(tempfile.mkdtemp(dir=sys.argv[2]))
for name, content in package.members.items():
    (folder / name).write_bytes(content)
engine = OnnxruntimeEngine(folder, package.manifest)
shape = (engine.batch, len(package.manifest.schema.channels), package.manifest.window.length)
windows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
features = engine.features(windows)
labels = np.arange(engine.batch, dtype=np.int64) % engine.classes
weights = np.ones(engine.batch, np.float32)
adapter, losses = package.adapter.copy(), []
for _ in range(10):
    loss, gradient = engine.loss_and_gradient(adapter, features, labels, weights)
    adapter -= 0.05 * gradient
    losses.append(float(loss))
print(json.dumps({"losses": losses, "modules": sorted(sys.modules)}))
"""


@pytest.mark.system
def test_training_imports_no_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TRAIN, str(PACKAGE), str(tmp_path)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(result.stdout)
    assert found["losses"][-1] < found["losses"][0]
    roots = {name.partition(".")[0] for name in found["modules"]}
    assert "onnxruntime" in roots
    assert not roots & {"torch", "pytorch_lightning", "onnx", "server", "simulation", "models", "sqlalchemy"}


@pytest.mark.system
@needs_mosquitto
def test_memory_of_an_agent_that_took_part(tmp_path: Path, fleet: Path) -> None:
    with Plant(tmp_path, fleet).running() as plant:
        plant.finish()
        for name in plant.names:
            plant.signal(name, signal.SIGSTOP)
            pid = plant.agent(name).pid
            assert 0 < memory(pid, "RssAnon") < PRIVATE_BYTES
            assert 0 < memory(pid, "VmHWM") < LIMIT_BYTES
            mapped = Path(f"/proc/{pid}/maps").read_text("utf-8")
            assert "onnxruntime" in mapped
            assert "/torch/" not in mapped
        reports = plant.store.reports(1)
        assert set(reports) == set(plant.names)
        assert all(0 < report["peak_rss_bytes"] < LIMIT_BYTES for report in reports.values())
