"""A device in a folder: real files, replaced programs, and a boot loader that decides as the real one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from firmware_tools.device.boot_backend import handle
from firmware_tools.device.boot_control import boot_control
from firmware_tools.device.boot_environment import factory_files
from firmware_tools.device.system import Device
from tests.firmware_tools.boot_loader import boot


class PowerCutError(Exception):
    """The device went off."""


@dataclass
class Programs:
    """What the programs of a device answer."""

    agent: list[str] = field(default_factory=lambda: ["ActiveState=active\nNRestarts=0\n"])
    """Answers of systemctl show, one after another; the last one stays."""
    engine: tuple[int, str] = (0, "onnxruntime 1\n")
    free: str = "Avail\n9999999999\n"
    bundle: str = "1.1.0"
    """Version of the bundle that RAUC is given; empty: it is not signed as the device expects."""
    compatible: str = "graftwork-x86_64-uefi"
    """Of that bundle."""
    rauc_error: str = ""
    """Why RAUC fails half-way; empty: it installs."""
    cut_after: int = 99
    """Steps of RAUC's installation after which the power is cut."""
    called: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class FakeDevice(Device):
    """A device below `root`."""

    programs: Programs = field(default_factory=Programs)
    slots: dict[str, str] = field(default_factory=lambda: {"A": "1.0.0", "B": ""})
    """Version that each slot holds; "half": it is half-written."""

    def run(self, command: Sequence[str], *, limit: float = 0.0) -> tuple[int, str]:
        """Answer as the program would."""
        assert limit >= 0
        self.programs.called.append(tuple(command))
        match list(command):
            case ["rauc", *_]:
                return self._rauc(command)
            case ["systemctl", "show", *_]:
                answers = self.programs.agent
                return 0, answers.pop(0) if len(answers) > 1 else answers[0]
            case ["df", *_]:
                return 0, self.programs.free
            case ["journalctl", *_]:
                return 0, "agent: cannot start\n" * 3
            case ["/usr/bin/graftwork-firmware", "device", "try-engine"]:
                return self.programs.engine
            case ["systemctl", "reboot"]:
                return 0, ""
        return 127, f"{command[0]} is not installed"

    def restart(self, *, power_cut: bool = False) -> str:
        """Boot; returns the slot. A half-written one ends the test. GRUB knows nothing of power cuts."""
        assert isinstance(power_cut, bool)
        slot = boot(self.boot_folder)
        assert self.slots[slot] not in ("", "half"), f"slot {slot} holds {self.slots[slot]!r}"
        self.start_in(slot)
        return slot

    def start_in(self, slot: str) -> None:
        """Have a slot run."""
        proc = self.root / "proc"
        (proc / "cmdline").write_text(f"root=PARTUUID=x ro rauc.slot={slot} panic=10\n")
        identifier = proc / "sys/kernel/random/boot_id"
        identifier.write_text(f"{int(identifier.read_text() or 0) + 1}\n")
        release = f"compatible=graftwork-x86_64-uefi\nversion={self.slots[slot]}\n"
        (self.root / "etc/graftwork-release").write_text(release)

    def begin_writing(self, target: str) -> None:
        """The slot holds half a file system."""
        self.slots[target] = "half"

    def end_writing(self, target: str) -> None:
        """The slot holds the bundle's system."""
        self.slots[target] = self.programs.bundle

    def _rauc(self, command: Sequence[str]) -> tuple[int, str]:
        if command[1] == "install":
            return self._install()
        if not self.programs.bundle:
            return 1, "signature verification failed: unable to get local issuer certificate\n"
        return 0, (
            f"RAUC_FORMAT='verity'\nRAUC_MF_VERSION='{self.programs.bundle}'\n"
            f"RAUC_MF_COMPATIBLE='{self.programs.compatible}'\n"
        )

    def _install(self) -> tuple[int, str]:
        """The calls that RAUC makes, and the slot that it writes, in its order."""
        control = boot_control(self)
        target = "B" if control.slot() == "A" else "A"

        steps = (
            lambda: handle(["get-primary"], control),
            lambda: handle(["set-state", target, "bad"], control),
            lambda: self.begin_writing(target),
            lambda: self.end_writing(target),
            lambda: handle(["set-primary", target], control),
        )
        for number, step in enumerate(steps):
            if number == self.programs.cut_after:
                raise PowerCutError
            if number == 3 and self.programs.rauc_error:
                return 1, f"installing\nLastError: {self.programs.rauc_error}\nInstalling failed\n"
            step()
        if self.programs.cut_after == len(steps):
            raise PowerCutError
        return 0, "Installing succeeded\n"


def new_device(folder: Path) -> FakeDevice:
    """A device as it leaves the factory, booted once."""
    for name in ("boot/env", "data/graftwork", "identity", "etc", "proc/sys/kernel/random"):
        (folder / name).mkdir(parents=True)
    for name, content in factory_files().items():
        (folder / "boot/env" / name).write_bytes(content)
    (folder / "data/graftwork/agent.toml").write_text("")
    (folder / "proc/sys/kernel/random/boot_id").write_text("")
    device = FakeDevice(folder)
    assert device.restart() == "A"
    return device
