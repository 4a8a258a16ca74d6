"""Installing an update: refused where there would be no way back, and written down at every step."""

import logging
from collections.abc import Callable
from pathlib import Path

from firmware_tools.build.spec import check_version
from firmware_tools.device import floor, updates
from firmware_tools.device.boot_control import boot_control
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
    return boot_control(device).check_armed()


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
        boot_control(device).stay(target)
        updates.save(device.state_file, updates.failed(state, reason))
        raise FirmwareError(f"the bundle is not installed: {reason}")
    log.info("version %s is in slot %s; the next boot tries it", state.version, target)
    return expected


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
