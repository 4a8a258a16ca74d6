"""RAUC's way to the boot environment: its "custom" bootloader backend calls this program.

get-primary                   prints the slot that is tried first
set-primary SLOT              tries it first from now on; a slot that is not good is on trial
get-state SLOT                prints good or bad
set-state SLOT good|bad       after an installation, or when a system was found healthy
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from firmware_tools.device.boot_environment import BAD, GOOD, SLOTS, TRIAL, BootEnvironment
from firmware_tools.errors import FirmwareError

FOLDER = Path("/boot/env")


def main(arguments: Sequence[str] | None = None, folder: Path = FOLDER) -> int:
    """Do what RAUC asks; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        answer = handle(words, BootEnvironment(folder))
    except (FirmwareError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if answer:
        print(answer)
    return 0


def handle(words: Sequence[str], environment: BootEnvironment) -> str:
    """Answer one call.

    Raises:
        FirmwareError: it is none that RAUC makes, or the boot environment is damaged.
    """
    state = environment.read()
    match words:
        case ["get-primary"]:
            return state.primary
        case ["set-primary", slot] if slot in SLOTS:
            if state.state_of(slot) != GOOD:
                _set_back(environment, slot)
                state = state.with_state(slot, TRIAL)
            environment.write(replace(state, primary=slot))
        case ["get-state", slot] if slot in SLOTS:
            return GOOD if state.state_of(slot) == GOOD else BAD
        case ["set-state", slot, ("good" | "bad") as wanted] if slot in SLOTS:
            if wanted == GOOD:
                _set_back(environment, slot)
            environment.write(state.with_state(slot, wanted))
        case ["get-current"]:
            return booted_slot(Path("/proc/cmdline").read_text("ascii"))
        case _:
            raise FirmwareError(f"expected a call as RAUC makes it, got {' '.join(words)!r}")
    return ""


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


def _set_back(environment: BootEnvironment, slot: str) -> None:
    tries = environment.tries() or dict.fromkeys(SLOTS, 0)
    environment.set_tries({**tries, slot: 0})
