"""Reading a medium back: every mapped block is read from it and compared with the image's map.

bmaptool checks the image while it copies; a byte that the medium lost is not seen. What lies in blocks that
the map leaves out is not looked at: no file system relies on it. A difference is located to the byte.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from firmware_tools.block_map import BlockMap, Range
from firmware_tools.errors import FirmwareError
from firmware_tools.medium_file import MediumReader
from firmware_tools.seed_image import Partition, partitions

Progress = Callable[[int], None]
"""(bytes more); may raise to stop."""


@dataclass(frozen=True)
class Fault:
    """A stretch of mapped blocks that differs from the image."""

    first_byte: int
    """Offset of the first byte that differs."""
    last_byte: int
    """Offset of the last one of the stretch."""
    bytes: int
    """How many differ between them, those missing from a medium that ends too early included."""
    where: str
    """Partition, or what else lies there."""


@dataclass(frozen=True)
class ReadBack:
    """What reading a medium back showed."""

    bytes_read: int
    past_cache: bool
    """Whether it was read past the cache; else the cache was dropped before."""
    faults: tuple[Fault, ...] = field(default_factory=tuple)

    @property
    def good(self) -> bool:
        """Whether all mapped blocks are those of the image."""
        return not self.faults

    def as_json(self) -> dict[str, Any]:
        """For people's programs."""
        return {**asdict(self), "faults": [asdict(fault) for fault in self.faults]}


def read_back(
    image: Path, block_map: BlockMap, target: Path, progress: Progress = lambda _: None
) -> ReadBack:
    """Compare what is on a medium with an image.

    Args:
        image: to locate differences in, and for the names of partitions.
        block_map: of the image.
        target: the medium.
        progress: called for every chunk.

    Raises:
        FirmwareError: the medium cannot be opened, or the image is not the one that the map is of.
        OSError: the medium cannot be read.
    """
    total = 0
    faults: list[Fault] = []
    named: list[Partition] | None = None
    with MediumReader(target) as reader:
        for one in block_map.ranges:
            start, length = block_map.extent(one)
            digest, done = hashlib.sha256(), 0
            for chunk in reader.read(start, length):
                digest.update(chunk)
                done += len(chunk)
                progress(len(chunk))
            total += done
            if done < length or digest.hexdigest() != one.sha256:
                if named is None:
                    named = _partitions(image)
                faults.append(_locate(image, block_map, one, reader, named))
        return ReadBack(total, reader.past_cache, tuple(faults))


def _locate(
    image: Path, block_map: BlockMap, one: Range, reader: MediumReader, named: Sequence[Partition]
) -> Fault:
    start, length = block_map.extent(one)
    first, last, count, offset = -1, -1, 0, start
    digest = hashlib.sha256()
    with image.open("rb") as file:
        file.seek(start)
        for chunk in reader.read(start, length):
            expected = file.read(len(chunk)).ljust(len(chunk), b"\0")  # a cut image fails by its hash below
            digest.update(expected)
            if expected != chunk:
                odd = int.from_bytes(expected, "big") ^ int.from_bytes(chunk, "big")
                bits = odd.to_bytes(len(chunk), "big")
                first = offset + len(bits) - len(bits.lstrip(b"\0")) if first < 0 else first
                last, count = offset + len(bits.rstrip(b"\0")) - 1, count + len(bits) - bits.count(0)
            offset += len(chunk)
        missing = start + length - offset
        while expected := file.read(min(1 << 20, start + length - file.tell())):
            digest.update(expected)
    if digest.hexdigest() != one.sha256:
        raise FirmwareError(
            f"{image}: blocks {one.first}-{one.last} are not those of its map: the image was changed, or "
            "is broken"
        )
    if missing:
        first, last, count = offset if first < 0 else first, start + length - 1, count + missing
    if first < 0:  # it read well the second time
        first, last = start, start + length - 1
    return Fault(first, last, count, _where(first, last, named))


def _partitions(image: Path) -> list[Partition]:
    try:
        return partitions(image)
    except FirmwareError:  # none, or no sfdisk: offsets say enough
        return []


def _where(first: int, last: int, named: Sequence[Partition]) -> str:
    hit = [part.name for part in named if part.start <= last and first < part.start + part.size]
    if hit:
        return "partition " + ", ".join(hit)
    if named and last < min(part.start for part in named):
        return "partition table or boot loader"
    return (
        "backup of the partition table"
        if named and first >= max(p.start + p.size for p in named)
        else "image"
    )
