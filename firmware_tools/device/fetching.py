"""Fetching what an index of releases offers: onto the device, checked, and not yet installed.

What was seen of an index is kept in /data/update/tuf; the root that is believed first is part of the image.
"""

from __future__ import annotations

import shutil
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from firmware_tools.device import floor, updates
from firmware_tools.device.installing import bundle_version, check_armed
from firmware_tools.errors import FirmwareError
from firmware_tools.release_client import ReleaseClient
from firmware_tools.versions import numbers
from runtime import configuration
from runtime.errors import SetupError

if TYPE_CHECKING:
    from pathlib import Path

    from firmware_tools.device.system import Device
    from firmware_tools.release_index import Release

IMAGE_MOMENT = 1_700_000_000.0
"""Unix seconds: no image is older, so no clock that says less is right."""
KEPT_FREE = 32 * 1024 * 1024
"""Bytes of data that a download leaves to the agent."""
ROOT = "etc/graftwork/release-root.json"
SETTINGS = ("data/update/update.toml", "etc/graftwork/update.toml")
"""The first one that is there counts."""


@dataclass(frozen=True)
class FollowSettings:
    """Which index a device follows."""

    index: str
    """URL or folder."""
    automatic: bool = False
    """Install what was fetched, and reboot, without anybody asking."""


@dataclass(frozen=True)
class Fetched:
    """What came of it."""

    text: str
    """For people."""
    bundle: Path | None = None
    """That can be installed now; None: there is nothing to do."""


def load_settings(device: Device) -> FollowSettings | None:
    """Read which index the device follows; None: none.

    Raises:
        FirmwareError: the file is malformed.
    """
    for name in SETTINGS:
        if (device.root / name).exists():
            try:
                return configuration.load(FollowSettings, device.root / name)
            except SetupError as error:
                raise FirmwareError(str(error)) from error
    return None


def fetch(device: Device, source: str, now: float, *, again: bool = False) -> Fetched:
    """Bring the newest bundle for this device here, if it is newer than what runs.

    Args:
        device: fetches it.
        source: URL or folder of an index.
        now: Unix seconds, as the clock says; it may be wrong.
        again: also a version that was rolled back here.

    Raises:
        FirmwareError: the index or the bundle is refused, or cannot be had; what runs goes on.
    """
    release, root = device.release(), _root(device)
    running, compatible = release["version"], release["compatible"]
    store = device.data / "update/tuf"
    with closing(ReleaseClient(root, store, source, max(now, IMAGE_MOMENT))) as client:
        index = client.index()
        if index.floors.get(compatible):
            floor.note_signed(device, index.floors[compatible])
        newest = index.newest(compatible)
        if newest is None:
            return Fetched(f"the index has nothing for {compatible}")
        if numbers(newest.version) <= numbers(running):
            _clear(device)
            return Fetched(f"{running} runs, and the newest is {newest.version}: nothing to do")
        floor.check(device, newest.version, allow_downgrade=False)
        state = updates.load(device.state_file)
        if (
            state is not None
            and not again
            and (state.phase, state.version) == (updates.ROLLED_BACK, newest.version)
        ):
            return Fetched(f"{state.text}; to try it once more, use --again")
        check_armed(device)  # also: no update is on its way, whose state would be written over
        return _bring(device, client, newest, running)


def _bring(device: Device, client: ReleaseClient, release: Release, running: str) -> Fetched:
    path = _folder(device) / release.name
    state = updates.offered(release.version, running)
    if updates.load(device.state_file) != updates.downloaded(state):
        updates.save(device.state_file, state)
    _clear(device, keep=path.name)
    if not client.is_whole(release, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free + (path.stat().st_size if path.exists() else 0)
        path.unlink(missing_ok=True)
        if free < release.length + KEPT_FREE:
            raise FirmwareError(
                f"{release.name} has {release.length:,} bytes and {KEPT_FREE:,} stay free, but {path.parent} "
                f"has {free:,}: free some, or use `device update` with the file on a stick"
            )
        client.download(release, path)
    try:
        _check_bundle(device, path, release)
    except FirmwareError as error:
        path.unlink(missing_ok=True)
        updates.save(device.state_file, updates.failed(state, str(error)))
        raise
    updates.save(device.state_file, updates.downloaded(state))
    return Fetched(f"downloaded {release.version}: graftwork-firmware device update {path}", path)


def _check_bundle(device: Device, path: Path, release: Release) -> None:
    found = bundle_version(device, path)
    if found != release.version:
        raise FirmwareError(f"{release.name} is version {found}, and the index says {release.version}")


def clock() -> float:
    """What the device's clock says, Unix seconds."""
    return time.time()  # noqa: TID251 - the edge


def _root(device: Device) -> bytes:
    path = device.root / ROOT
    try:
        return path.read_bytes()
    except OSError as error:
        raise FirmwareError(
            f"{path}: {error.strerror}: this image follows no index; build one with --release-root"
        ) from error


def _folder(device: Device) -> Path:
    return device.data / "update/bundles"


def _clear(device: Device, keep: str = "") -> None:
    """Remove bundles that are not wanted any more, and what a power cut left of one."""
    folder = _folder(device)
    for path in folder.iterdir() if folder.exists() else ():
        if path.name != keep:
            path.unlink()
