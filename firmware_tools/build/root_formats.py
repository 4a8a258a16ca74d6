"""How a root file system is packed: what goes raw into a slot, and what RAUC unpacks into one."""

import gzip
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from firmware_tools.build import squashfs

_LEVEL = 6


@dataclass(frozen=True)
class RootFormat:
    """One way to pack."""

    suffix: str
    settings: str
    """What decides on the bytes, beside the tar."""
    pack: Callable[[Path, Path, int], None]
    """(tar, file to write, Unix seconds that every file is of)"""


def _tarball(tree: Path, output: Path, moment: int) -> None:
    """Compress a tar, without a name and with a fixed time in its header."""
    with (
        tree.open("rb") as source,
        output.open("wb") as raw,
        gzip.GzipFile("", "wb", _LEVEL, raw, mtime=moment) as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)


SQUASHFS = RootFormat(".squashfs", squashfs.SETTINGS, squashfs.pack)
TARBALL = RootFormat(".tar.gz", f"gzip -{_LEVEL}", _tarball)
