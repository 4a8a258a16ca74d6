"""Seeds in FAT: as small images of their own, and in the seed partition of an image or of a medium.

mtools and mkfs.vfat write into a file at an offset, so nothing is mounted and no root is needed for images.
FAT, because any computer can look at it. Two images made of the same seed are the same, byte for byte.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from firmware_tools import seed as seeds
from firmware_tools.errors import FirmwareError
from firmware_tools.programs import run

PARTITION = "seed"
"""Name of the GPT partition that seeds go into."""
LABEL = "IDENTITY"
IMAGE_BYTES = 8 << 20
"""Of a seed's own image; sparse, so it takes less."""
_EPOCH = 1_577_836_800
"""1 January 2020: the time of every file in FAT, so that the same seed gives the same bytes."""


@dataclass(frozen=True)
class Partition:
    """A partition of an image."""

    name: str
    """Of GPT; where there is none, "1" for the first and so on."""
    start: int
    """Bytes from the start of the image."""
    size: int
    """Bytes."""


def partitions(image: Path) -> list[Partition]:
    """Read the partition table of an image or a block device, in the order of the table.

    Raises:
        FirmwareError: there is none, or sfdisk is missing.
    """
    table = json.loads(run(["sfdisk", "--json", image]))["partitiontable"]
    sector = int(table.get("sectorsize", 512))
    return [
        Partition(row.get("name") or str(number), int(row["start"]) * sector, int(row["size"]) * sector)
        for number, row in enumerate(table.get("partitions", []), start=1)
    ]


def seed_partition(image: Path) -> Partition:
    """The partition for seeds.

    Raises:
        FirmwareError: not exactly one partition has its name.
    """
    found = partitions(image)
    own = [partition for partition in found if partition.name == PARTITION]
    if len(own) != 1:
        names = ", ".join(partition.name for partition in found) or "none at all"
        raise FirmwareError(f"{image}: expected one partition named {PARTITION}, got {names}")
    return own[0]


def make_image(seed: Path, image: Path) -> None:
    """Make a FAT image of a seed, in a new file that only its owner can read.

    Raises:
        FirmwareError: the seed is not whole, the image exists, or a tool is missing.
    """
    seeds.read(seed)
    try:
        descriptor = os.open(image, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise FirmwareError(f"{image} exists; a seed is never overwritten, choose another name") from error
    with os.fdopen(descriptor, "wb") as file:
        file.truncate(IMAGE_BYTES)
    _fill(seed, image, 0, IMAGE_BYTES)


def put(seed: Path, target: Path, *, replace: bool = False) -> seeds.SeedDescription:
    """Write a seed into the seed partition, and read it back.

    Args:
        seed: a folder, or a FAT image with one.
        target: an image or a block device with a partition table.
        replace: whether a seed that is there may be overwritten.

    Returns:
        The seed's description.

    Raises:
        FirmwareError: the seed is not whole, another one is there, it does not fit, what was read back
        differs,
            or a tool is missing.
    """
    partition = seed_partition(target)
    with tempfile.TemporaryDirectory(prefix="graftwork-seed-") as folder:
        source = seed
        if not seed.is_dir():
            source = Path(folder)
            _extract(seed, 0, source)
        wanted = seeds.read(source)
        if not replace:
            _check_empty(target, partition)
        _fill(source, target, partition.start, partition.size)
        with target.open("rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with tempfile.TemporaryDirectory(prefix="graftwork-seed-") as folder:
        _extract(target, partition.start, Path(folder))
        if seeds.read(Path(folder)) != wanted:
            raise FirmwareError(f"{target}: the seed reads back differently; use another medium")
    return wanted[0]


def read_seed(seed: Path) -> seeds.SeedDescription:
    """The description of a seed in a folder or a FAT image.

    Raises:
        FirmwareError: it is not whole, or a tool is missing.
    """
    if seed.is_dir():
        return seeds.read(seed)[0]
    with tempfile.TemporaryDirectory(prefix="graftwork-seed-") as folder:
        _extract(seed, 0, Path(folder))
        return seeds.read(Path(folder))[0]


def _at(image: Path, offset: int) -> str:
    return f"{image}@@{offset}"


def _names(image: Path, offset: int) -> list[str]:
    """What is in the root folder of a FAT file system."""
    return run(["mdir", "-b", "-i", _at(image, offset), "::/"]).decode(errors="replace").split("\n")


def _check_empty(target: Path, partition: Partition) -> None:
    """Refuse to overwrite a seed, or the keys of a device that has booted."""
    with target.open("rb") as file:
        file.seek(partition.start)
        if not any(file.read(4096)):
            return
    try:
        names = [name for name in _names(target, partition.start) if name.strip()]
    except FirmwareError as error:
        raise FirmwareError(
            f"{target}: the partition {PARTITION} is neither empty nor FAT; with --replace it is formatted"
        ) from error
    if names:
        raise FirmwareError(
            f"{target}: expected an empty partition {PARTITION}, got {', '.join(sorted(names)[:3])}: it is "
            "provisioned. Take a fresh copy of the image, or add --replace"
        )


def _extract(image: Path, offset: int, folder: Path) -> None:
    try:
        names = [name for name in _names(image, offset) if name.strip()]
    except FirmwareError as error:
        raise FirmwareError(f"{image}: expected FAT with a seed in it: {error}") from error
    if len(names) > len(seeds.FILES) + 1:
        raise FirmwareError(f"{image}: expected FAT with a seed in it, got {len(names)} files")
    run(["mcopy", "-n", "-i", _at(image, offset), "::/*", folder])


def _fill(seed: Path, target: Path, offset: int, size: int) -> None:
    """Format a stretch of a file as FAT, and copy a seed into it; seed.toml last."""
    if offset % 512 or size % 1024:
        raise FirmwareError(f"{target}: expected a partition of whole blocks, got {size} bytes at {offset}")
    start, blocks = f"--offset={offset // 512}", str(size // 1024)
    # FAT16 by name: otherwise the size of the whole medium decides.
    run(["mkfs.vfat", "--invariant", "-F", "16", "-s", "1", "-n", LABEL, start, target, blocks])
    names = [*seeds.parse(seeds.read_file(seed / seeds.SEED_FILE), seed).files, seeds.SEED_FILE]
    with tempfile.TemporaryDirectory(prefix="graftwork-seed-") as folder:
        copies = _dated_copies([seed / name for name in names], Path(folder))
        run(["mcopy", "-m", "-i", _at(target, offset), *copies, "::/"])


def _dated_copies(files: Sequence[Path], folder: Path) -> list[Path]:
    copies = []
    for file in files:
        copy = folder / file.name
        copy.write_bytes(seeds.read_file(file))
        os.utime(copy, (_EPOCH, _EPOCH))
        copies.append(copy)
    return copies
