"""RAUC's way to the boot control: its "custom" bootloader backend calls this program.

get-primary                   prints the slot that is tried first
set-primary SLOT              tries it first from now on; a slot that is not good is on trial
get-state SLOT                prints good or bad
set-state SLOT good|bad       after an installation, or when a system was found healthy
get-current                   prints the slot that runs
"""

import sys
from collections.abc import Sequence

from firmware_tools.device.boot_control import BootControl, boot_control
from firmware_tools.device.boot_environment import BAD, GOOD, SLOTS
from firmware_tools.device.system import Device
from firmware_tools.errors import FirmwareError


def main(arguments: Sequence[str] | None = None, device: Device | None = None) -> int:
    """Do what RAUC asks; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        answer = handle(words, boot_control(device or Device()))
    except (FirmwareError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if answer:
        print(answer)
    return 0


def handle(words: Sequence[str], control: BootControl) -> str:
    """Answer one call.

    Raises:
        FirmwareError: it is none that RAUC makes, or what decides cannot be read.
    """
    match words:
        case ["get-primary"]:
            return control.primary()
        case ["set-primary", slot] if slot in SLOTS:
            control.set_primary(slot)
        case ["get-state", slot] if slot in SLOTS:
            return GOOD if control.state_of(slot) == GOOD else BAD
        case ["set-state", slot, ("good" | "bad") as wanted] if slot in SLOTS:
            control.set_state(slot, wanted)
        case ["get-current"]:
            return control.slot()
        case _:
            raise FirmwareError(f"expected a call as RAUC makes it, got {' '.join(words)!r}")
    return ""
