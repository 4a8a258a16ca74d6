"""The task of the benchmarks as a folder of prepared files; making.py makes them, once.

They are kept under runs/benchmarks, in a folder named by what they were made from: the data, the seed and
the code that decides on them. Nothing here imports torch.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol import cbor, records
from protocol.package import ONNXRUNTIME, unpack
from protocol.recording import Recording
from simulation import vibration
from simulation.machines import Machine

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "runs" / "benchmarks"
DATA = ("vibration", "sp_sw_har")
SOURCES = ("models", "protocol", "simulation", "benchmarks/task.py", "benchmarks/making.py")
TAKES_SEED = 0xBE7C
"""Sets the benchmark's recordings apart from those of the demo."""


@dataclass(frozen=True)
class Task:
    """A folder of prepared files."""

    directory: Path

    @property
    def package(self) -> Path:
        """The model package with bottleneck adapters and head."""
        return self.directory / "package.zip"

    @property
    def head_package(self) -> Path:
        """The package of the same backbone in which only the head is trainable."""
        return self.directory / "head.zip"

    @property
    def weights(self) -> Path:
        """The same backbone and initial adapter as named arrays, for PyTorch."""
        return self.directory / "weights.npz"

    @property
    def facts(self) -> dict[str, Any]:
        """What the task is, for the report."""
        facts: dict[str, Any] = json.loads((self.directory / "task.json").read_text("utf-8"))
        return facts

    def windows(self, part: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Windows float32 [n, channels, length] and labels int64 [n] of "training" or "held_out"."""
        return np.load(self.directory / f"{part}_x.npy"), np.load(self.directory / f"{part}_y.npy")


def prepared(data: str, windows: int, seed: int) -> Task:
    """Return the task, made now in a process of its own if it is not there.

    Raises:
        SystemExit: it cannot be made.
    """
    digest = hashlib.sha256()
    for name in SOURCES:
        for file in sorted((ROOT / name).rglob("*.py")) if (ROOT / name).is_dir() else [ROOT / name]:
            digest.update(file.read_bytes())
    task = Task(KEPT / f"{data}-{windows}-{seed}-{digest.hexdigest()[:12]}")
    if not (task.directory / "task.json").exists():
        print(f"preparing the task in {task.directory}: takes a minute, once", file=sys.stderr)
        command = [sys.executable, "-m", "benchmarks.making", str(task.directory), "--data", data]
        command += ["--windows", str(windows), "--seed", str(seed)]
        if subprocess.run(command, cwd=ROOT, check=False, stdout=sys.stderr).returncode:
            sys.exit("the task could not be prepared, see above")
    return task


def engine_package(task: Task, engine: str, interpreter: Path) -> tuple[Path | None, str]:
    """Return the unpacked package that holds an engine's graphs, exported now if it is not there.

    Args:
        task: prepared.
        engine: as in a manifest.
        interpreter: that the engine is installed for.

    Returns:
        The folder and "", or None and the reason why it cannot be exported.
    """
    if engine == ONNXRUNTIME:
        return unpacked(task.package), ""
    package, reason = task.directory / f"package-{engine}.zip", ""
    # `make test-engines` makes an environment with all converters; the one in use may do as well.
    made_for_it = ROOT / ".venv-engine-export" / "bin" / "python"
    writers = [writer for writer in (made_for_it, interpreter, Path(sys.executable)) if writer.exists()]
    for writer in writers:
        if package.exists():
            break
        command = [str(writer), "-m", "benchmarks.making", str(task.directory), "--export", engine]
        command += ["--training-python", str(interpreter)]
        result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        reason = (result.stderr.strip().splitlines() or [""])[-1]
    if not package.exists():
        return None, f"its package cannot be written: {reason}"
    return unpacked(package), ""


def unpacked(package: Path) -> Path:
    """Unpack a model package beside it, as a device has it on disk, and return the folder."""
    folder = package.with_suffix("")
    if not (folder / "manifest.cbor").exists():
        content = unpack(package.read_bytes(), None)
        folder.mkdir(exist_ok=True)
        for name, data in content.members.items():
            (folder / name).write_bytes(data)
        (folder / "manifest.cbor").write_bytes(cbor.encode(records.to_numbered(content.manifest)))
    return folder


def vibration_recordings(
    machine: Machine, index: int, seed: int, takes: int, *, first: int = 0
) -> Iterator[Recording]:
    """Recordings of one simulated machine in every condition, `takes` of each."""
    for label, condition in enumerate(vibration.CLASSES):
        for take in range(first, first + takes):
            random = np.random.Generator(np.random.PCG64([seed, TAKES_SEED, index, label, take]))
            samples = vibration.simulate(machine, condition, vibration.ROWS, random)
            labels = np.full(vibration.ROWS, label, np.int64)
            yield Recording(f"{condition}-{take:02d}.csv", samples, labels)
