"""Media: what a block device is, and whether an image may be written to it. Better refused than sorry.

Decided from what `lsblk` says, so that the rules can be tested with the words of machines of all kinds. What
lsblk cannot see, the kernel knows: flash.py opens devices exclusively, which fails where anything uses them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firmware_tools.errors import FirmwareError
from firmware_tools.programs import run

LARGE_BYTES = 128 << 30
"""Cards and sticks of devices are smaller; larger ones may be somebody's data."""
INTERNAL = frozenset({"ata", "nvme", "sas", "sata", "scsi"})
"""How disks inside a computer are attached."""
_SYSTEM_MOUNTS = frozenset({"/", "/boot", "/boot/efi", "/efi", "/home", "/usr", "/var", "[SWAP]"})
_MEMBERS = {
    "linux_raid_member": "a RAID",
    "LVM2_member": "LVM",
    "zfs_member": "a ZFS pool",
    "bcache": "bcache",
    "ddf_raid_member": "a RAID",
    "isw_raid_member": "a RAID",
}
"""File systems of disks that are part of something, whether it runs or not."""
_DISKS = ("disk", "loop")


@dataclass(frozen=True)
class Medium:
    """A block device as lsblk describes it, with what lies on it."""

    path: str
    kind: str
    """"disk", "part", "loop", "rom", "raid1", "crypt", "lvm" ..."""
    size: int
    """Bytes; 0: a card reader without a card."""
    read_only: bool
    removable: bool
    """The medium, or the device as a whole."""
    transport: str
    """"usb", "mmc", "nvme", "sata" ...; empty: unknown."""
    model: str
    serial: str
    """As the device says; card readers often give their own."""
    parent: str
    """Of a partition, the path of its disk; empty: it has none."""
    mounts: tuple[str, ...]
    """Where it, or anything on it, is mounted; "[SWAP]" for swap."""
    holders: tuple[str, ...]
    """What is built on it: "crypt luks-1", "raid1 md0" ...; also of a RAID that does not run."""

    @property
    def system(self) -> bool:
        """Whether the running system lives on it."""
        return bool(_SYSTEM_MOUNTS.intersection(self.mounts))


class TargetRefusedError(FirmwareError):
    """An image must not be written to a target; the message says why, and what to do."""


def list_media() -> list[Medium]:
    """All block devices of this machine, partitions too.

    Raises:
        FirmwareError: lsblk is missing or fails.
    """
    return parse_lsblk(json.loads(run(["lsblk", "--json", "--bytes", "-O"])))


def parse_lsblk(document: Mapping[str, Any]) -> list[Medium]:
    """Read what `lsblk --json --bytes -O` printed; versions differ in their words.

    Raises:
        FirmwareError: it has another form.
    """
    try:
        return list(_walk(document["blockdevices"], ""))
    except (KeyError, TypeError, ValueError) as error:
        raise FirmwareError(f"expected what `lsblk --json --bytes -O` prints: {error!r}") from error


def find(media: Iterable[Medium], target: Path) -> Medium | None:
    """The medium behind a path such as /dev/disk/by-id/...; None: lsblk does not know it."""
    path = str(target.resolve())
    return next((medium for medium in media if medium.path == path), None)


def check_target(
    target: Path,
    medium: Medium | None,
    image_bytes: int,
    *,
    large: bool = False,
    internal: bool = False,
    file: bool = False,
    large_bytes: int = LARGE_BYTES,
) -> None:
    """Check that an image may be written to a target.

    Args:
        target: as the user named it.
        medium: what it is; None: no block device that lsblk knows.
        image_bytes: size of the image.
        large: whether more than `large_bytes` is right.
        internal: whether a disk inside the computer is right.
        file: whether a regular file is right.
        large_bytes: what counts as large.

    Raises:
        TargetRefusedError: it must not be; says why and what to do.
    """
    if medium is None:
        _check_file(target, file)
        return
    who = f"{target} ({medium.model or medium.kind}, {_gib(medium.size)})"
    _check_use(who, medium)
    _check_size(who, medium, image_bytes)
    if medium.size > large_bytes and not large:
        raise TargetRefusedError(
            f"{who}: it is larger than {_gib(large_bytes)}, so it may be somebody's data: if it is right, "
            "add --large"
        )
    if medium.transport in INTERNAL and not medium.removable and not internal:
        raise TargetRefusedError(
            f"{who}: it is a disk inside this computer ({medium.transport}): if it is right, add --internal"
        )


