"""Runs the contract of every engine in an environment of its own: the runtimes exclude one another.

    python -m tests.engines.environments [--folder .]

Environments are made once beside the repository's others (.venv-engine-*), and again when pyproject.toml
changes. The cases are written by one with torch and the converters; the others have no torch, like a device.
What this machine or its Python versions cannot run is named and skipped.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEST = ("pytest>=8.2", "pytest-timeout>=2.3")


@dataclass(frozen=True)
class Environment:
    """One virtual environment."""

    name: str
    packages: tuple[str, ...]
    newest_python: tuple[int, int] = (3, 14)
    """The last that its runtime has wheels for."""
    machines: tuple[str, ...] = ("x86_64", "aarch64", "armv7l")
    engine: str = ""
    """Which the contract must not skip there."""


EXPORT = Environment(
    "export",
    (".[models,models-litert]", "hypothesis>=6.100", *TEST),
    newest_python=(3, 13),
    machines=("x86_64",),
)
TRAINING = Environment(
    "onnxruntime-training",
    (".[agent-ort-training]", "onnx>=1.18", *TEST),
    (3, 12),
    ("x86_64",),
    "onnxruntime-training",
)
ENGINES = (
    TRAINING,
    Environment("litert", (".[agent-litert]", *TEST), machines=("x86_64", "aarch64"), engine="litert"),
    # As on 32-bit Arm; its wheels for other processors let the contract run here.
    Environment("tflite-runtime", (".", "tflite-runtime>=2.14", "numpy<2", *TEST), (3, 11), engine="litert"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing, write the cases, run the contract; returns 1 if an engine breaks it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=ROOT, help="for the environments (default: repository)"
    )
    folder = parser.parse_args(arguments).folder
    export = _make(EXPORT, folder)
    if export is None:
        return 0
    pythons = {environment: _make(environment, folder) for environment in ENGINES}
    cases = folder / ".venv-engine-export" / "cases"
    shutil.rmtree(cases, ignore_errors=True)
    command = [str(export), "-W", "ignore", "-m", "tests.engines.cases", str(cases), "--engine", "litert"]
    if pythons[TRAINING] is not None:
        command += [
            "--engine",
            "onnxruntime-training",
            "--onnxruntime-training-python",
            str(pythons[TRAINING]),
        ]
    _say("writing the cases")
    subprocess.run(command, check=True, cwd=ROOT)
    broken = []
    _say("the converters")
    # The converter's dependencies bring a pytest plugin along that warns when it is loaded.
    quiet = ["-p", "no:anyio"]
    converters = [str(export), "-m", "pytest", *quiet, "tests/models/test_engine_artifacts.py"]
    if subprocess.run(converters, check=False, cwd=ROOT).returncode:
        broken.append(EXPORT.name)
    for environment, python in pythons.items():
        if python is None:
            continue
        _say(f"the contract in {environment.name}")
        variables = {
            **os.environ,
            "GRAFTWORK_ENGINE": environment.engine,
            "GRAFTWORK_ENGINE_CASES": str(cases),
        }
        done = subprocess.run(
            [str(python), "-m", "pytest", "tests/engines"], check=False, cwd=ROOT, env=variables
        )
        if done.returncode:
            broken.append(environment.name)
    if broken:
        _say(f"broken in: {', '.join(broken)}")
    return 1 if broken else 0


def _make(environment: Environment, folder: Path) -> Path | None:
    """Make an environment, or say why there is none; its interpreter."""
    if platform.machine() not in environment.machines:
        _say(f"skipped: {environment.name} has no wheels for {platform.machine()}")
        return None
    base = _interpreter(environment.newest_python)
    if base is None:
        newest = ".".join(map(str, environment.newest_python))
        _say(f"skipped: {environment.name} needs Python 3.10 to {newest}, and none is on the path")
        return None
    target = folder / f".venv-engine-{environment.name}"
    python, stamp = target / "bin" / "python", target / "installed"
    if stamp.exists() and stamp.stat().st_mtime > (ROOT / "pyproject.toml").stat().st_mtime:
        return python
    _say(f"setting up {target.name} ({base})")
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run([base, "-m", "venv", str(target)], check=True)
    options = ["install", "--quiet", "--disable-pip-version-check"]
    first, *others = environment.packages
    subprocess.run([str(python), "-m", "pip", *options, "--editable", first, *others], check=True, cwd=ROOT)
    stamp.touch()
    return python


def _interpreter(newest: tuple[int, int]) -> str | None:
    """Find a CPython that is new enough and not too new: this one, or another on the path."""
    if (3, 10) <= sys.version_info[:2] <= newest:
        return sys.executable
    for minor in range(newest[1], 9, -1):
        found = shutil.which(f"python3.{minor}")
        if found is not None:
            # A version manager's shim may be there for a version that is not.
            done = subprocess.run([found, "-c", "import venv"], check=False, capture_output=True)
            if done.returncode == 0:
                return found
    return None


def _say(text: str) -> None:
    print(f"test-engines: {text}", flush=True)  # noqa: T201 - a command line


if __name__ == "__main__":
    sys.exit(main())
