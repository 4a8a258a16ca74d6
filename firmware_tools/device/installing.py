"""Installing an update: refused where there would be no way back, and written down at every step."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from firmware_tools.build.spec import check_version
from firmware_tools.device import floor, updates
from firmware_tools.device.boot_environment import BAD, GOOD, SLOTS, BootEnvironment
from firmware_tools.device.system import Device
from firmware_tools.device.updates import UpdateState
from firmware_tools.errors import FirmwareError

log = logging.getLogger(__name__)

Version = Callable[[Path], str]
"""(bundle) -> the version that it says it has."""


def check_armed(device: Device) -> str:
    """The slot that an update would go into, once it is sure that a failed one leads back.

    Raises:
        FirmwareError: says what is missing.
    """
    environment = BootEnvironment(device.boot_folder)
    copies, slot = environment.copies(), device.slot()
    state = environment.read()
    if any(copy is None for copy in copies):
        # One change mends it; but an update must not begin on a single copy.
        environment.write(state)
        raise FirmwareError("one copy of the boot environment was damaged and is written anew: try again")
    if environment.tries() is None:
        raise FirmwareError("the boot loader's counts cannot be read: a failed update would boot for ever")
    if state.state_of(slot) != GOOD:
        raise FirmwareError(
            f"slot {slot}, which runs, is {state.state_of(slot)} and not good: there would be nothing to go "
            "back to; wait until the health gate has passed"
        )
    if state.primary != slot:
        raise FirmwareError(
            f"slot {slot} runs, but {state.primary} is tried first: an update waits for a reboot, or was "
            "rolled back and the health gate has not passed since; restart the device first"
        )
    return next(other for other in SLOTS if other != slot)


def install(
    device: Device, bundle: Path, version_of: Version, *, allow_downgrade: bool = False
) -> UpdateState:
    """Check that there is a way back, and install a bundle that is on the device; the next boot tries it.

    Args:
        device: installs it.
        bundle: file.
        version_of: reads the version that it says it has.
        allow_downgrade: take a version below the one that runs, or that was healthy; never below the floor.

    Raises:
        FirmwareError: it is refused, by us or by RAUC, with the reason. What ran goes on.
    """
    running = device.release()["version"]
    target = check_armed(device)
    version = check_version(version_of(bundle))
    floor.check(device, version, allow_downgrade=allow_downgrade)
    state = updates.offered(version, running)
    updates.save(device.state_file, state)
    state = updates.downloaded(state)
    updates.save(device.state_file, state)
    # Before the installation: a power cut after its last step must not leave a version that nobody expects.
    expected = updates.installed(state, target, device.boot_id())
    updates.save(device.state_file, expected)
    status, printed = device.run(["rauc", "install", str(bundle)])
    if status:
        reason = _last_error(printed)
        _stay(device, target)
        updates.save(device.state_file, updates.failed(state, reason))
        raise FirmwareError(f"the bundle is not installed: {reason}")
    log.info("version %s is in slot %s; the next boot tries it", state.version, target)
    return expected


def _stay(device: Device, target: str) -> None:
    """After a failure that came late: the slot that was written does not boot."""
    environment = BootEnvironment(device.boot_folder)
    state = environment.read()
    if state.primary == target:
        environment.write(replace(state.with_state(target, BAD), primary=device.slot()))


def bundle_version(device: Device, bundle: Path) -> str:
    """The version in a bundle's manifest; RAUC checks its signature.

    Raises:
        FirmwareError: the bundle is not signed as this device expects, is for other boards, or is none.
    """
    status, printed = device.run(["rauc", "info", "--output-format=shell", str(bundle)])
    said = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
    if status or not {"RAUC_MF_VERSION", "RAUC_MF_COMPATIBLE"} <= set(said):
        raise FirmwareError(f"{bundle}: {_last_error(printed)}")
    compatible, own = said["RAUC_MF_COMPATIBLE"].strip("'\""), device.release()["compatible"]
    if compatible != own:  # RAUC refuses it as well, but only once it is said to be installed
        raise FirmwareError(f"{bundle} is for {compatible}, and this device is {own}")
    return said["RAUC_MF_VERSION"].strip("'\"")


def _last_error(printed: str) -> str:
    """What RAUC says at the end."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    for line in reversed(lines):
        if "LastError:" in line:
            return line.partition("LastError:")[2].strip()[:300]
    return (lines[-1] if lines else "rauc said nothing")[:300]
