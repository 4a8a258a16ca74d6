"""The lowest version that this device installs, whoever signed the bundle.

    image    the floor that the image was built with (`build --floor`); RAUC knows it, too
    signed   the highest floor that a signed index named
    healthy  the highest version that was ever marked good here

Nothing goes below the first two. Below what runs, or was good once, goes only who says so.
"""

import json
import logging
from dataclasses import asdict, dataclass, replace

from firmware_tools.device.system import Device
from firmware_tools.errors import FirmwareError
from firmware_tools.versions import highest, numbers
from runtime import whole_files

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Floor:
    """What lasts of it, on data."""

    signed: str = ""
    healthy: str = ""

    def __post_init__(self) -> None:
        highest(self.signed, self.healthy)  # both are versions, or empty


def load(device: Device) -> Floor:
    """Read it; where it cannot be read, only what the image and the version that runs say holds."""
    path = device.data / "update/floor.json"
    try:
        return Floor(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return Floor()
    except (OSError, ValueError, TypeError, FirmwareError) as error:
        log.warning("%s cannot be read, and is written anew: %s", path, error)
        return Floor()


def note_healthy(device: Device, version: str) -> None:
    """A version was marked good.

    Raises:
        FirmwareError: it cannot be written down.
    """
    before = load(device)
    _save(device, before, replace(before, healthy=highest(before.healthy, version)))


def note_signed(device: Device, version: str) -> None:
    """A signed index named a floor for these boards.

    Raises:
        FirmwareError: it cannot be written down.
    """
    before = load(device)
    _save(device, before, replace(before, signed=highest(before.signed, version)))


def lowest(device: Device) -> str:
    """The version that nothing goes below; empty: there is none."""
    return highest(device.release().get("floor", ""), load(device).signed)


def check(device: Device, version: str, *, allow_downgrade: bool) -> None:
    """Refuse a version that is too low.

    Args:
        device: that is to run it.
        version: of a bundle.
        allow_downgrade: below what runs and what was good once, but never below the floor.

    Raises:
        FirmwareError: says which rule it breaks, and what allows it, if anything does.
    """
    floor, running, healthy = lowest(device), device.release()["version"], load(device).healthy
    if floor and numbers(version) < numbers(floor):
        raise FirmwareError(
            f"the bundle is version {version}, below {floor}: the lowest that this device's image, or a "
            "signed index of releases, allows; nothing on the device goes below it"
        )
    if allow_downgrade:
        return
    if numbers(version) < numbers(running):
        raise FirmwareError(
            f"the bundle is version {version}, and {running} runs: an older version may have faults that are "
            "known by now; if it must be, use --allow-downgrade"
        )
    if healthy and numbers(version) < numbers(healthy):
        raise FirmwareError(
            f"the bundle is version {version}, and {healthy} was healthy here before: an older version may "
            "have faults that are known by now; if it must be, use --allow-downgrade"
        )


def _save(device: Device, before: Floor, floor: Floor) -> None:
    path = device.data / "update/floor.json"
    if floor == before and path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole_files.write(path, json.dumps(asdict(floor)).encode(), whole_files.PUBLIC)
    except OSError as error:
        raise FirmwareError(f"{path}: cannot be written: {error.strerror}") from error
