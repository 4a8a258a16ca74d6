"""A root file system as squashfs: read-only, and the same bytes from the same tar."""

import shutil
import subprocess
from pathlib import Path

from firmware_tools.errors import FirmwareError

BLOCK = "256K"
COMPRESSION = "gzip"
"""What GRUB reads; it takes the kernel from there."""
SETTINGS = f"{COMPRESSION} {BLOCK}"
"""What decides on the bytes, beside the tar."""


def pack(tree: Path, output: Path, moment: int) -> None:
    """Pack a tar.

    Args:
        tree: the tar.
        output: file to write.
        moment: Unix seconds that every file is of.

    Raises:
        FirmwareError: mksquashfs is missing or fails.
    """
    if shutil.which("mksquashfs") is None:
        raise FirmwareError("mksquashfs is not installed; on Debian: apt install squashfs-tools")
    command = [
        *("mksquashfs", "-", str(output), "-tar", "-noappend", "-quiet", "-no-progress"),
        *("-comp", COMPRESSION, "-b", BLOCK, "-processors", "2", "-no-xattrs", "-root-mode", "755"),
        *("-all-time", str(moment), "-mkfs-time", str(moment)),
    ]
    with tree.open("rb") as file:
        result = subprocess.run(command, stdin=file, capture_output=True, text=True, check=False)  # noqa: S603
    if result.returncode:
        raise FirmwareError(f"mksquashfs failed:\n{result.stderr.strip()[-2000:]}")
