"""The health gate: every boot passes it, and only then is its slot marked good. It needs no network.

A system on trial that fails writes down why, with its journal, and reboots; after its tries (three; one on
a Raspberry Pi) the boot loader goes back to the slot that was healthy before. A system that was healthy
once and is not now stays up: it can still be reached.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from firmware_tools.device import floor, updates
from firmware_tools.device.boot_control import boot_control
from firmware_tools.device.boot_environment import GOOD
from firmware_tools.device.system import Device
from firmware_tools.errors import FirmwareError
from runtime import whole_files

log = logging.getLogger(__name__)

AGENT_SECONDS = 300.0
MOST_RESTARTS = 3
JOURNAL_LINES = "400"
KEPT_FAILURES = 8
LEAST_FREE = 16 * 1024 * 1024
_ON_ITS_WAY = ("activating", "inactive", "reloading", "deactivating")
"""States of a service that starts, or starts again after it failed."""


@dataclass(frozen=True)
class Check:
    """One question to the system."""

    name: str
    ask: Callable[[Device], str]
    """Empty: all is well; else what is not."""


def check_storage(device: Device) -> str:
    """Whether data and identity take writes."""
    for folder in (device.data, device.root / "identity"):
        probe = folder / ".health"
        try:
            whole_files.write(probe, b"", whole_files.SECRET)
            probe.unlink()
        except OSError as error:
            return f"{folder}: {error.strerror}"
    free = device.run(["df", "--output=avail", "-B1", str(device.data)])[1].split()[-1:]
    if free and free[0].isdecimal() and int(free[0]) < LEAST_FREE:
        return f"{device.data}: {int(free[0]):,} bytes are free, expected {LEAST_FREE:,}"
    return ""


def check_agent(device: Device) -> str:
    """Whether the agent said that it is ready; a device that does not know who it is yet has none."""
    if not device.agent_configuration.exists():
        return ""
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        command = ["systemctl", "show", "-p", "ActiveState", "-p", "NRestarts", "graftwork-agent.service"]
        shown = dict(line.split("=", 1) for line in device.run(command)[1].splitlines() if "=" in line)
        state, counted = shown.get("ActiveState", "unknown"), shown.get("NRestarts", "")
        restarts = int(counted) if counted.isdecimal() else 0
        if state == "active":
            return ""
        if restarts >= MOST_RESTARTS:
            return f"graftwork-agent.service was started {restarts + 1} times and did not become ready"
        if state not in _ON_ITS_WAY or time.monotonic() > deadline:
            return f"graftwork-agent.service is {state}, expected active"
        time.sleep(1)


def check_engine(device: Device) -> str:
    """Whether what the agent trains with can be loaded on this system."""
    status, printed = device.run(["/usr/bin/graftwork-firmware", "device", "try-engine"], limit=180)
    return "" if status == 0 else f"the training engine does not start: {printed.strip()[-200:]}"


CHECKS = (Check("storage", check_storage), Check("engine", check_engine), Check("agent", check_agent))


def pass_gate(device: Device, checks: Sequence[Check] = CHECKS) -> str:
    """Ask everything, and mark the slot good if all is well; returns what is not, empty: all is.

    Raises:
        FirmwareError: what decides on the next boot cannot be written, or the image is none of ours.
    """
    control = boot_control(device)
    running, slot = device.release()["version"], control.slot()
    state = updates.load(device.state_file)
    reason = last_failure(device, state.awaited) if state is not None else ""
    state = updates.on_boot(state, running, slot, device.boot_id(), reason)
    if state is not None:
        updates.save(device.state_file, state)
    for check in checks:
        wrong = check.ask(device)
        if wrong:
            reason = f"{check.name}: {wrong}"
            log.error("not healthy: %s", reason)
            keep_evidence(device, running, reason)
            return reason
        log.info("healthy: %s", check.name)
    control.settle()
    control.set_state(slot, GOOD)
    # Read again: an update may have been installed while the checks ran.
    state = updates.on_healthy(updates.load(device.state_file), running, slot)
    if state is not None:
        updates.save(device.state_file, state)
    try:
        floor.note_healthy(device, running)
    except FirmwareError as error:  # the next boot's gate writes it down; this system is no worse for it
        log.error("%s", error)
    log.info("version %s in slot %s is healthy and marked good", running, slot)
    return ""


def on_trial(device: Device) -> bool:
    """Whether the slot that runs was never found healthy; not, where that cannot be told."""
    return boot_control(device).on_trial()


def keep_evidence(device: Device, version: str, reason: str) -> None:
    """Write reason and journal where they outlast the system; the newest few are kept."""
    folder = device.failures
    _, journal = device.run(["journalctl", "--boot", "--no-pager", "--lines", JOURNAL_LINES], limit=60)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in folder.glob(f"{'[0-9]' * 8}-*.json"))
        number = int(names[-1][:8]) + 1 if names else 1
        content = {"version": version, "reason": reason, "journal": journal}
        whole_files.write(
            folder / f"{number:08}-{version}.json", json.dumps(content).encode(), whole_files.PUBLIC
        )
        for name in names[: -(KEPT_FAILURES - 1)]:
            (folder / name).unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        log.error("the reason could not be kept: %s", error)


def last_failure(device: Device, version: str = "") -> str:
    """The newest reason that was kept, of a version or of any; empty: none was."""
    for path in sorted(device.failures.glob("*.json"), reverse=True):
        try:
            found = json.loads(path.read_text("utf-8"))
            if version in ("", found["version"]):
                return str(found["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return ""


__all__ = ["CHECKS", "Check", "FirmwareError", "keep_evidence", "last_failure", "on_trial", "pass_gate"]
