"""The device as the programs on it see it: versions, slots, services, RAUC. The edge that tests replace."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from firmware_tools.device.boot_environment import SLOTS
from firmware_tools.errors import FirmwareError

LIMIT_SECONDS = 900.0


@dataclass(frozen=True)
class Device:
    """Folders and programs of a device."""

    root: Path = Path("/")

    @property
    def boot_folder(self) -> Path:
        """Of the boot environment."""
        return self.root / "boot/env"

    @property
    def data(self) -> Path:
        """What lasts."""
        return self.root / "data"

    @property
    def state_file(self) -> Path:
        """Of the last update."""
        return self.data / "update/state.json"

    @property
    def failures(self) -> Path:
        """Evidence of systems that were not healthy."""
        return self.data / "update/failures"

    @property
    def agent_configuration(self) -> Path:
        """Of the agent; absent until the device knows who it is."""
        return self.data / "graftwork/agent.toml"

    def release(self) -> dict[str, str]:
        """`compatible` and `version` of the image that runs.

        Raises:
            FirmwareError: the file is missing: this is no image of ours.
        """
        path = self.root / "etc/graftwork-release"
        try:
            lines = path.read_text("utf-8").splitlines()
        except OSError as error:
            raise FirmwareError(f"{path}: {error.strerror}: this system is no Graftwork image") from error
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def slot(self) -> str:
        """The slot that runs.

        Raises:
            FirmwareError: the kernel's command line names none.
        """
        return booted_slot((self.root / "proc/cmdline").read_text("ascii"))

    def boot_name(self) -> str:
        """The way that the image boots; grub-efi where it does not say."""
        try:
            return (self.root / "etc/graftwork-boot").read_text("ascii").strip()
        except FileNotFoundError:
            return "grub-efi"

    def device_tree(self, name: str) -> bytes:
        """A property that the firmware gave to the kernel; empty: there is none."""
        try:
            return (self.root / "proc/device-tree" / name).read_bytes()
        except OSError:
            return b""

    def boot_id(self) -> str:
        """Identifies this boot, as the kernel does; empty: it cannot be read."""
        try:
            return (self.root / "proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def run(self, command: Sequence[str], *, limit: float = LIMIT_SECONDS) -> tuple[int, str]:
        """Run a program; returns its status and what it printed. One that is missing has status 127."""
        try:
            result = subprocess.run(  # noqa: S603 - fixed commands of this room
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=limit,
                check=False,
            )
        except FileNotFoundError:
            return 127, f"{command[0]} is not installed"
        except subprocess.TimeoutExpired:
            return 124, f"{command[0]} did not end within {limit:g} s"
        return result.returncode, result.stdout


def booted_slot(command_line: str) -> str:
    """The slot that runs, from the kernel's command line.

    Raises:
        FirmwareError: it names none.
    """
    for word in command_line.split():
        name, _, slot = word.partition("=")
        if name == "rauc.slot" and slot in SLOTS:
            return slot
    raise FirmwareError("the kernel's command line names no slot (rauc.slot=)")
