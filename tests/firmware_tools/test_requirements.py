"""The agent's requirements for a target: what pip resolves becomes a lock with hashes."""

import json
from pathlib import Path

import pytest

from firmware_tools.build import requirements
from firmware_tools.build.requirements import fetch_command, lock
from firmware_tools.build.spec import load_spec
from firmware_tools.errors import FirmwareError

SPEC = load_spec("qemu-x86_64")
PROJECT = """
[project]
dependencies = ["numpy>=1.26", "tomli>=2; python_version < '3.11'"]
[project.optional-dependencies]
agent = ["onnxruntime>=1.19"]
server = ["sqlalchemy"]
"""


def found(name: str, version: str) -> dict[str, object]:
    """A part of pip's report, with more in it than is read."""
    return {
        "metadata": {"name": name, "version": version, "requires_dist": []},
        "download_info": {
            "url": "https://x/y.whl",
            "archive_info": {"hashes": {"sha256": name[0].lower() * 64}},
        },
        "is_direct": False,
    }


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    return tmp_path


def test_what_pip_finds_for_the_target_is_locked_with_hashes(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def pip(arguments: list[str]) -> str:
        asked.extend(arguments)
        return json.dumps(
            {"version": "1", "install": [found("onnxruntime", "1.32.0"), found("NumPy", "2.5.5")]}
        )

    monkeypatch.setattr(requirements, "_pip", pip)
    assert lock(SPEC, project).splitlines() == [
        "# qemu-x86_64: Python 3.13, manylinux_2_28_x86_64, manylinux2014_x86_64",
        f"numpy==2.5.5 --hash=sha256:{'n' * 64}",
        f"onnxruntime==1.32.0 --hash=sha256:{'o' * 64}",
    ]
    # markers are of the host, so what is for older versions is not asked for; nor is what servers need
    assert asked[-2:] == ["numpy>=1.26", "onnxruntime>=1.19"]
    assert asked[asked.index("--python-version") + 1] == "3.13"
    assert {"--dry-run", "--only-binary=:all:", "manylinux_2_28_x86_64"} <= set(asked)


def test_only_what_is_locked_is_fetched() -> None:
    command = fetch_command(SPEC, "{lock}", "site")
    assert {"--no-deps", "--require-hashes", "--only-binary=:all:"} <= set(command)
    assert command[-2:] == ("--requirement", "{lock}")
    assert command[command.index("--target") + 1] == "site"


def test_what_pip_cannot_resolve_is_said(project: Path) -> None:
    text = (
        (project / "pyproject.toml")
        .read_text()
        .replace("numpy>=1.26", "numpy @ file:///no/such-1-py3-none-any.whl")
    )
    (project / "pyproject.toml").write_text(text)
    with pytest.raises(FirmwareError, match=r"pip failed:\n.*no/such"):
        lock(SPEC, project)
