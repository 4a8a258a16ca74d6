"""Disks and FAT file systems without mounts, the same bytes each time: sfdisk, mkfs.vfat and mtools."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from firmware_tools.build.partitions import Layout
from firmware_tools.build.spec import MIB
from firmware_tools.build.tar_merge import MOMENT
from firmware_tools.errors import FirmwareError
from firmware_tools.programs import SEARCH_PATH

_BLOCK = 4 * MIB


def make_disk(
    output: Path, layout: Layout, fats: Mapping[str, Mapping[str, bytes]], raws: Mapping[str, Path]
) -> None:
    """Make a disk.

    Args:
        output: file to write.
        layout: its partitions.
        fats: files of the partitions with FAT, by the partition's name.
        raws: content of other partitions; what is in neither stays empty.

    Raises:
        FirmwareError: a program is missing or fails, or a content is larger than its partition.
    """
    with output.open("wb") as file:
        file.truncate(layout.size)
    run(["sfdisk", "--quiet", str(output)], text=layout.sfdisk_script())
    folder = output.with_suffix(".parts")
    folder.mkdir()
    try:
        for name, files in fats.items():
            _fat(folder / name, layout, name, files)
            _copy_into(folder / name, output, layout, name)
        for name, source in raws.items():
            _copy_into(source, output, layout, name)
    finally:
        shutil.rmtree(folder)


def _fat(path: Path, layout: Layout, name: str, files: Mapping[str, bytes]) -> None:
    """A FAT file system with files, the same bytes each time."""
    with path.open("wb") as file:
        file.truncate(layout[name].size)
    volume = f"{int(layout[name].uuid[:8], 16):08x}"
    run(["mkfs.vfat", "--invariant", "-i", volume, "-n", name.upper(), str(path)])
    folders = sorted({"/".join(file.split("/")[:n]) for file in files for n in range(1, file.count("/") + 1)})
    environment = {"SOURCE_DATE_EPOCH": str(MOMENT), "MTOOLS_SKIP_CHECK": "1"}
    for folder in folders:
        run(["mmd", "-i", str(path), f"::/{folder}"], environment=environment)
    for file_name, content in sorted(files.items()):
        source = path.with_name("content")
        source.write_bytes(content)
        os.utime(source, (MOMENT, MOMENT))
        run(["mcopy", "-m", "-i", str(path), str(source), f"::/{file_name}"], environment=environment)
        source.unlink()


def _copy_into(source: Path, image: Path, layout: Layout, name: str) -> None:
    """Write a file into its partition; what is zero stays a hole."""
    partition, size = layout[name], source.stat().st_size
    if size > partition.size:
        raise FirmwareError(
            f"partition {name} has {partition.size // MIB} MiB, and its content {size / MIB:.1f} MiB: raise "
            f"sizes.{'rootfs' if name.startswith('rootfs') else name} in the target"
        )
    with source.open("rb") as reading, image.open("r+b") as writing:
        position = partition.start
        while block := reading.read(_BLOCK):
            if block.count(0) != len(block):
                writing.seek(position)
                writing.write(block)
            position += len(block)


def run(command: list[str], *, text: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Run a program of the build; returns what it printed.

    Raises:
        FirmwareError: it is missing or fails; with what it said last.
    """
    if shutil.which(command[0], path=SEARCH_PATH) is None:
        raise FirmwareError(f"{command[0]} is not installed; see: graftwork-firmware doctor")
    result = subprocess.run(  # noqa: S603 - fixed commands
        command,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", "TZ": "UTC", **(environment or {})},
    )
    if result.returncode:
        raise FirmwareError(f"{command[0]} failed:\n{(result.stderr or result.stdout).strip()[-2000:]}")
    return result.stdout
