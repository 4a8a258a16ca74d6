"""Boot control over a Raspberry Pi's "tryboot": autoboot.txt names what boots, and what boots on trial.

The firmware reads autoboot.txt on the first FAT partition: [all] is what boots, [tryboot] what boots once,
after a restart with the argument "0 tryboot". Its flag is cleared before anything starts, so a slot gets
**one** try: whatever ends it leads back. A slot becomes the one of [all] only when it was found healthy.

All of it is 512 bytes, one sector: the firmware takes no more, and they are overwritten in place, so a
power cut leaves the old text or the new one. The last line is a comment of ours.

What boots a slot (kernel, initramfs, device trees) is a FAT partition of its own beside the slot. It is
filled from the slot's root file system when the slot is about to be tried, never while it is the one of
[all].
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firmware_tools.device.boot_environment import BAD, GOOD, SLOTS
from firmware_tools.device.slot_states import SlotStates, check_good, other
from firmware_tools.device.system import Device
from firmware_tools.errors import FirmwareError

SECTOR = 512
AUTOBOOT = "autoboot.txt"
BOOT_FILES = "usr/lib/graftwork/boot"
"""In a root file system: what its boot partition is filled with."""
PARTITIONS = {"A": 2, "B": 3}
"""Of the image; the first one holds autoboot.txt."""
_TEXT = re.compile(
    r"\[all\]\ntryboot_a_b=1\nboot_partition=(?P<all>\d)\n\[tryboot\]\nboot_partition=(?P<tryboot>\d)\n"
    r"# graftwork a=(?P<a>\w+) b=(?P<b>\w+) armed=(?P<armed>[\w-]*)\n#*\n"
)


@dataclass(frozen=True)
class Autoboot:
    """What stands in autoboot.txt."""

    default: str = "A"
    """The slot of [all]."""
    states: SlotStates = SlotStates()  # noqa: RUF009 - frozen

    def encode(self) -> bytes:
        """One sector."""
        states = self.states
        text = (
            f"[all]\ntryboot_a_b=1\nboot_partition={PARTITIONS[self.default]}\n"
            f"[tryboot]\nboot_partition={PARTITIONS[other(self.default)]}\n"
            f"# graftwork a={states.a} b={states.b} armed={states.armed}\n"
        ).encode()
        return text + b"#" * (SECTOR - len(text) - 1) + b"\n"


def decode(content: bytes) -> Autoboot:
    """Read autoboot.txt.

    Raises:
        ValueError: it is none that was written here; or [tryboot] is not the other slot.
    """
    found = _TEXT.fullmatch(content.decode("ascii"))
    if len(content) != SECTOR or found is None:
        raise ValueError("expected the 512 bytes that `encode` writes")
    slots = {str(number): slot for slot, number in PARTITIONS.items()}
    default, tried = slots.get(found["all"], ""), slots.get(found["tryboot"], "")
    if not default or tried != other(default):
        raise ValueError("[all] and [tryboot] do not name the two slots")
    return Autoboot(default, SlotStates(found["a"], found["b"], found["armed"]))


class Tryboot:
    """See BootControl."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._path = device.boot_folder / AUTOBOOT

    def slot(self) -> str:
        """From the kernel's command line, which is of the boot partition."""
        return self._device.slot()

    def primary(self) -> str:
        """The slot on trial, until it had its boot; else that of [all]."""
        found = self._read()
        return found.states.trial or found.default

    def state_of(self, slot: str) -> str:
        """As written down."""
        return self._read().states.state_of(slot)

    def set_primary(self, slot: str) -> None:
        """Fill the slot's boot partition, then arm the trial; a good slot becomes that of [all] at once."""
        found = self._read()
        if found.states.state_of(slot) == GOOD:
            self._write(Autoboot(slot, found.states))
            return
        if slot == found.default:
            raise FirmwareError(f"slot {slot} boots by default: it cannot be on trial")
        self._fill(slot)
        self._write(Autoboot(found.default, found.states.arm(slot, self._device.boot_id())))

    def set_state(self, slot: str, state: str) -> None:
        """A good slot that runs becomes that of [all]."""
        found = self._read()
        states = found.states.with_state(slot, state)
        default = slot if state == GOOD and slot == self.slot() else found.default
        self._write(Autoboot(default, states))

    def settle(self) -> None:
        """A trial that had its boot is given up; a lost autoboot.txt is written anew."""
        running = self.slot()
        try:
            found = self._read()
        except FirmwareError:
            states = SlotStates().with_state(running, GOOD).with_state(other(running), BAD)
            self._write(Autoboot(running, states))
            return
        states = found.states.settle(running, self._device.boot_id())
        if states != found.states:
            self._write(Autoboot(found.default, states))

    def on_trial(self) -> bool:
        """Not, where autoboot.txt cannot tell."""
        try:
            return self.state_of(self.slot()) != GOOD
        except FirmwareError:
            return False

    def check_armed(self) -> str:
        """The firmware and the kernel know tryboot, and a plain restart leads to what runs now."""
        running, found = self.slot(), self._read()
        if not self._device.device_tree("chosen/bootloader/tryboot"):
            raise FirmwareError(
                "the boot loader in the board's EEPROM does not speak of tryboot: a failed update could not "
                "lead back; update it (rpi-eeprom-update) and restart"
            )
        if not (self._device.root / "dev/vcio").exists():
            raise FirmwareError(
                "/dev/vcio is missing: only the kernels of Raspberry Pi hand the tryboot flag to the "
                "firmware, Debian's do not, and the update would never be tried"
            )
        check_good(found.states, running)
        if found.default != running:
            raise FirmwareError(
                f"slot {running} runs, but a restart leads to {found.default}: restart the device first"
            )
        return other(running)

    def stay(self, target: str) -> None:
        """The trial is called off."""
        found = self._read()
        if found.states.trial == target:
            self._write(Autoboot(found.default, found.states.with_state(target, BAD)))

    def facts(self) -> Mapping[str, Any]:
        """With what a plain restart leads to."""
        found = self._read()
        return {
            "primary": self.primary(),
            "slot_a": found.states.a,
            "slot_b": found.states.b,
            "default": found.default,
            "this_is_a_trial": self._device.device_tree("chosen/bootloader/tryboot").endswith(b"\x01"),
        }

    def restart(self) -> Sequence[str]:
        """Only with this argument is a trial tried."""
        trial = self._read().states.trial
        if trial is None or trial == self.slot():
            return ["systemctl", "reboot"]
        return ["systemctl", "reboot", "--reboot-argument=0 tryboot"]

    def _read(self) -> Autoboot:
        try:
            return decode(self._path.read_bytes())
        except (OSError, ValueError) as error:
            raise FirmwareError(f"{self._path}: {error}") from error

    def _write(self, wanted: Autoboot) -> None:
        content = wanted.encode()
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, content, 0)
            if os.fstat(descriptor).st_size != SECTOR:
                os.ftruncate(descriptor, SECTOR)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if self._read() != wanted:
            raise FirmwareError(f"{self._path}: what was written does not read back")

    def _fill(self, slot: str) -> None:
        """Copy what boots a slot out of its root file system, without the other slot's command line."""
        folder, name = self._device.root / "run/graftwork", slot.lower()
        root, boot = folder / "root", folder / "boot"
        mounts = (
            (root, ["mount", "-o", "ro", f"/dev/disk/by-partlabel/rootfs-{name}", str(root)]),
            (boot, ["mount", "-o", "sync", f"/dev/disk/by-partlabel/boot-{name}", str(boot)]),
        )
        mounted: list[Path] = []
        try:
            for path, command in mounts:
                path.mkdir(parents=True, exist_ok=True)
                status, printed = self._device.run(command)
                if status:
                    raise FirmwareError(f"slot {slot} cannot be made ready to boot: {printed.strip()}")
                mounted.append(path)
            fill(root / BOOT_FILES, boot, slot)
        finally:
            for path in reversed(mounted):
                self._device.run(["umount", str(path)])


def fill(source: Path, target: Path, slot: str) -> None:
    """Make a boot partition of a slot.

    Args:
        source: BOOT_FILES of its root file system.
        target: folder of the boot partition; what it held is removed.
        slot: whose command line it gets.

    Raises:
        FirmwareError: the root file system is none for this board.
    """
    if not (source / f"cmdline-{slot.lower()}.txt").is_file():
        raise FirmwareError(f"{source}: expected the boot files of a Raspberry Pi")
    for path in target.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in sorted(source.rglob("*")):
        if path.is_file() and (name := boot_name(path.relative_to(source).as_posix(), slot)):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with (target / name).open("wb") as file:
                file.write(path.read_bytes())
                file.flush()
                os.fsync(file.fileno())


def boot_name(name: str, slot: str) -> str:
    """What a file of BOOT_FILES is called on a slot's boot partition; empty: it is for the other slot."""
    for candidate in SLOTS:
        if name == f"cmdline-{candidate.lower()}.txt":
            return "cmdline.txt" if candidate == slot else ""
    return name
