"""Boards in folders: a Raspberry Pi whose firmware reads autoboot.txt, a Jetson whose UEFI counts boots.

Both boot as their makers' documents say; that real boards do so is not shown by this.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from firmware_tools.device.boot_control import boot_control
from firmware_tools.device.jetson_boot import REDUNDANCY
from firmware_tools.device.tryboot import AUTOBOOT, BOOT_FILES, Autoboot
from tests.firmware_tools.fake_device import FakeDevice, new_device

TOOL = Path(__file__).with_name("fake_nvbootctrl.py")


@dataclass(frozen=True)
class FakePi(FakeDevice):
    """Its media lie in the folder `media`, one folder for each partition."""

    def run(self, command: Sequence[str], *, limit: float = 0.0) -> tuple[int, str]:
        """Mounts are links."""
        match list(command):
            case ["mount", "-o", _, source, target]:
                self.programs.called.append(tuple(command))
                media = self.root / "media" / Path(source).name
                if not media.is_dir():
                    return 32, f"mount: {source}: wrong fs type"
                Path(target).rmdir()
                Path(target).symlink_to(media)
                return 0, ""
            case ["umount", target]:
                Path(target).unlink()
                return 0, ""
        return super().run(command, limit=limit)

    def restart(self, *, power_cut: bool = False) -> str:
        """Boot as the firmware does; what boots is what the boot partition's command line names."""
        flag = not power_cut and "--reboot-argument=0 tryboot" in boot_control(self).restart()
        partition, section = "", ""
        for line in (self.boot_folder / AUTOBOOT).read_text("ascii").splitlines():
            section = line if line.startswith("[") else section
            if line.startswith("boot_partition=") and section in ("[all]", "[tryboot]"[: 9 if flag else 0]):
                partition = line.partition("=")[2]
        files = self.root / "media" / {"2": "boot-a", "3": "boot-b"}[partition]
        slot = (files / "cmdline.txt").read_text().partition("rauc.slot=")[2][0]
        tree = self.root / "proc/device-tree/chosen/bootloader"
        (tree / "tryboot").write_bytes(bytes((0, 0, 0, flag)))
        assert (files / "kernel8.img").read_text() == self.slots[slot] not in ("", "half")
        self.start_in(slot)
        return slot

    def end_writing(self, target: str) -> None:
        """The slot holds the bundle's system."""
        super().end_writing(target)
        hold(self, target, self.programs.bundle)


def new_pi(folder: Path) -> FakePi:
    """A Raspberry Pi as it leaves the factory, booted once."""
    new_device(folder)
    for path in (folder / "boot/env").iterdir():
        path.unlink()
    for name in ("proc/device-tree/chosen/bootloader", "dev", "media/boot-a", "media/boot-b"):
        (folder / name).mkdir(parents=True)
    (folder / "dev/vcio").touch()
    (folder / "etc/graftwork-boot").write_text("rpi-tryboot\n")
    (folder / "boot/env" / AUTOBOOT).write_bytes(Autoboot().encode())
    device = FakePi(folder)
    hold(device, "A", "1.0.0")
    (folder / "media/boot-a/kernel8.img").write_text("1.0.0")
    (folder / "media/boot-a/cmdline.txt").write_text("rauc.slot=A")
    assert device.restart() == "A"
    return device


def hold(device: FakePi, slot: str, version: str) -> None:
    """Have a slot hold a system, with what its boot partition is to be filled with."""
    files = device.root / f"media/rootfs-{slot.lower()}" / BOOT_FILES
    (files / "overlays").mkdir(parents=True, exist_ok=True)
    (files / "kernel8.img").write_text(version)
    (files / "overlays/README").write_text("overlays")
    for name in "ab":
        (files / f"cmdline-{name}.txt").write_text(f"root=PARTUUID={name} rauc.slot={name.upper()}")


@dataclass(frozen=True)
class FakeJetson(FakeDevice):
    """NVIDIA's tool is a program of its own; its variables lie in the file `uefi`."""

    def run(self, command: Sequence[str], *, limit: float = 0.0) -> tuple[int, str]:
        """Run the program that plays NVIDIA's."""
        if command[0] != "nvbootctrl":
            return super().run(command, limit=limit)
        self.programs.called.append(tuple(command))
        done = subprocess.run(
            [sys.executable, TOOL, self.root / "uefi", *command[1:]],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def restart(self, *, power_cut: bool = False) -> str:
        """Boot as UEFI does: each boot of the active slot takes a try; without any, the other one boots."""
        assert isinstance(power_cut, bool)
        uefi = json.loads((self.root / "uefi").read_text())
        slot = uefi["active"]
        if not uefi["tries"][slot]:
            uefi["status"][slot] = "unbootable"
            slot = uefi["active"] = 1 - slot
        uefi["tries"][slot] -= 1
        uefi["current"] = slot
        (self.root / "uefi").write_text(json.dumps(uefi))
        assert self.slots["AB"[slot]] not in ("", "half")
        self.start_in("AB"[slot])
        return "AB"[slot]


def new_jetson(folder: Path) -> FakeJetson:
    """A Jetson that was flashed with ROOTFS_AB=1, booted once."""
    new_device(folder)
    (folder / "etc/graftwork-boot").write_text("jetson\n")
    uefi = {"current": 0, "active": 0, "tries": [3, 3], "status": ["normal", "normal"], "slots": 2}
    (folder / "uefi").write_text(json.dumps(uefi))
    (folder / REDUNDANCY).parent.mkdir(parents=True)
    (folder / REDUNDANCY).write_bytes(b"\x07\x00\x00\x00\x01\x00\x00\x00")
    names = folder / "dev/disk/by-partlabel"
    names.mkdir(parents=True)
    for name in ("APP", "APP_b"):
        (names / name).touch()
    device = FakeJetson(folder, slots={"A": "1.0.0", "B": "1.0.0"})
    assert device.restart() == "A"
    return device
