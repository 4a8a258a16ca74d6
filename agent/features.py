"""Features of the device's windows, computed once each and kept on disk.

Everything before the first adapter is frozen, so its output per window never changes; training for several
epochs reads it from here. One pair of files per recording, in a folder named by the backbone: a package with
another backbone starts afresh. The cache is bounded: when it is full the oldest recordings leave it, and
with them the training.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.dataset import Labelled
from agent.engine import Engine
from agent.sources import Listing, Source
from protocol import windows
from protocol.package import Manifest

log = logging.getLogger(__name__)

WINDOWS_AT_ONCE = 1024
"""Bounds the memory that features of a long recording take on their way to disk."""


@dataclass(frozen=True)
class Inventory:
    """What the device has to learn from."""

    labelled: Labelled
    unlabelled_windows: int
    fingerprint: str
    """Changes when the labelled windows change."""


class FeatureCache:
    """Features by recording."""

    def __init__(self, directory: Path, manifest: Manifest, *, limit_bytes: int) -> None:
        """Open the cache of a backbone; caches of other backbones are thrown away.

        Args:
            directory: for all caches.
            manifest: of the installed package.
            limit_bytes: of the feature files together.
        """
        self._manifest = manifest
        self._limit = limit_bytes
        settings = f"{manifest.backbone_sha256.hex()} {manifest.schema} {manifest.window}"
        self._directory = directory / hashlib.sha256(settings.encode()).hexdigest()[:32]
        if directory.is_dir():
            for other in directory.iterdir():
                if other != self._directory:
                    shutil.rmtree(other, ignore_errors=True)
        self._directory.mkdir(parents=True, exist_ok=True)

    def collect(self, source: Source, engine: Engine, maximum_windows: int) -> Inventory:
        """Compute what is missing, and gather the labelled windows, the newest `maximum_windows` of them."""
        entries = self._bounded(list(self._entries(source, engine)))
        features, labels, recordings, starts = [], [], [], []
        unlabelled = 0
        for index, (path, rows) in enumerate(entries):
            table = np.load(_table_path(path))
            visible = table["start"] + self._manifest.window.length <= rows
            known = np.flatnonzero(visible & (table["label"] >= 0))
            unlabelled += int(np.count_nonzero(visible & (table["label"] < 0)))
            features.append(np.load(path, mmap_mode="r")[known])
            labels.append(table["label"][known])
            recordings.append(np.full(len(known), index, np.int64))
            starts.append(table["start"][known])
        if not entries:
            empty = np.zeros(0, np.int64)
            nothing = Labelled(np.zeros((0, self._manifest.feature_size), np.float32), empty, empty, empty)
            return Inventory(nothing, 0, "")
        newest = slice(-maximum_windows, None)
        labelled = Labelled(
            np.concatenate(features)[newest],
            np.concatenate(labels)[newest],
            np.concatenate(recordings)[newest],
            np.concatenate(starts)[newest],
        )
        digest = hashlib.sha256()
        for array in (labelled.labels, labelled.recording, labelled.start):
            digest.update(array.tobytes())
        digest.update("".join(path.name for path, _ in entries).encode())
        return Inventory(labelled, unlabelled, digest.hexdigest())

    def _entries(self, source: Source, engine: Engine) -> Iterator[tuple[Path, int]]:
        wanted = set()
        for listing in source.list(self._manifest.schema):
            path = self._directory / f"{hashlib.sha256(listing.key.encode()).hexdigest()[:32]}.npy"
            wanted |= {path.name, _table_path(path).name}
            if not _table_path(path).exists() and not self._compute(listing, path, source, engine):
                continue
            if not path.exists():  # left the full cache; its table stays, so that it is not computed again
                continue
            rows = np.iinfo(np.int64).max if listing.rows is None else listing.rows
            yield path, rows
        for path in self._directory.iterdir() if source.available else ():
            if path.name not in wanted:  # its recording left the source
                path.unlink()

    def _compute(self, listing: Listing, path: Path, source: Source, engine: Engine) -> bool:
        recording = source.read(listing.path, self._manifest.schema)
        if recording is None:
            return False
        cut = windows.cut(recording, self._manifest.window)
        partial = path.with_suffix(".partial.npy")
        shape = (len(cut.y), engine.feature_size)
        if len(cut.y):
            out = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
            for start in range(0, len(cut.y), WINDOWS_AT_ONCE):
                part = slice(start, start + WINDOWS_AT_ONCE)
                out[part] = engine.features(np.ascontiguousarray(cut.x[part]))
            out.flush()
            del out
        else:
            np.save(partial, np.zeros(shape, np.float32))
        partial.replace(path)
        table = np.zeros(len(cut.y), [("label", np.int64), ("start", np.int64)])
        table["label"], table["start"] = cut.y, cut.start
        # The table is written last: a recording counts as computed only when both files are whole.
        partial_table = path.with_suffix(".partial.npy")
        np.save(partial_table, table)
        partial_table.replace(_table_path(path))
        return True

    def _bounded(self, entries: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
        kept: list[tuple[Path, int]] = []
        total = 0
        for path, rows in reversed(entries):
            total += path.stat().st_size
            if total > self._limit and kept:
                log.warning(
                    "the feature cache is full: %d older recordings are left out", len(entries) - len(kept)
                )
                for old, _ in entries[: len(entries) - len(kept)]:
                    old.unlink()
                break
            kept.append((path, rows))
        return kept[::-1]


def _table_path(path: Path) -> Path:
    return path.with_suffix(".table.npy")
