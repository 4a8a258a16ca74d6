"""Block maps: which blocks of an image hold data, with their hashes; the format of bmaptool, version 2.0.

A map is read and checked, or made from the holes of a sparse image. What is not mapped is not written to a
medium; filesystems do not care what lies there. The one exception: the backup of the partition table is
added to every map, whether it says so or not.
"""

import hashlib
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from firmware_tools.errors import FirmwareError

BLOCK_BYTES = 4096
CHUNK_BYTES = 1 << 20
MAP_BYTES = 64 << 20
"""Most that a map may take: some 500,000 ranges."""
_CHECKSUM = re.compile(rb"(<BmapFileChecksum>\s*)([0-9a-f]{64})(\s*</BmapFileChecksum>)")
_SECTOR = 512


@dataclass(frozen=True)
class Range:
    """Neighbouring blocks that hold data."""

    first: int
    last: int
    """Inclusive."""
    sha256: str
    """Of their content, hexadecimal."""


@dataclass(frozen=True)
class BlockMap:
    """Where an image holds data."""

    image_bytes: int
    block_bytes: int
    ranges: tuple[Range, ...]
    """In order, without overlap."""

    def __post_init__(self) -> None:
        if self.image_bytes < 1 or not 512 <= self.block_bytes <= 1 << 20:
            raise ValueError(
                f"expected an image in blocks, got {self.image_bytes} in {self.block_bytes} bytes"
            )
        free = 0
        for one in self.ranges:
            if not free <= one.first <= one.last < self.blocks:
                raise ValueError(
                    f"range {one.first}-{one.last}: expected blocks from {free} to {self.blocks - 1}"
                )
            if not re.fullmatch("[0-9a-f]{64}", one.sha256):
                raise ValueError(f"range {one.first}-{one.last}: expected a SHA-256, got {one.sha256[:80]!r}")
            free = one.last + 1

    @property
    def blocks(self) -> int:
        """Of the image, the last of which may be cut."""
        return -(-self.image_bytes // self.block_bytes)

    @property
    def mapped_blocks(self) -> int:
        """Blocks in the ranges."""
        return sum(one.last - one.first + 1 for one in self.ranges)

    @property
    def mapped_bytes(self) -> int:
        """Bytes in the ranges."""
        return sum(size for _, size in map(self.extent, self.ranges))

    def extent(self, one: Range) -> tuple[int, int]:
        """(offset, length) of a range in bytes; the last one ends with the image."""
        start = one.first * self.block_bytes
        return start, min((one.last + 1) * self.block_bytes, self.image_bytes) - start


def for_image(image: Path, bmap: Path | None = None) -> BlockMap:
    """The map of an image: the given file, else IMAGE.bmap beside it, else made from its holes.

    Raises:
        FirmwareError: there is no image, the map is broken, or it is one of another image's size.
    """
    try:
        size = image.stat().st_size
    except OSError as error:
        raise FirmwareError(f"{image}: {error.strerror}; expected an image") from error
    beside = (Path(f"{image}.bmap"), image.with_suffix(".bmap"))
    path = bmap or next((candidate for candidate in beside if candidate.is_file()), None)
    if path is None:
        found = create(image)
    else:
        with path.open("rb") as file:
            data = file.read(MAP_BYTES + 1)
        try:
            found = parse(data)
        except FirmwareError as error:
            raise FirmwareError(f"{path}: {error}") from error
        if found.image_bytes != size:
            raise FirmwareError(
                f"{path}: is for an image of {found.image_bytes} bytes, but {image} has {size}: the image "
                "is cut off, or the map is another one's"
            )
    return _with_backup_table(found, image)


def create(image: Path) -> BlockMap:
    """Make a map of a sparse image. Where the file system knows no holes, everything is mapped.

    Raises:
        FirmwareError: the image is empty.
    """
    with image.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise FirmwareError(f"{image}: expected an image, got an empty file")
        ranges = [
            Range(first, last, _hash(file.fileno(), first * BLOCK_BYTES, min((last + 1) * BLOCK_BYTES, size)))
            for first, last in _data_blocks(file.fileno(), size)
        ]
    return BlockMap(size, BLOCK_BYTES, tuple(ranges))


def parse(data: bytes) -> BlockMap:
    """Read a map, and check its own checksum.

    Raises:
        FirmwareError: it is too large, no map, of another version, or does not match its checksum.
    """
    if len(data) > MAP_BYTES or b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise FirmwareError(f"expected a block map of at most {MAP_BYTES} bytes without document type")
    found = _CHECKSUM.search(data)
    if found is None:
        raise FirmwareError("expected a block map of version 2.0 with a BmapFileChecksum of SHA-256")
    blank = data[: found.start(2)] + b"0" * 64 + data[found.end(2) :]
    if hashlib.sha256(blank).hexdigest() != found[2].decode():
        raise FirmwareError("the block map does not match its own checksum: it was changed or cut off")
    try:
        root = ET.fromstring(data)  # noqa: S314 - its size is bounded, and entities were refused
        version, kind = root.attrib["version"], _text(root, "ChecksumType")
        if version.partition(".")[0] != "2" or kind != "sha256":
            raise FirmwareError(f"expected a block map of version 2 with sha256, got {version} with {kind}")
        ranges = tuple(_range(element) for element in root.iterfind("./BlockMap/Range"))
        block_map = BlockMap(int(_text(root, "ImageSize")), int(_text(root, "BlockSize")), ranges)
        counts = (int(_text(root, "BlocksCount")), int(_text(root, "MappedBlocksCount")))
    except (ET.ParseError, KeyError, ValueError) as error:
        raise FirmwareError(f"expected a block map: {error}") from error
    if counts != (block_map.blocks, block_map.mapped_blocks):
        raise FirmwareError(
            f"expected {block_map.blocks} blocks with {block_map.mapped_blocks} mapped, the map says {counts}"
        )
    return block_map


def render(block_map: BlockMap) -> bytes:
    """Write a map so that `parse` and bmaptool read it."""
    lines = [
        '<?xml version="1.0" ?>',
        '<bmap version="2.0">',
        f"    <ImageSize> {block_map.image_bytes} </ImageSize>",
        f"    <BlockSize> {block_map.block_bytes} </BlockSize>",
        f"    <BlocksCount> {block_map.blocks} </BlocksCount>",
        f"    <MappedBlocksCount> {block_map.mapped_blocks} </MappedBlocksCount>",
        "    <ChecksumType> sha256 </ChecksumType>",
        f"    <BmapFileChecksum> {'0' * 64} </BmapFileChecksum>",
        "    <BlockMap>",
        *(
            f'        <Range chksum="{one.sha256}"> '
            + (f"{one.first}-{one.last}" if one.last > one.first else str(one.first))
            + " </Range>"
            for one in block_map.ranges
        ),
        "    </BlockMap>",
        "</bmap>",
        "",
    ]
    text = "\n".join(lines).encode()
    return text.replace(b"0" * 64, hashlib.sha256(text).hexdigest().encode(), 1)


def _data_blocks(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """(first, last) of each run of blocks with data; runs that share a block are one."""
    os.fsync(descriptor)  # what is not on disk yet may still count as a hole
    run: tuple[int, int] | None = None
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            break
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        first, last = start // BLOCK_BYTES, (position - 1) // BLOCK_BYTES
        if run is not None and first <= run[1] + 1:
            run = (run[0], last)
            continue
        if run is not None:
            yield run
        run = (first, last)
    if run is not None:
        yield run


def _hash(descriptor: int, start: int, end: int) -> str:
    digest = hashlib.sha256()
    while start < end:
        chunk = os.pread(descriptor, min(CHUNK_BYTES, end - start), start)
        if not chunk:
            raise FirmwareError(f"the image became shorter while it was read: it ends at {start}")
        digest.update(chunk)
        start += len(chunk)
    return digest.hexdigest()


def _text(root: ET.Element, name: str) -> str:
    element = root.find(name)
    if element is None or not element.text:
        raise ValueError(f"{name} is missing")
    return element.text.strip()


def _range(element: ET.Element) -> Range:
    first, _, last = (element.text or "").strip().partition("-")
    return Range(int(first), int(last or first), element.attrib["chksum"])


def _with_backup_table(block_map: BlockMap, image: Path) -> BlockMap:
    """Add the backup of the partition table, at the end of the image, where the map leaves it out."""
    with image.open("rb") as file:
        header = os.pread(file.fileno(), 92, _SECTOR)
        if header[:8] != b"EFI PART":
            return block_map
        (backup,) = struct.unpack_from("<Q", header, 32)
        if (backup + 1) * _SECTOR > block_map.image_bytes:
            raise FirmwareError(
                f"{image}: the backup of its partition table is to be at byte {backup * _SECTOR}, but the "
                f"image has {block_map.image_bytes}: it is cut off"
            )
        size = block_map.block_bytes
        wanted = _table_blocks(os.pread(file.fileno(), 92, backup * _SECTOR), backup, size)
        wanted = {block for block in wanted if block < block_map.blocks}
        mapped = {block for one in block_map.ranges for block in wanted if one.first <= block <= one.last}
        added = [
            Range(
                block,
                block,
                _hash(file.fileno(), block * size, min((block + 1) * size, block_map.image_bytes)),
            )
            for block in sorted(wanted - mapped)
        ]
    ranges = sorted((*block_map.ranges, *added), key=lambda one: one.first)
    return BlockMap(block_map.image_bytes, size, tuple(ranges))


def _table_blocks(header: bytes, sector: int, block_bytes: int) -> set[int]:
    """Blocks of a partition table whose header stands in a sector; none where it is no header."""
    if header[:8] != b"EFI PART":
        return set()
    entries, count, entry_bytes = struct.unpack_from("<QII", header, 72)
    length = min(count * entry_bytes, CHUNK_BYTES)  # 16 KiB everywhere; what is read is not believed
    start = entries * _SECTOR
    found = set(range(start // block_bytes, (start + length - 1) // block_bytes + 1)) if length else set()
    return found | {sector * _SECTOR // block_bytes}
