"""Boots an image in a virtual machine and plays a script of expectations over its serial line.

A script is TOML, one `[[step]]` after another, each with one of:

    boot = "A"            wait for the boot loader and the shell; the slot that must have booted, "" for any
    run = "COMMAND"       run it in the guest; `status` (0) and `contains` say what must come of it
    reboot = "B"          restart; the slot that must boot
    cut_power = true      kill the machine, and switch it on again
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from firmware_tools.errors import FirmwareError
from firmware_tools.machine import Machine
from runtime import configuration
from runtime.errors import SetupError


@dataclass(frozen=True)
class Step:
    """One step of a script."""

    boot: str | None = None
    run: str | None = None
    reboot: str | None = None
    cut_power: bool = False
    status: int = 0
    contains: str = ""
    seconds: float = 300.0

    def __post_init__(self) -> None:
        chosen = [self.boot is not None, self.run is not None, self.reboot is not None, self.cut_power]
        if sum(chosen) != 1:
            raise ValueError("expected one of boot, run, reboot, cut_power")

    @property
    def text(self) -> str:
        """For people."""
        if self.run is not None:
            return self.run
        if self.cut_power:
            return "cut the power"
        return f"boot {self.boot}" if self.boot is not None else f"reboot into {self.reboot or 'any slot'}"


@dataclass(frozen=True)
class Script:
    """What must hold."""

    step: tuple[Step, ...]


DEFAULT = Script(
    (
        Step(boot="A"),
        Step(run="cat /etc/graftwork-release"),
        Step(run="systemctl show -p Result graftwork-health.service", contains="Result=success"),
        Step(run="graftwork-firmware device status", contains="slot a         good"),
    )
)
"""The image comes up, passes its gate, and its slot is good."""


def load_script(path: Path) -> Script:
    """Read a script.

    Raises:
        FirmwareError: it is malformed; names the place.
    """
    try:
        return configuration.load(Script, path)
    except SetupError as error:
        raise FirmwareError(str(error)) from error


def play(machine: Machine, script: Script, say: Callable[[str], None]) -> None:
    """Play a script on a machine that is on.

    Args:
        machine: boots the image.
        script: what must hold.
        say: takes a line for people at each step.

    Raises:
        FirmwareError: something does not hold; says what was expected and what came.
    """
    for number, step in enumerate(script.step, start=1):
        say(f"{number}. {step.text}")
        if step.run is not None:
            answer = machine.command(step.run, step.seconds)
            if answer.status != step.status or step.contains not in answer.output:
                raise FirmwareError(
                    f"step {number}, {step.run!r}: expected status {step.status} and {step.contains!r}, got "
                    f"status {answer.status} and:\n{answer.output}"
                )
        elif step.cut_power:
            machine.cut_power()
            machine.start()
        else:
            wanted = step.boot if step.boot is not None else step.reboot
            slot = machine.booted(step.seconds) if step.boot is not None else machine.reboot(step.seconds)
            if wanted and slot != wanted:
                raise FirmwareError(f"step {number}: expected slot {wanted} to boot, got {slot}")
