"""The files of an index: read with every signature checked, and written so that a crash leaves a whole index.

What has its version or hash in its name is written first, `timestamp.json` last: it is what makes the rest
count. Where a new root comes with it, the new timestamp waits under another name until the root is there, and
whoever reads next puts it into its place.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from firmware_tools.build.plan import file_sha256
from firmware_tools.errors import FirmwareError
from firmware_tools.release_index import BUNDLES, METADATA, Release, check_root
from runtime import whole_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST_ROOTS = 256
_TIMESTAMP, _WAITING = "timestamp.json", ".timestamp.json.next"


@dataclass
class Signed:
    """The four files of an index that count now."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until nobody else on this machine changes an index, and keep it so.

    Raises:
        FirmwareError: there is no index.
    """
    try:
        descriptor = os.open(folder / METADATA, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise FirmwareError(f"{folder}: no index ({error.strerror}); make one with `release init`") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(folder: Path, first_root: bytes) -> Signed:
    """Read an index; whether it has expired is not looked at.

    Raises:
        FirmwareError: something is missing, or not signed as it should be; nothing of it may be signed again.
    """
    root = _newest_root(folder, check_root(first_root, name="root.json"))
    _finish(folder, root)
    try:
        timestamp = _checked(folder, _TIMESTAMP, Timestamp, root)
        meta = timestamp.signed.snapshot_meta
        snapshot = _checked(folder, f"{meta.version}.snapshot.json", Snapshot, root, meta)
        meta = snapshot.signed.meta["targets.json"]
        targets = _checked(folder, f"{meta.version}.targets.json", Targets, root, meta)
    except (RepositoryError, ValueError, KeyError) as error:
        raise FirmwareError(
            f"{folder}: not an index that was signed by its keys ({error}); bring back a copy that was"
        ) from error
    except OSError as error:
        raise FirmwareError(f"{error.filename}: {error.strerror}: the index is not whole") from error
    return Signed(root, targets, snapshot, timestamp)


def write(folder: Path, index: Signed, *, new_root: bool) -> None:
    """Write an index over the one before.

    Raises:
        FirmwareError: it cannot be written; the one before still counts.
    """
    metadata = folder / METADATA
    try:
        metadata.mkdir(parents=True, exist_ok=True)
        for name, signed in (("targets", index.targets), ("snapshot", index.snapshot)):
            _write(metadata / f"{signed.signed.version}.{name}.json", signed)
        if not new_root:
            _write(metadata / _TIMESTAMP, index.timestamp)
            return
        _write(metadata / _WAITING, index.timestamp)
        _write(metadata / f"{index.root.signed.version}.root.json", index.root)
        (metadata / _WAITING).replace(metadata / _TIMESTAMP)
        whole_files.sync(metadata)
    except OSError as error:
        raise FirmwareError(f"{error.filename or metadata}: {error.strerror}") from error


def copy_bundle(folder: Path, bundle: Path, release: Release) -> None:
    """Copy a bundle to where it is served, and check that it is still the one that was verified.

    Raises:
        FirmwareError: it changed, or cannot be written.
    """
    target = folder / BUNDLES / release.file_name
    partial = target.with_name(f".{release.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(bundle, partial)
            if file_sha256(partial) != release.sha256:
                raise FirmwareError(f"{bundle} changed while it was added; nothing was added")
            partial.chmod(whole_files.PUBLIC)
            whole_files.rename(partial, target)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
    except OSError as error:
        raise FirmwareError(f"{error.filename or target}: {error.strerror}") from error


def _newest_root(folder: Path, root: Metadata[Root]) -> Metadata[Root]:
    for _ in range(MOST_ROOTS):
        path = folder / METADATA / f"{root.signed.version + 1}.root.json"
        if not path.exists():
            return root
        try:
            following: Metadata[Root] = Metadata.from_bytes(path.read_bytes())
            for by in (root, following):
                by.signed.verify_delegate(Root.type, following.signed_bytes, following.signatures)
        except (RepositoryError, ValueError) as error:
            raise FirmwareError(f"{path}: not signed by the root before and by itself: {error}") from error
        if following.signed.version != root.signed.version + 1:
            raise FirmwareError(f"{path}: says that it is version {following.signed.version}")
        root = following
    raise FirmwareError(f"{folder}: more than {MOST_ROOTS} roots")


def _finish(folder: Path, root: Metadata[Root]) -> None:
    """Put a timestamp that waits for its root into its place; one whose root never came is dropped."""
    waiting = folder / METADATA / _WAITING
    if not waiting.exists():
        return
    try:
        _checked(folder, _WAITING, Timestamp, root)
    except (RepositoryError, ValueError):
        waiting.unlink()
    else:
        waiting.replace(folder / METADATA / _TIMESTAMP)


def _checked(folder: Path, name: str, kind: type[Any], root: Metadata[Root], meta: Any = None) -> Any:
    data = (folder / METADATA / name).read_bytes()
    if meta is not None:
        meta.verify_length_and_hashes(data)
    metadata = cast("Any", Metadata.from_bytes(data))
    if metadata.signed.type != kind.type:
        raise ValueError(f"{name}: expected {kind.type}, got {metadata.signed.type}")
    root.signed.verify_delegate(kind.type, metadata.signed_bytes, metadata.signatures)
    return metadata


def _write(path: Path, metadata: Metadata[Any]) -> None:
    whole_files.write(path, metadata.to_bytes(), whole_files.PUBLIC)
