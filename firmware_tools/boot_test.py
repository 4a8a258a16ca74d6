"""Boots an image in a virtual machine and plays a script of expectations over its serial line.

A script is TOML, one `[[step]]` after another, each with one of:

    boot = "A"            wait for the boot loader and the shell; the slot that must have booted, "" for any
    run = "COMMAND"       run it in the guest; `status` (0) and `contains` say what must come of it
    reboot = "B"          restart; the slot that must boot
    loader = "A"          wait for the boot loader alone; the slot that it must choose
    send = "COMMAND"      type it, and wait for nothing
    cut_power = true      kill the machine, and switch it on again
    host = "COMMAND"      run it on this machine, by the shell, e.g. to wait for what a server has received
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from firmware_tools.errors import FirmwareError
from firmware_tools.machine import Answer, Machine
from runtime import configuration
from runtime.errors import SetupError


@dataclass(frozen=True)
class Step:
    """One step of a script."""

    boot: str | None = None
    run: str | None = None
    reboot: str | None = None
    loader: str | None = None
    send: str | None = None
    cut_power: bool = False
    host: str | None = None
    status: int = 0
    contains: str = ""
    seconds: float = 300.0

    def __post_init__(self) -> None:
        chosen = [self.boot, self.run, self.reboot, self.loader, self.send, self.host]
        if sum(value is not None for value in chosen) + self.cut_power != 1:
            raise ValueError("expected one of boot, run, reboot, loader, send, host, cut_power")

    @property
    def text(self) -> str:
        """For people."""
        if self.run is not None or self.send is not None:
            return self.run or self.send or ""
        if self.host is not None:
            return f"outside: {self.host}"
        if self.loader is not None:
            return f"the boot loader chooses {self.loader or 'a slot'}"
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
            _check(step, number, machine.command(step.run, step.seconds))
        elif step.host is not None:
            _outside(step, number)
        elif step.cut_power:
            machine.cut_power()
            machine.start()
        elif step.send is not None:
            machine.send(step.send)
        else:
            _boot(machine, step, number)


def _outside(step: Step, number: int) -> None:
    try:
        result = subprocess.run(  # noqa: S603 - the script's own
            ["/bin/sh", "-c", step.host or ""],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=step.seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise FirmwareError(f"step {number}, {step.host!r}: did not end within {step.seconds:g} s") from error
    _check(step, number, Answer(result.returncode, result.stdout), result.stderr)


def _check(step: Step, number: int, answer: Answer, errors: str = "") -> None:
    if answer.status != step.status or step.contains not in answer.output:
        raise FirmwareError(
            f"step {number}, {step.run or step.host!r}: expected status {step.status} and {step.contains!r}, "
            f"got status {answer.status} and:\n{answer.output}{errors}"
        )


def _boot(machine: Machine, step: Step, number: int) -> None:
    if step.loader is not None:
        wanted, slot = step.loader, machine.chosen_slot(step.seconds)
    elif step.boot is not None:
        wanted, slot = step.boot, machine.booted(step.seconds)
    else:
        wanted, slot = step.reboot or "", machine.reboot(step.seconds)
    if wanted and slot != wanted:
        raise FirmwareError(f"step {number}: expected slot {wanted} to boot, got {slot}")
