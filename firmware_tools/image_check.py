"""Whether an image is what `build` made: partition table, file systems, boot state, every byte of the system.

The image is read, never mounted; what is in FAT is copied out with mtools.
"""

import hashlib
import json
import struct
import tempfile
import zlib
from pathlib import Path

from firmware_tools.build.layout import layout_of
from firmware_tools.build.partitions import SECTOR, TYPES, Layout, Partition
from firmware_tools.build.spec import TargetSpec, load_spec
from firmware_tools.build.ways import way_of
from firmware_tools.errors import FirmwareError
from firmware_tools.programs import run

_BLOCK = 1 << 20
_SQUASHFS = b"hsqs"


def check_image(image: Path, target: str | None = None) -> list[str]:
    """Check everything; returns a line for people on each thing that was found right.

    Args:
        image: its release.json lies beside it.
        target: name or file, where it is no built-in target.

    Raises:
        FirmwareError: names what is not right, expected and got.
    """
    described = image.with_name("release.json")
    try:
        facts = json.loads(described.read_text("utf-8"))
        spec, wanted = load_spec(target or facts["target"]), str(facts["rootfs_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FirmwareError(f"{described}: expected the description that `build` writes: {error}") from error
    layout = layout_of(spec)
    if not layout.partitions:
        raise FirmwareError(f"{spec.name} has no image: its maker's tools flash it")
    check_table(image, layout)
    lines = [f"partition table: {len(layout.partitions)} partitions, both copies whole"]
    lines += _check_fats(image, layout, spec)
    return [*lines, _check_system(image, layout["rootfs-a"], wanted)]


def check_table(image: Path, layout: Layout) -> None:
    """Check both copies of the GPT, and that the partitions are those of the target.

    Raises:
        FirmwareError: they are not.
    """
    size = image.stat().st_size
    if size != layout.size:
        raise FirmwareError(f"{image}: expected {layout.size:,} bytes, got {size:,}")
    with image.open("rb") as file:
        for name, sector in (("first", 1), ("last", size // SECTOR - 1)):
            file.seek(sector * SECTOR)
            header = file.read(92)
            length, checksum = struct.unpack("<II", header[12:20])
            plain = header[:16] + bytes(4) + header[20:]
            entries, count, each, of_entries = struct.unpack("<QIII", header[72:92])
            if header[:8] != b"EFI PART" or length != len(header) or zlib.crc32(plain) != checksum:
                raise FirmwareError(f"{image}: the {name} partition table is damaged")
            file.seek(entries * SECTOR)
            if zlib.crc32(file.read(min(count * each, _BLOCK))) != of_entries:
                raise FirmwareError(f"{image}: the entries of the {name} partition table are damaged")
    rows = json.loads(run(["sfdisk", "--json", image]))["partitiontable"]["partitions"]
    found = [
        (row.get("name"), row["start"] * SECTOR, row["size"] * SECTOR, row["uuid"].lower(), row["type"])
        for row in rows
    ]
    expected = [(p.name, p.start, p.size, p.uuid, p.type) for p in layout.partitions]
    if found != expected:
        raise FirmwareError(
            f"{image}: expected the partitions {[row[0] for row in expected]} of the target, got {found}"
        )


def _check_fats(image: Path, layout: Layout, spec: TargetSpec) -> list[str]:
    fats = [name for name in (p.name for p in layout.partitions) if _is_fat(layout[name])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for fat in fats:
            _copy_out(image, layout[fat], folder / "fat")
            run(["fsck.vfat", "-n", folder / "fat"])
            (folder / fat).mkdir()
            if run(["mdir", "-b", "-i", folder / "fat", "::"]).strip():
                run(["mcopy", "-s", "-n", "-i", folder / "fat", "::/*", folder / fat])
        found = way_of(spec).check(folder)
    return [f"file systems: {', '.join(fats)} are whole", f"boot state: {found}"]


def _is_fat(partition: Partition) -> bool:
    return partition.type in (TYPES["esp"], TYPES["fat"]) or partition.name in ("bootenv", "seed")


def _copy_out(image: Path, partition: Partition, target: Path) -> None:
    with image.open("rb") as reading, target.open("wb") as writing:
        reading.seek(partition.start)
        left = partition.size
        while left:
            block = reading.read(min(left, _BLOCK))
            writing.write(block)
            left -= len(block)


def _check_system(image: Path, slot: Partition, wanted: str) -> str:
    """The root file system is as long as it says, filled up to 4 KiB, as mksquashfs does."""
    with image.open("rb") as file:
        file.seek(slot.start)
        head = file.read(48)
        length = -(-struct.unpack("<Q", head[40:48])[0] // 4096) * 4096
        if head[:4] != _SQUASHFS or length > slot.size:
            raise FirmwareError(f"{image}: slot A holds no root file system")
        digest, left = hashlib.sha256(), length
        file.seek(slot.start)
        while left:
            block = file.read(min(left, _BLOCK))
            digest.update(block)
            left -= len(block)
    if digest.hexdigest() != wanted:
        raise FirmwareError(
            f"{image}: slot A has the SHA-256 {digest.hexdigest()}, and release.json says {wanted}: its "
            f"{length:,} bytes were changed"
        )
    return f"root file system: {length:,} bytes, as release.json says"
