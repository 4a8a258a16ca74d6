"""Trimming an environment: what a device never loads goes, everything else and everybody else's stays."""

import json
from pathlib import Path

import pytest

from firmware_tools.__main__ import main
from firmware_tools.errors import FirmwareError
from firmware_tools.trim import trim

NUMPY = {
    "numpy/__init__.py": 100,
    "numpy/_core/_multiarray_umath.so": 5000,
    "numpy/_core/tests/test_array.py": 700,
    "numpy/_core/tests/__pycache__/test_array.cpython-311.pyc": 60,
    "numpy/tests/test_all.py": 40,
    "numpy/f2py/crackfortran.py": 30,
    "numpy/random/lib/libnpyrandom.a": 20,
    "numpy/__init__.pyi": 10,
    "numpy/testing/__init__.py": 9,
}
ONNXRUNTIME = {
    "onnxruntime/capi/onnxruntime_pybind11_state.so": 4000,
    "onnxruntime/capi/libonnxruntime.so.1.32.0": 3900,
    "onnxruntime/transformers/optimizer.py": 300,
}
STAY = {
    "numpy/__init__.py",
    "numpy/_core/_multiarray_umath.so",
    "numpy/testing/__init__.py",
    "onnxruntime/capi/onnxruntime_pybind11_state.so",
    "graftwork.py",
}


class Environment:
    """A site-packages folder with distributions as pip leaves them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder / "lib" / "python3.11" / "site-packages"
        self.site.mkdir(parents=True)

    def install(self, name: str, files: dict[str, int], *requires: str) -> None:
        for file, size in files.items():
            path = self.site / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(size))
        info = self.site / f"{name}-1.0.dist-info"
        info.mkdir()
        lines = [
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0",
            *(f"Requires-Dist: {r}" for r in requires),
        ]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))

    def files(self) -> set[str]:
        everything = (path for path in self.site.rglob("*") if path.is_file())
        return {path.relative_to(self.site).as_posix() for path in everything if "dist-info" not in str(path)}


@pytest.fixture
def device(tmp_path: Path) -> Environment:
    environment = Environment(tmp_path / "venv")
    environment.install("numpy", NUMPY)
    environment.install("onnxruntime", ONNXRUNTIME, "numpy>=1.21")
    environment.install(
        "graftwork",
        {"graftwork.py": 1},
        "numpy>=1.26",
        'onnxruntime>=1.19; extra == "agent"',
        'torch; extra == "models"',
    )
    return environment


def test_what_an_agent_never_loads_is_removed(device: Environment) -> None:
    trimmed = trim(device.folder)
    assert device.files() == STAY
    assert trimmed.by_distribution == {"onnxruntime": 4200, "numpy": 860}
    assert (trimmed.files, trimmed.bytes) == (8, 5060)
    assert not (device.site / "numpy" / "f2py").exists()


def test_trimming_again_changes_nothing(device: Environment) -> None:
    trim(device.folder)
    assert trim(device.folder).files == 0
    assert device.files() == STAY


def test_a_dry_run_only_counts(device: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    before = device.files()
    assert main(["trim", str(device.folder), "--dry-run"]) == 0
    assert "8 files, 0.0 MB would be removed" in capsys.readouterr().out
    assert device.files() == before
    assert main(["trim", str(device.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == 5060


def test_files_that_no_distribution_owns_stay(device: Environment) -> None:
    own = device.site / "numpy" / "tests" / "notes.txt"
    own.write_text("mine")
    trim(device.folder)
    assert own.read_text() == "mine"


def test_a_record_that_points_outside_is_not_followed(device: Environment, tmp_path: Path) -> None:
    outside = tmp_path / "onnxruntime" / "tools" / "precious.txt"
    outside.parent.mkdir(parents=True)
    outside.write_text("keep")
    record = device.site / "onnxruntime-1.0.dist-info" / "RECORD"
    record.write_text(
        record.read_text() + "onnxruntime/tools/../../../../../../onnxruntime/tools/precious.txt,,\n"
    )
    trim(device.folder)
    assert outside.read_text() == "keep"


@pytest.mark.parametrize("other", ["torch", "scikit-learn"])
def test_an_environment_that_others_use_is_left_alone(device: Environment, other: str) -> None:
    device.install(other, {f"{other}.py": 1}, "numpy>=1.20")
    before = device.files()
    with pytest.raises(FirmwareError, match=f"{other} is installed there as well and needs numpy"):
        trim(device.folder)
    assert device.files() == before


@pytest.mark.parametrize("folder", ["nothing", "."])
def test_a_folder_that_is_no_environment_is_refused(
    tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trim", str(tmp_path / folder)]) == 1
    assert "expected a virtual environment" in capsys.readouterr().err


def test_an_environment_without_an_agent_is_refused(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    environment.install("numpy", NUMPY)
    with pytest.raises(FirmwareError, match="expected an environment with graftwork in it"):
        trim(environment.folder)
