"""Whether a root file system is golden: every device starts from it, so it holds nothing of a single one.

A private key, a machine id or a random seed in the image would be the same on every device of the fleet. Only
the tree is read, never followed out of it by links, and of each file no more than a key takes.
"""

import argparse
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from firmware_tools.errors import FirmwareError
from protocol import toml

READ_BYTES = 64 * 1024
# At the start of a line and followed by base64: the libraries that read keys hold the first line alone.
_PEM_KEY = re.compile(
    rb"^-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----\r?\n(?:[A-Za-z-]+: .*\r?\n|\r?\n)*[A-Za-z0-9+/=]{16,}",
    re.MULTILINE,
)
_HEX_KEY = re.compile(rb"[0-9a-fA-F]{64}\s*")
_BY_NAME = {
    "etc/ssh/ssh_host_*key*": (
        "an SSH host key: every device would have the same; let each make its own at first boot"
    ),
    "etc/dropbear/*host_key*": (
        "an SSH host key: every device would have the same; let each make its own at first boot"
    ),
    "var/lib/systemd/random-seed": (
        "a random seed: every device would start from the same randomness; remove it"
    ),
    "var/lib/systemd/credential.secret": "the key of systemd's credentials: every device would have the same",
    "*agent.sqlite*": (
        "state of an agent: every device would be the one that left it; remove its state directory"
    ),
    "*identity.pem": "a device's certificate and key; remove the agent's identity directory",
    "*next.csr": "a device's signing request; remove the agent's identity directory",
    "*.token": "an enrolment token: it is good for one device; it belongs into that device's seed",
    "*seed.toml": "a device's seed; it belongs onto the seed partition",
}
"""By pattern of a path below the root, why it must not be there; a * also stands for folders."""


@dataclass(frozen=True)
class Finding:
    """A file that keeps an image from being golden."""

    path: str
    """Below the root of the file system."""
    reason: str


def add_commands(commands: Any) -> None:
    """Add `golden` to the commands of `graftwork-firmware verify`."""
    text = "check that a root file system holds nothing that is of one device"
    command = commands.add_parser("golden", help=text, description=text)
    command.add_argument("root", type=Path, help="folder of the root file system")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=_golden)


def check(root: Path) -> list[Finding]:
    """Look for what would make devices the same; an empty list: the image is golden.

    Raises:
        FirmwareError: there is no such folder, or a file of it cannot be read.
    """
    if not root.is_dir():
        raise FirmwareError(f"{root}: expected the folder of a root file system")
    found = list(_machine_ids(root))
    for path in _files(root):
        name = path.relative_to(root).as_posix()
        reason = next((why for pattern, why in _BY_NAME.items() if fnmatchcase(name, pattern)), "")
        reason = reason or _content(path)
        if reason:
            found.append(Finding(name, reason))
    return sorted(found, key=lambda finding: finding.path)


def _golden(options: argparse.Namespace) -> None:
    found = check(options.root)
    if options.json:
        print(json.dumps([vars(finding) for finding in found]))
    for finding in () if options.json else found:
        print(f"{finding.path}: {finding.reason}")
    if found:
        raise FirmwareError(f"{options.root} is not golden: {len(found)} findings")
    if not options.json:
        print(f"{options.root} is golden")


def _machine_ids(root: Path) -> Iterator[Finding]:
    path = root / "etc/machine-id"
    if not path.is_file() or path.is_symlink():
        yield Finding("etc/machine-id", "expected an empty file: without it a read-only root cannot get one")
    elif path.read_bytes()[:READ_BYTES].strip() not in (b"", b"uninitialized"):
        yield Finding("etc/machine-id", "expected an empty file: every device would have the same machine id")
    path = root / "var/lib/dbus/machine-id"
    if path.is_file() and not path.is_symlink() and path.stat().st_size:
        yield Finding(
            "var/lib/dbus/machine-id", "every device would have the same machine id; link it to /etc"
        )


def _files(root: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise FirmwareError(f"{error.filename}: {error.strerror}; check the tree as the user that made it")

    for folder, _, names in os.walk(root, onerror=stop):
        for name in names:
            path = Path(folder, name)
            if stat.S_ISREG(path.lstat().st_mode):
                yield path


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(READ_BYTES)
    except OSError as error:
        raise FirmwareError(f"{path}: {error.strerror}; check the tree as the user that made it") from error
    if _PEM_KEY.search(start):
        return "a private key: every device would have the same; let each make its own at first boot"
    if path.suffix == ".key" and _HEX_KEY.fullmatch(start):
        return "a private key of Graftwork; the agent makes it at first boot"
    if path.name == "agent.toml" and _names_device(start):
        return "an agent's configuration with a device's name; it comes from the device's seed"
    return ""


def _names_device(text: bytes) -> bool:
    try:
        return "device" in toml.loads(text.decode())
    except (UnicodeDecodeError, toml.TOMLDecodeError):
        return True  # whatever it is, it is no template
