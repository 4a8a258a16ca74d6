"""The one door to external programs; one that is missing is named with the package that holds it."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from firmware_tools.errors import FirmwareError

PACKAGES = {
    "mcopy": "mtools",
    "mdir": "mtools",
    "mkfs.vfat": "dosfstools",
    "fsck.vfat": "dosfstools",
    "sfdisk": "fdisk",
    "lsblk": "util-linux",
}
"""By program, the Debian package that holds it."""
TIMEOUT_SECONDS = 120.0
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
"""Users' search paths leave out where Debian has mkfs.vfat and sfdisk."""


def missing(names: Sequence[str] = tuple(PACKAGES)) -> list[str]:
    """Those of the programs that are not installed."""
    return [name for name in names if shutil.which(name, path=SEARCH_PATH) is None]


def run(arguments: Sequence[str | Path]) -> bytes:
    """Run a program to its end.

    Args:
        arguments: its name, one of PACKAGES, and what it is given.

    Returns:
        What it printed on standard output.

    Raises:
        FirmwareError: it is not installed, fails, or takes more than two minutes; quotes what it said.
    """
    name = str(arguments[0])
    program = shutil.which(name, path=SEARCH_PATH)
    if program is None:
        raise FirmwareError(f"{name} is not installed; on Debian: apt install {PACKAGES.get(name, name)}")
    # mtools otherwise refuses partitions whose size is no multiple of what it takes for a cylinder.
    environment = {**os.environ, "LC_ALL": "C", "MTOOLS_SKIP_CHECK": "1"}
    try:
        done = subprocess.run(  # noqa: S603 - no shell, the program is one of ours
            [program, *map(str, arguments[1:])],
            check=True,
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip() or f"status {error.returncode}"
        raise FirmwareError(f"{name} failed: {said}") from error
    except subprocess.TimeoutExpired as error:
        raise FirmwareError(f"{name} took more than {TIMEOUT_SECONDS:g} s; is the medium broken?") from error
    return done.stdout
