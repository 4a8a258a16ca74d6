"""Files that are there as a whole or not at all, whatever crashes; secret ones for their owner alone."""

import contextlib
import os
import secrets
from pathlib import Path

SECRET = 0o600
PUBLIC = 0o644


def write(path: Path, data: bytes, mode: int) -> None:
    """Write a file, or replace one.

    The bytes are on disk before the name is, and a secret never lies there with a wider mode.

    Raises:
        OSError: it cannot be written; then an older file is still there.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, SECRET)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask says
            own_as(path.parent, descriptor)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    sync(path.parent)


def rename(partial: Path, target: Path) -> None:
    """Give a file that was written its name, and replace one that has it.

    Without the sync a power cut leaves the name with nothing, or with zeros, behind it.

    Raises:
        OSError: there is no such file, or it cannot be written.
    """
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)
    sync(target.parent)


def rename_folder(partial: Path, target: Path) -> None:
    """Give a folder of files, none of them in a folder below, its name, which nothing has.

    Raises:
        OSError: it cannot be read or written.
    """
    for path in partial.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync(partial)
    partial.replace(target)
    sync(target.parent)


def own_as(directory: Path, target: int | Path) -> None:
    """As root: give a file or folder to the owner of `directory`, whose program is to read it."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.chown(target, owner.st_uid, owner.st_gid)


def sync(directory: Path) -> None:
    """Have the names in a directory on disk.

    Raises:
        OSError: it is not there.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
