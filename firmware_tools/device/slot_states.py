"""What is known of two slots where the boot loader keeps no counts: which is good, which one is to be tried.

    good    was healthy once
    trial   was just installed: the next restart tries it
    bad     holds nothing that is to boot

A trial ends with its first boot that is not the one in which it was armed: either that slot runs, or the boot
loader went back, or the trial never came about; the other slot has run since, and the trial is given up.
"""

from dataclasses import dataclass, replace

from firmware_tools.device.boot_environment import BAD, GOOD, SLOTS, STATES, TRIAL
from firmware_tools.errors import FirmwareError


@dataclass(frozen=True)
class SlotStates:
    """Of both slots."""

    a: str = GOOD
    b: str = BAD
    armed: str = ""
    """Identifies the boot in which a trial was armed; empty: none is."""

    def __post_init__(self) -> None:
        if not {self.a, self.b} <= set(STATES):
            raise ValueError(f"expected states of {STATES}, got {self}")
        if not self.armed.replace("-", "").isalnum() and self.armed:
            raise ValueError(f"expected an identifier of a boot, got {self.armed!r}")

    @property
    def trial(self) -> str | None:
        """The slot on trial."""
        return next((slot for slot in SLOTS if self.state_of(slot) == TRIAL), None)

    def state_of(self, slot: str) -> str:
        """State of a slot."""
        return self.a if slot == "A" else self.b

    def with_state(self, slot: str, state: str) -> "SlotStates":
        """The same with another state of a slot."""
        changed = replace(self, a=state) if slot == "A" else replace(self, b=state)
        return changed if changed.trial else replace(changed, armed="")

    def arm(self, slot: str, boot: str) -> "SlotStates":
        """The next restart tries a slot.

        Args:
            slot: holds a system that was just installed.
            boot: identifies this boot.
        """
        return replace(self.with_state(slot, TRIAL), armed=boot)

    def settle(self, running: str, boot: str) -> "SlotStates":
        """Give up a trial that had its boot, as the other slot runs."""
        if self.trial in (None, running) or boot == self.armed:
            return self
        return self.with_state(other(running), BAD)


def other(slot: str) -> str:
    """The slot that is not this one."""
    return next(name for name in SLOTS if name != slot)


def check_good(states: SlotStates, running: str) -> None:
    """Refuse an update where a failed one would lead back to nothing.

    Raises:
        FirmwareError: the slot that runs is not good, or a trial is under way.
    """
    if states.state_of(running) != GOOD:
        raise FirmwareError(
            f"slot {running}, which runs, is {states.state_of(running)} and not good: there would be nothing "
            "to go back to; wait until the health gate has passed"
        )
    if states.trial is not None:
        raise FirmwareError(
            f"slot {running} runs, but {states.trial} is tried first: an update waits for a reboot, or was "
            "rolled back and the health gate has not passed since; restart the device first"
        )
