"""Small sparse images: data here and there, with and without a partition table."""

import random
import subprocess
from pathlib import Path

import pytest

from firmware_tools.programs import missing

MIB = 1 << 20
SEED_START = 12 * MIB


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip a test where programs are missing, with what to install."""
    return pytest.mark.skipif(
        bool(missing(programs)),
        reason=f"needs {', '.join(programs)}: apt install mtools dosfstools fdisk bmap-tools",
    )


def sparse_image(path: Path, size: int = 24 * MIB, seed: int = 0) -> Path:
    """An image of which about a fifth is data; its last block is cut."""
    source = random.Random(seed)  # noqa: S311 - data, no secret
    with path.open("wb") as file:
        file.truncate(size + 100)
        for start, length in ((0, 300_000), (3 * MIB, MIB), (10 * MIB + 512, 3 * MIB), (size - 5000, 5100)):
            file.seek(start)
            file.write(source.randbytes(length))
    return path


def partitioned_image(path: Path) -> Path:
    """A GPT image with a root file system that holds data, and an empty seed partition."""
    source = random.Random(1)  # noqa: S311
    with path.open("wb") as file:
        file.truncate(24 * MIB)
    table = (
        "label: gpt\nlabel-id: 11111111-2222-4333-8444-555555555555\n"
        'start=1MiB, size=8MiB, name="rootfs-a", uuid=aaaaaaaa-0000-4000-8000-00000000000a\n'
        f'start={SEED_START // MIB}MiB, size=8MiB, name="seed", '
        "uuid=bbbbbbbb-0000-4000-8000-00000000000b\n"
    )
    path_with_sbin = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    subprocess.run(["sfdisk", "--quiet", path], input=table.encode(), check=True, env=path_with_sbin)
    with path.open("rb+") as file:
        file.seek(2 * MIB)
        file.write(source.randbytes(2 * MIB))
    return path
