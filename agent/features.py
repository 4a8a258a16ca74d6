"""Features of the device's windows or pictures, computed once each and kept on disk.

Everything before the first adapter is frozen, so its output per window never changes; training for several
epochs reads it from here. One pair of files per recording, in a folder named by the backbone: a package with
another backbone starts afresh. The cache is bounded: when it is full the oldest recordings leave it. Of
recordings that left, by this or from the source, the replay buffer keeps a few windows of each class.
Pictures, of which each is a file, are kept in blocks (picture_features.py). Where the package wants windows
normalised by the device's own statistics (normalisation.py), features belong to these as well.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from agent.dataset import Labelled, newest
from agent.engine import Engine, Floats
from agent.inventory import Inventory, fingerprint
from agent.normalisation import STATISTICS_FILE, DeviceStatistics
from agent.picture_features import PictureFeatures
from agent.replay import ReplayBuffer
from agent.sources import Listing, Source
from protocol import windows
from protocol.package import Manifest
from runtime import whole_files

log = logging.getLogger(__name__)

WINDOWS_AT_ONCE = 1024
"""Bounds the memory that features of a long recording take on their way to disk."""
REPLAY = "replay"


class FeatureCache:
    """Features by recording."""

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        limit_bytes: int,
        replay_windows: int = 64,
        mapping: str = "",
    ) -> None:
        """Open the cache of a backbone; caches of other backbones are thrown away.

        Args:
            directory: for all caches.
            manifest: of the installed package.
            limit_bytes: of the feature files together.
            replay_windows: of each class, kept of recordings that are gone; together at most a quarter of
                the limit.
            mapping: names how the source reads channels; another one gives other features.
        """
        self._manifest = manifest
        self._limit = limit_bytes
        settings = f"{manifest.backbone_sha256.hex()} {manifest.schema} {manifest.window} {mapping}"
        self._directory = directory / hashlib.sha256(settings.encode()).hexdigest()[:32]
        if directory.is_dir():
            for other in directory.iterdir():
                if other != self._directory:
                    shutil.rmtree(other, ignore_errors=True)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._replay_windows = min(
            replay_windows, limit_bytes // 16 // (manifest.feature_size * len(manifest.schema.classes))
        )
        self._statistics = (
            DeviceStatistics(self._directory, manifest) if manifest.schema.normalisation else None
        )
        self.replay = self._open_replay()
        self._blocks = (
            PictureFeatures(self._directory, manifest, self.replay, limit_bytes=limit_bytes)
            if manifest.schema.of_images
            else None
        )

    def collect(self, source: Source, engine: Engine, maximum_windows: int) -> Inventory:
        """Compute what is missing, and gather the labelled windows, the newest ones of every class.

        Args:
            source: of recordings.
            engine: computes features.
            maximum_windows: most labelled windows to gather.
        """
        if self._blocks is not None:
            return self._blocks.collect(source, engine, maximum_windows)
        if self._statistics is not None and self._statistics.look(source):
            self.replay = self._open_replay()
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
        labelled = Labelled(
            np.concatenate(features),
            np.concatenate(labels),
            np.concatenate(recordings),
            np.concatenate(starts),
        )
        if len(labelled) > maximum_windows:
            labelled = labelled.take(newest(labelled.labels, maximum_windows))
        # The names hold that of the statistics: other features are another fingerprint.
        return Inventory(labelled, unlabelled, fingerprint(labelled, [path.name for path, _ in entries]))

    def prepared(self, raw: Floats) -> Floats:
        """Bring raw windows, float32 [n, *input_shape], into the form that the backbone takes here."""
        if self._statistics is None:
            return raw
        if self._statistics.current is None:
            raise ValueError("windows: expected after the first `collect` of windows, which gives statistics")
        return self._statistics.current.standardise(raw)

    @property
    def _suffix(self) -> str:
        """Of the names of all files that hold features: those by other statistics are of no use."""
        return f"-{self._statistics.name}" if self._statistics else ""

    def _open_replay(self) -> ReplayBuffer:
        return ReplayBuffer(
            self._directory / f"{REPLAY}{self._suffix}.npz",
            self._manifest.feature_size,
            per_class=self._replay_windows,
            seed=int.from_bytes(self._manifest.backbone_sha256[:8], "little"),
        )

    def first_windows(
        self, source: Source, engine: Engine, count: int, maximum_windows: int
    ) -> tuple[Floats, ...]:
        """The first windows of each recording, labelled or not, float32 [n, feature_size], n up to `count`.

        Args:
            source: of recordings.
            engine: computes features.
            count: windows of each recording.
            maximum_windows: most windows together; the newest recordings stay.
        """
        if self._blocks is not None:
            return ()
        entries = self._bounded(list(self._entries(source, engine)))
        found = []
        for path, rows in entries[-max(1, maximum_windows // count) :]:
            table = np.load(_table_path(path))
            visible = table["start"] + self._manifest.window.length <= rows
            found.append(np.array(np.load(path, mmap_mode="r")[np.flatnonzero(visible)[:count]], np.float32))
        return tuple(found)

    def _entries(self, source: Source, engine: Engine) -> Iterator[tuple[Path, int]]:
        wanted = set()
        for listing in source.list(self._manifest.schema):
            path = self._directory / f"{_digest(listing.path.name)}-{_digest(listing.key)}{self._suffix}.npy"
            wanted |= {path.name, _table_path(path).name}
            self._discard_damaged(path)
            if not _table_path(path).exists() and not self._compute(listing, path, source, engine):
                continue
            if not path.exists():  # left the full cache; its table stays, so that it is not computed again
                continue
            rows = np.iinfo(np.int64).max if listing.rows is None else listing.rows
            yield path, rows
        if source.available:
            self._clean(wanted)

    def _discard_damaged(self, path: Path) -> None:
        """Disks rot, and power is cut: what cannot be read is computed anew."""
        table = _table_path(path)
        if not table.exists():
            return
        try:
            found = len(np.load(table)["start"]), self._manifest.feature_size
            if path.exists() and np.load(path, mmap_mode="r").shape != found:
                raise ValueError(f"expected shape {found}")  # noqa: TRY301 - handled like any other damage
        except Exception as error:  # noqa: BLE001 - numpy and the system raise all kinds for a torn file
            log.warning("%s: features are damaged and are computed anew: %s", path, error)
            table.unlink()
            path.unlink(missing_ok=True)

    def _clean(self, wanted: set[str]) -> None:
        """Remove what belongs to no recording of the source any more."""
        present = {_recording_of(name) for name in wanted}
        # In order of name: features come before their table, which says what they are.
        for path in sorted(self._directory.iterdir()):
            if path.name in wanted or path.name in (f"{REPLAY}{self._suffix}.npz", STATISTICS_FILE):
                continue
            # A recording that merely changed is still there: its windows are not the past.
            if _recording_of(path.name) not in present and path.stem.endswith(self._suffix):
                self._remember(path)
            path.unlink(missing_ok=True)

    def _compute(self, listing: Listing, path: Path, source: Source, engine: Engine) -> bool:
        recording = source.read(listing.path, self._manifest.schema)
        if recording is None:
            return False
        cut = windows.cut(recording, self._manifest.window)
        if self._statistics and not self._statistics.current and len(cut.y):
            return False  # it came after the look at the source, or none of its windows is complete so far
        partial = path.with_suffix(".partial.npy")
        shape = (len(cut.y), engine.feature_size)
        if len(cut.y):
            out = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
            for start in range(0, len(cut.y), WINDOWS_AT_ONCE):
                part = slice(start, start + WINDOWS_AT_ONCE)
                out[part] = engine.features(np.ascontiguousarray(self.prepared(cut.x[part])))
            out.flush()
            del out
        else:
            np.save(partial, np.zeros(shape, np.float32))
        whole_files.rename(partial, path)
        table = np.zeros(len(cut.y), [("label", np.int64), ("start", np.int64)])
        table["label"], table["start"] = cut.y, cut.start
        # The table is written last: a recording counts as computed only when both files are whole.
        partial_table = path.with_suffix(".partial.npy")
        np.save(partial_table, table)
        whole_files.rename(partial_table, _table_path(path))
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
                    self._remember(old)
                    old.unlink()
                break
            kept.append((path, rows))
        return kept[::-1]

    def _remember(self, path: Path) -> None:
        """Offer a recording's labelled windows to the replay buffer, if `path` is its features."""
        table_path = _table_path(path)
        if path.name.endswith((".table.npy", ".partial.npy")) or not table_path.exists():
            return
        labels = np.load(table_path)["label"]
        known = np.flatnonzero(labels >= 0)
        self.replay.offer(np.load(path, mmap_mode="r")[known], labels[known])


def _table_path(path: Path) -> Path:
    return path.with_suffix(".table.npy")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _recording_of(file_name: str) -> str:
    """The part of a file's name that is the same for all states of a recording."""
    return file_name.partition("-")[0]
