"""Boot control over `nvbootctrl` of NVIDIA Jetson (Orin): UEFI counts the boots of each root file system.

UEFI changes slots only while root file system redundancy is on (ROOTFS_AB=1 when it was flashed). An image
that was written straight to NVMe leaves it off: then there is one slot for UEFI, and a failed update would
not lead back. So every update is refused until the board says that it is on. Which slots were healthy is
written on the data partition, as NVIDIA's tools keep only whether a slot boots.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from firmware_tools.device.boot_environment import BAD, GOOD, SLOTS
from firmware_tools.device.slot_states import SlotStates, check_good, other
from firmware_tools.device.system import Device
from firmware_tools.errors import FirmwareError
from runtime import whole_files

PARTITIONS = {"A": "APP", "B": "APP_b"}
REDUNDANCY = "sys/firmware/efi/efivars/RootfsRedundancyLevel-781e084c-a330-417c-b678-38e696380cb9"
"""Four bytes of attributes, then the level; 1: two root file systems."""
TRIAL = "update/trial"
"""Below data; it is there while a slot is on trial, for the unit that restarts a system without a gate."""
_SLOT = re.compile(r"slot: (\d),\s+retry_count: (\d+),\s+status: (\w+)")


class JetsonBoot:
    """See BootControl."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._path = device.data / "update/slots.json"

    def slot(self) -> str:
        """As NVIDIA's tool says; the same command line boots both slots."""
        number = self._ask("get-current-slot").strip()
        if number not in ("0", "1"):
            raise FirmwareError(f"nvbootctrl get-current-slot: expected 0 or 1, got {number!r}")
        return SLOTS[int(number)]

    def primary(self) -> str:
        """The slot on trial, until it was given up; else the one that runs."""
        return self._states().trial or self.slot()

    def state_of(self, slot: str) -> str:
        """As written down."""
        return self._states().state_of(slot)

    def set_primary(self, slot: str) -> None:
        """Write down the trial, then tell UEFI."""
        states = self._states()
        if states.state_of(slot) != GOOD:
            self._write(states.arm(slot, self._device.boot_id()))
        self._ask("set-active-boot-slot", str(SLOTS.index(slot)))

    def set_state(self, slot: str, state: str) -> None:
        """UEFI is told of a good slot only while it runs, as its tool marks no other."""
        if state == GOOD and slot == self.slot():
            self._ask("mark-boot-successful")
        self._write(self._states().with_state(slot, state))

    def settle(self) -> None:
        """A trial that UEFI gave up is over; the slot that runs stays the active one."""
        states, running = self._states(), self.slot()
        settled = states.settle(running, self._device.boot_id())
        if settled != states:
            self._write(settled)
            self._ask("set-active-boot-slot", str(SLOTS.index(running)))

    def on_trial(self) -> bool:
        """As written down."""
        return self.state_of(self.slot()) != GOOD

    def check_armed(self) -> str:
        """Redundancy is on in the firmware and for the tool, both partitions are there, both slots boot."""
        running = self.slot()
        target = other(running)
        try:
            level = (self._device.root / REDUNDANCY).read_bytes()[4:]
        except OSError:
            level = b""
        slots = {
            SLOTS[int(number)]: (int(tries), status)
            for number, tries, status in _SLOT.findall(self._ask("dump-slots-info"))
            if number in ("0", "1")
        }
        if int.from_bytes(level, "little") != 1 or len(slots) != len(SLOTS):
            raise FirmwareError(
                "root file system redundancy is off: a failed update would not lead back. It is switched on "
                "by flashing with ROOTFS_AB=1 (see flash-plan.sh of `build`); an image that was written "
                "straight to the disk leaves it off"
            )
        for name in PARTITIONS.values():
            if not (self._device.root / "dev/disk/by-partlabel" / name).exists():
                raise FirmwareError(f"partition {name} is missing: the disk was not flashed with two slots")
        for slot, (tries, status) in slots.items():
            if status != "normal" or not tries:
                raise FirmwareError(
                    f"slot {slot} is {status} with {tries} tries left, expected normal: reset it in the UEFI "
                    "menu (NVIDIA Configuration, L4T Configuration) first"
                )
        check_good(self._states(), running)
        return target

    def stay(self, target: str) -> None:
        """The trial is called off, and UEFI told to stay."""
        states = self._states()
        if states.trial == target:
            self._ask("set-active-boot-slot", str(SLOTS.index(self.slot())))
            self._write(states.with_state(target, BAD))

    def facts(self) -> Mapping[str, Any]:
        """With what NVIDIA's tool says of both slots."""
        states = self._states()
        return {
            "primary": self.primary(),
            "slot_a": states.a,
            "slot_b": states.b,
            "nvbootctrl": self._ask("dump-slots-info").split("\n", 1)[0].strip(),
        }

    def restart(self) -> Sequence[str]:
        """UEFI chooses by itself."""
        return ["systemctl", "reboot"]

    def _states(self) -> SlotStates:
        """As written down; where that is missing, what runs is taken to be good: it is all that there is."""
        try:
            return SlotStates(**json.loads(self._path.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            running = self.slot()
            return SlotStates().with_state(running, GOOD).with_state(other(running), BAD)

    def _write(self, states: SlotStates) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        trial = self._device.data / TRIAL
        if states.trial:
            whole_files.write(trial, b"", whole_files.PUBLIC)
        whole_files.write(self._path, json.dumps(asdict(states)).encode(), whole_files.PUBLIC)
        if not states.trial:
            trial.unlink(missing_ok=True)

    def _ask(self, *words: str) -> str:
        status, printed = self._device.run(["nvbootctrl", "-t", "rootfs", *words], limit=30)
        if status:
            raise FirmwareError(f"nvbootctrl -t rootfs {' '.join(words)}: {printed.strip() or status}")
        return printed
