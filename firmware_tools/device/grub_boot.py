"""Boot control over GRUB's boot environment: three tries of each slot, counted by GRUB itself."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from firmware_tools.device.boot_environment import BAD, GOOD, SLOTS, TRIAL, BootEnvironment, BootState
from firmware_tools.device.slot_states import other
from firmware_tools.device.system import Device
from firmware_tools.errors import FirmwareError

log = logging.getLogger(__name__)


class GrubBoot:
    """See BootControl; errors of the boot environment go through."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.environment = BootEnvironment(device.boot_folder)

    def slot(self) -> str:
        """From the kernel's command line."""
        return self._device.slot()

    def primary(self) -> str:
        """That GRUB tries first."""
        return self.environment.read().primary

    def state_of(self, slot: str) -> str:
        """As GRUB reads it."""
        return self.environment.read().state_of(slot)

    def set_primary(self, slot: str) -> None:
        """A slot that is not good starts with all its tries."""
        state = self.environment.read()
        if state.state_of(slot) != GOOD:
            self._set_back(slot)
            state = state.with_state(slot, TRIAL)
        self.environment.write(replace(state, primary=slot))

    def set_state(self, slot: str, state: str) -> None:
        """The tries of a good slot begin anew."""
        found = self.environment.read()
        if state == GOOD:
            self._set_back(slot)
        self.environment.write(found.with_state(slot, state))

    def settle(self) -> None:
        """Have the slot that runs tried first, where GRUB gave the other one up: else no update could follow.

        Where neither copy is whole, GRUB booted by its defaults: all that is known to be good is what runs.
        """
        slot = self.slot()
        if not any(self.environment.copies()):
            log.warning("neither copy of the boot environment was whole; it is written anew")
            state = BootState(primary=slot).with_state(slot, GOOD).with_state(other(slot), BAD)
            self.environment.write(state)
        state = self.environment.read()
        if state.primary == slot or not self.environment.given_up(state.primary):
            return
        log.warning("slot %s was given up; slot %s is tried first from now on", state.primary, slot)
        if state.state_of(state.primary) != GOOD:
            state = state.with_state(state.primary, BAD)
        self.environment.write(replace(state, primary=slot))

    def on_trial(self) -> bool:
        """Not, where neither copy can tell."""
        return any(self.environment.copies()) and self.state_of(self.slot()) != GOOD

    def check_armed(self) -> str:
        """Both copies whole, the counts readable, the slot that runs good and tried first."""
        copies, slot = self.environment.copies(), self.slot()
        state = self.environment.read()
        if any(copy is None for copy in copies):
            # One change mends it; but an update must not begin on a single copy.
            self.environment.write(state)
            raise FirmwareError("one copy of the boot environment was damaged and is written anew: try again")
        if self.environment.tries() is None:
            raise FirmwareError(
                "the boot loader's counts cannot be read: a failed update would boot for ever"
            )
        if state.state_of(slot) != GOOD:
            raise FirmwareError(
                f"slot {slot}, which runs, is {state.state_of(slot)} and not good: there would be nothing to "
                "go back to; wait until the health gate has passed"
            )
        if state.primary != slot:
            raise FirmwareError(
                f"slot {slot} runs, but {state.primary} is tried first: an update waits for a reboot, or was "
                "rolled back and the health gate has not passed since; restart the device first"
            )
        return other(slot)

    def stay(self, target: str) -> None:
        """Only where the installation came as far as making it the first one."""
        state = self.environment.read()
        if state.primary == target:
            self.environment.write(replace(state.with_state(target, BAD), primary=self.slot()))

    def facts(self) -> Mapping[str, Any]:
        """With how many copies are whole, and the tries."""
        boot = self.environment.read()
        return {
            "primary": boot.primary,
            "slot_a": boot.a_state,
            "slot_b": boot.b_state,
            "copies_whole": sum(copy is not None for copy in self.environment.copies()),
            "tries": self.environment.tries(),
        }

    def restart(self) -> Sequence[str]:
        """GRUB chooses by itself."""
        return ["systemctl", "reboot"]

    def _set_back(self, slot: str) -> None:
        tries = self.environment.tries() or dict.fromkeys(SLOTS, 0)
        self.environment.set_tries({**tries, slot: 0})
