"""One interface to what decides which slot boots: RAUC, health gate, installing and status see this alone."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from firmware_tools.device.grub_boot import GrubBoot
from firmware_tools.device.jetson_boot import JetsonBoot
from firmware_tools.device.system import Device
from firmware_tools.device.tryboot import Tryboot
from firmware_tools.errors import FirmwareError


class BootControl(Protocol):
    """Slots are "A" and "B", states those of boot_environment.py."""

    def slot(self) -> str:
        """The slot that runs."""
        ...

    def primary(self) -> str:
        """The slot that the next restart tries first."""
        ...

    def state_of(self, slot: str) -> str:
        """State of a slot: good, trial or bad."""
        ...

    def set_primary(self, slot: str) -> None:
        """Have the next restart try a slot; one that is not good is on trial from now on."""
        ...

    def set_state(self, slot: str, state: str) -> None:
        """Mark a slot good, as it was found healthy, or bad, as it is about to be written."""
        ...

    def settle(self) -> None:
        """Before the slot that runs is marked good: have it tried first, where the other one was given up."""
        ...

    def on_trial(self) -> bool:
        """Whether the slot that runs was never found healthy; not, where that cannot be told."""
        ...

    def check_armed(self) -> str:
        """The slot that an update goes into, once it is sure that a failed one leads back; else raises."""
        ...

    def stay(self, target: str) -> None:
        """After an installation that failed late: the slot that was written does not boot."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """For `device status`: primary, slot_a, slot_b and more."""
        ...

    def restart(self) -> Sequence[str]:
        """The command that restarts the device into the primary slot."""
        ...


def boot_control(device: Device) -> BootControl:
    """What decides on a device.

    Raises:
        FirmwareError: its image was made for another kind of device than these programs know.
    """
    match device.boot_name():
        case "grub-efi":
            return GrubBoot(device)
        case "rpi-tryboot":
            return Tryboot(device)
        case "jetson":
            return JetsonBoot(device)
    raise FirmwareError(
        f"/etc/graftwork-boot: expected grub-efi, rpi-tryboot or jetson, got {device.boot_name()!r}"
    )
