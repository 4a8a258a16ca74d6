"""Where an update stands: a state machine without I/O; only a version that was found healthy is an update.

    offered -> downloaded -> installed -> booted -> healthy
                                  |          |         |
                                  |          |         +-- it stopped booting later
                                  |          +------------ it was unhealthy, until its tries were used up
                                  +----------------------- it never ran; in all three the slot before runs
                                                           again -> rolled back

A version that runs says nothing of an update; only the state "healthy" does, and only the gate writes it,
after the slot was marked good.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from firmware_tools.errors import FirmwareError
from runtime import whole_files

OFFERED, DOWNLOADED, INSTALLED, BOOTED = "offered", "downloaded", "installed", "booted"
HEALTHY, FAILED, ROLLED_BACK = "healthy", "failed", "rolled back"
PHASES = (OFFERED, DOWNLOADED, INSTALLED, BOOTED, HEALTHY, FAILED, ROLLED_BACK)
MAX_REASON = 160


@dataclass(frozen=True)
class UpdateState:
    """The last update of a device."""

    phase: str
    version: str
    """That the update is to."""
    before: str
    """Version that ran when it was offered."""
    slot: str = ""
    """That it was installed into."""
    reason: str = ""
    """Why it failed or was rolled back."""
    boot: str = ""
    """Identifies the boot in which it was installed: until the next one, the version before still runs."""

    def __post_init__(self) -> None:
        if not all(isinstance(value, str) for value in asdict(self).values()):
            raise ValueError(f"expected text in every field, got {self}")
        if self.phase not in PHASES:
            raise ValueError(f"phase: expected one of {', '.join(PHASES)}, got {self.phase!r}")

    @property
    def awaited(self) -> str:
        """Version that is to run: until another one is installed, the one before."""
        return self.before if self.phase in (OFFERED, DOWNLOADED) else self.version

    @property
    def text(self) -> str:
        """In a line, for operators."""
        if self.phase == ROLLED_BACK:
            return f"rolled back from {self.version} to {self.before}: {self.reason}"[:MAX_REASON]
        if self.phase == FAILED:
            return f"{self.version} failed: {self.reason}"[:MAX_REASON]
        return f"{self.phase} {self.version}"


def offered(version: str, running: str) -> UpdateState:
    """An update begins."""
    return UpdateState(OFFERED, version, running)


def downloaded(state: UpdateState) -> UpdateState:
    """The whole bundle is on the device, checked."""
    return _step(state, OFFERED, DOWNLOADED)


def installed(state: UpdateState, slot: str, boot: str) -> UpdateState:
    """The bundle is in a slot, which the boot after this one tries."""
    return replace(_step(state, DOWNLOADED, INSTALLED), slot=slot, boot=boot)


def failed(state: UpdateState, reason: str) -> UpdateState:
    """It ended before anything was to boot.

    Raises:
        FirmwareError: it has booted, or has ended already.
    """
    if state.phase not in (OFFERED, DOWNLOADED, INSTALLED):
        raise FirmwareError(f"an update that is {state.phase} cannot become {FAILED}")
    return replace(state, phase=FAILED, reason=reason[:MAX_REASON])


def on_boot(state: UpdateState | None, running: str, slot: str, boot: str, reason: str) -> UpdateState | None:
    """A system has booted; called again in the same boot, it changes nothing.

    Args:
        state: of the last update.
        running: version that runs now.
        slot: that it runs from.
        boot: identifies this boot.
        reason: why the version that was to run gave up, as far as it could write that down.
    """
    if state is not None and state.phase in (OFFERED, DOWNLOADED) and running != state.awaited:
        # Nothing of the offer was installed: what ran when it came has stopped booting.
        guess = "it ran when another version was offered, but the other slot runs now"
        return UpdateState(ROLLED_BACK, state.awaited, running, reason=(reason or guess)[:MAX_REASON])
    if state is None or state.phase not in (INSTALLED, BOOTED, HEALTHY):
        return state
    if (running, slot) == (state.version, state.slot):
        return state if state.phase == HEALTHY else replace(state, phase=BOOTED)
    if state.phase == INSTALLED and boot == state.boot:
        return state
    guess = (
        "it was healthy once, but the other slot runs now"
        if state.phase == HEALTHY
        else "it did not boot, or its installation was cut short"
    )
    return replace(state, phase=ROLLED_BACK, reason=(reason or guess)[:MAX_REASON])


def on_healthy(state: UpdateState | None, running: str, slot: str) -> UpdateState | None:
    """The slot that runs was found healthy and marked good."""
    if state is None or state.phase != BOOTED or (running, slot) != (state.version, state.slot):
        return state
    return replace(state, phase=HEALTHY)


def load(path: Path) -> UpdateState | None:
    """Read the state; None: there was no update yet, or the file is damaged."""
    try:
        values = json.loads(path.read_text("utf-8"))
        values.pop("text", None)
        return UpdateState(**values)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def save(path: Path, state: UpdateState) -> None:
    """Write the state; a power cut leaves the old one or the new one.

    Raises:
        FirmwareError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole_files.write(
            path, json.dumps({**asdict(state), "text": state.text}).encode(), whole_files.PUBLIC
        )
    except OSError as error:
        raise FirmwareError(f"{path}: cannot be written: {error.strerror}") from error


def _step(state: UpdateState, expected: str, phase: str) -> UpdateState:
    if state.phase != expected:
        raise FirmwareError(f"an update that is {state.phase} cannot become {phase}")
    return replace(state, phase=phase)
