"""The agent's requirements for a target: locked with hashes, and fetched as wheels for that target.

Markers of requirements are evaluated on the host, which has another Python than the target; so what is
installed is named in a lock file, each with the SHA-256 of its wheel, and installed without asking for
dependencies.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firmware_tools.build.spec import TargetSpec
from firmware_tools.errors import FirmwareError
from protocol import toml

SITE = "opt/graftwork/lib/python{python}/site-packages"
"""In the root file system; as in a virtual environment, so that it can be trimmed."""
EXTRA = "agent"


def lock(spec: TargetSpec, project: Path) -> str:
    """What the agent needs on a target, as a requirements file with hashes.

    Args:
        spec: the target.
        project: folder with pyproject.toml.

    Raises:
        FirmwareError: pip cannot resolve it for that target.
    """
    described = toml.loads((project / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*described["dependencies"], *described["optional-dependencies"][EXTRA]]
    plain = [requirement for requirement in wanted if "python_version < '3.11'" not in requirement]
    report = json.loads(_pip(["install", "--dry-run", "--report", "-", *_for(spec), *plain]))
    lines = sorted(_line(found) for found in report["install"])
    return (
        "\n".join([f"# {spec.name}: Python {spec.python}, {', '.join(spec.wheel_platforms)}", *lines]) + "\n"
    )


def fetch_command(spec: TargetSpec, lock_file: str, site: str) -> tuple[str, ...]:
    """The command that puts the locked wheels into a folder."""
    return (
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *_for(spec, target=site),
        *("--no-deps", "--require-hashes", "--requirement", lock_file),
    )


def _for(spec: TargetSpec, target: str = "unused") -> list[str]:
    platforms = [argument for name in spec.wheel_platforms for argument in ("--platform", name)]
    return [
        *("--target", target, "--only-binary=:all:", "--no-compile"),
        *("--implementation", "cp", "--python-version", spec.python, *platforms),
    ]


def _line(found: dict[str, Any]) -> str:
    metadata, hashes = found["metadata"], found["download_info"]["archive_info"]["hashes"]
    return f"{metadata['name'].lower()}=={metadata['version']} --hash=sha256:{hashes['sha256']}"


def _pip(arguments: Sequence[str]) -> str:
    result = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise FirmwareError(f"pip failed:\n{result.stderr.strip()[-2000:]}")
    return result.stdout