def check_distinct(targets: Sequence[Path], image: Path) -> None:
    """Check that no target stands there twice, or is the image itself.

    Raises:
        TargetRefusedError: one is.
    """
    seen: dict[Path, Path] = {}
    for target in targets:
        real = target.resolve()
        if real == image.resolve():
            raise TargetRefusedError(f"{target}: it is the image itself: name another target")
        if real in seen:
            raise TargetRefusedError(f"{target}: it is the same as {seen[real]}: name each target once")
        seen[real] = target


def _check_use(who: str, medium: Medium) -> None:
    """Refuse what is no whole disk, or what something uses."""
    if medium.kind == "part":
        raise TargetRefusedError(
            f"{who}: expected a whole disk, got a partition of one: name the disk, {medium.parent}"
        )
    if medium.kind not in _DISKS:
        raise TargetRefusedError(
            f"{who}: expected a disk or a card, got {medium.kind!r}: name another target"
        )
    if medium.system:
        raise TargetRefusedError(
            f"{who}: this computer runs from it ({', '.join(medium.mounts)}): name another target"
        )
    if medium.holders:
        raise TargetRefusedError(
            f"{who}: it is part of {', '.join(medium.holders)}: take it out of there, or, where that is "
            f"gone for good, erase it with `wipefs --all {medium.path}` and its partitions first"
        )
    if medium.mounts:
        raise TargetRefusedError(
            f"{who}: it is mounted at {', '.join(medium.mounts)}: look whether it is the right one, then "
            "umount it"
        )


def _check_size(who: str, medium: Medium, image_bytes: int) -> None:
    """Refuse what the image cannot go onto."""
    if not medium.size:
        raise TargetRefusedError(f"{who}: there is no medium in it: insert one")
    if medium.read_only:
        raise TargetRefusedError(f"{who}: it is read-only: open the lock of the card, or take another one")
    if medium.size < image_bytes:
        raise TargetRefusedError(
            f"{who}: it has {medium.size} bytes, the image needs {image_bytes}: take a larger one"
        )


def _check_file(target: Path, file: bool) -> None:
    if target.is_block_device():
        raise TargetRefusedError(f"{target}: lsblk does not know this block device: name another target")
    if not target.exists():
        raise TargetRefusedError(f"{target}: there is no such device: is the medium inserted? See: lsblk")
    if not target.is_file():
        raise TargetRefusedError(f"{target}: expected a block device, got something else: see lsblk")
    if not file:
        raise TargetRefusedError(
            f"{target}: expected a block device, got a file: if a file is right, add --file"
        )


def _walk(rows: Sequence[Mapping[str, Any]], parent: str) -> Iterator[Medium]:
    for row in rows:
        path = str(row.get("path") or f"/dev/{row['name']}")
        below = list(_descendants(row))
        mounts = dict.fromkeys(mount for one in (row, *below) for mount in _mounts(one))
        holders = [f"{one['type']} {one['name']}" for one in below if one["type"] != "part"]
        members = {str(one.get("fstype")) for one in (row, *below)} & set(_MEMBERS)
        holders += [_MEMBERS[member] for member in sorted(members)]
        yield Medium(
            path=path,
            kind=str(row["type"]),
            size=int(row["size"] or 0),
            read_only=_flag(row.get("ro")),
            removable=_flag(row.get("rm")) or _flag(row.get("hotplug")),
            transport=str(row.get("tran") or ""),
            model=" ".join(str(row.get(name) or "").strip() for name in ("vendor", "model")).strip(),
            serial=str(row.get("serial") or "").strip(),
            parent=parent,
            mounts=tuple(mounts),
            holders=tuple(dict.fromkeys(holders)),
        )
        yield from _walk(row.get("children") or (), path)


def _descendants(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for child in row.get("children") or ():
        yield child
        yield from _descendants(child)


def _mounts(row: Mapping[str, Any]) -> list[str]:
    listed = row.get("mountpoints") or [row.get("mountpoint")]
    return [str(mount) for mount in listed if mount]


def _flag(value: Any) -> bool:
    """Booleans, and the "0" and "1" of util-linux before 2.33."""
    return value in (True, "1", 1)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
