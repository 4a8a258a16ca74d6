"""Features of pictures on disk, in blocks: few files for many pictures.

A row holds the key of a picture (name, size, date and folder), its label and its features. A full block whose
pictures are all there stays as it is; the rows of all others are written anew, together with those of new
pictures. New blocks are whole before old ones are taken away: after a crash a row may stand in two blocks,
and the later one counts. The newest pictures that fit into the limit are kept; labelled ones that leave are
offered to the replay buffer.
"""

import hashlib
import itertools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.dataset import Labelled, newest
from agent.engine import Engine
from agent.inventory import Inventory, fingerprint
from agent.replay import ReplayBuffer
from agent.sources import Listing, Source
from protocol.package import Manifest
from runtime import whole_files

log = logging.getLogger(__name__)

BLOCK_ROWS = 256
"""Pictures per file; bounds what is written again when one comes."""
IDENTITY_BYTES = 16
"""The part of a key that says which picture it is; the other says in which folder it lies."""
PICTURES_AT_ONCE = 64
"""Decoded pictures in memory."""

Rows = NDArray[Any]
Wanted = Mapping[bytes, Listing]


class PictureFeatures:
    """The blocks of one backbone."""

    def __init__(
        self, directory: Path, manifest: Manifest, replay: ReplayBuffer, *, limit_bytes: int
    ) -> None:
        """Open the blocks in the folder of a backbone's cache.

        Args:
            directory: where the blocks lie.
            manifest: of the installed package.
            replay: takes labelled pictures that leave.
            limit_bytes: of all blocks together.
        """
        self._directory = directory
        self._schema = manifest.schema
        features = ("features", np.float32, (manifest.feature_size,))
        self._row = np.dtype([("key", np.void, 2 * IDENTITY_BYTES), ("label", np.int64), features])
        self._replay = replay
        self._capacity = max(1, limit_bytes // self._row.itemsize)
        self._refused: set[bytes] = set()
        """Pictures that cannot be read: they are not decoded at every look."""
        self._surplus = 0
        for torn in directory.glob("*.partial"):
            torn.unlink()
        self._blocks: dict[Path, list[bytes]] = {}
        """Keys of every block, oldest block first."""
        for path in sorted(directory.glob("[0-9]*.npy")):
            self._open(path)

    def collect(self, source: Source, engine: Engine, maximum: int) -> Inventory:
        """Compute what is missing, and gather the labelled pictures, the newest ones of every class."""
        wanted = self._wanted(source)
        if source.available:
            self._update(wanted, source, engine)
        places = self._places()
        present = [key for key in wanted if key in places]
        labels = np.array([wanted[key].label for key in present], np.int64)
        known = np.flatnonzero(labels >= 0)
        if len(known) > maximum:
            known = known[newest(labels[known], maximum)]
        keys = [present[index] for index in known]
        labelled = Labelled(
            self._take([places[key] for key in keys]), labels[known], np.zeros(len(known), np.int64), known
        )
        name = fingerprint(labelled, [key.hex() for key in keys]) if present else ""
        return Inventory(labelled, int(np.count_nonzero(labels < 0)), name)

    def _open(self, path: Path) -> None:
        try:
            rows = np.load(path)
            if rows.dtype != self._row or rows.ndim != 1:
                raise ValueError(f"expected rows of {self._row.itemsize} bytes")  # noqa: TRY301 - as any damage
        except Exception as error:  # noqa: BLE001 - numpy and the system raise all kinds for a torn file
            log.warning("%s: a block of features is damaged and is made again: %s", path, error)
            path.unlink()
            return
        self._blocks[path] = _keys(rows)

    def _wanted(self, source: Source) -> Wanted:
        listings = {_key(listing): listing for listing in source.list(self._schema)}
        surplus = max(0, len(listings) - self._capacity)
        if surplus > self._surplus:
            log.warning("the feature cache is full: %d older pictures are left out", surplus)
        self._surplus = surplus
        return dict(itertools.islice(listings.items(), surplus, None))

    def _update(self, wanted: Wanted, source: Source, engine: Engine) -> None:
        """Make the blocks hold the wanted pictures and no others, as far as they can be read."""
        self._refused &= wanted.keys()
        places = self._places()
        new = [key for key in wanted if key not in places and key not in self._refused]
        stale = [path for path in self._blocks if not self._valid(path, places, wanted)]
        if not new and not stale:
            return
        opened = [path for path, keys in self._blocks.items() if path in stale or len(keys) < BLOCK_ROWS]
        kept = (self._live(path, places, wanted) for path in opened)
        computed = self._compute(new, wanted, source, engine)
        number = 1 + max((int(path.stem) for path in self._blocks), default=-1)
        pending = np.empty(0, self._row)
        for part in itertools.chain(kept, computed):
            pending = np.concatenate([pending, part])
            while len(pending) >= BLOCK_ROWS:
                self._write(number, pending[:BLOCK_ROWS])
                pending, number = pending[BLOCK_ROWS:], number + 1
        if len(pending):
            self._write(number, pending)
        for path in opened:
            path.unlink()
            del self._blocks[path]

    def _valid(self, path: Path, places: Mapping[bytes, tuple[Path, int]], wanted: Wanted) -> bool:
        keys = self._blocks[path]
        return all(key in wanted and places[key] == (path, row) for row, key in enumerate(keys))

    def _live(self, path: Path, places: Mapping[bytes, tuple[Path, int]], wanted: Wanted) -> Rows:
        """Rows of pictures that are still there; labelled ones that left go to the replay buffer."""
        rows: Rows = np.load(path)
        keys = self._blocks[path]
        current = np.array([places[key] == (path, row) for row, key in enumerate(keys)], bool)
        there = np.array([key in wanted for key in keys], bool)
        # A picture that was put into another folder had the wrong label: it must not be remembered with it.
        identities = {key[:IDENTITY_BYTES] for key in wanted}
        gone = np.array([key[:IDENTITY_BYTES] not in identities for key in keys], bool)
        left = rows[current & gone]
        self._replay.offer(left["features"], left["label"])
        kept: Rows = rows[current & there]
        return kept

    def _compute(self, new: list[bytes], wanted: Wanted, source: Source, engine: Engine) -> Iterator[Rows]:
        for start in range(0, len(new), PICTURES_AT_ONCE):
            keys, pixels = [], []
            for key in new[start : start + PICTURES_AT_ONCE]:
                recording = source.read(wanted[key].path, self._schema)
                if recording is None:
                    self._refused.add(key)
                else:
                    keys.append(key)
                    pixels.append(recording.samples[0])
            if keys:
                rows = np.empty(len(keys), self._row)
                rows["key"] = np.array(keys, self._row["key"])
                rows["label"] = [wanted[key].label for key in keys]
                rows["features"] = engine.features(np.stack(pixels))
                yield rows

    def _take(self, places: list[tuple[Path, int]]) -> NDArray[np.float32]:
        out = np.empty((len(places), *self._row["features"].shape), np.float32)
        blocks = {path: np.load(path, mmap_mode="r") for path in {path for path, _ in places}}
        for index, (path, row) in enumerate(places):
            out[index] = blocks[path]["features"][row]
        return out

    def _write(self, number: int, rows: Rows) -> None:
        partial = self._directory / f"{number:08d}.partial"
        with partial.open("wb") as file:
            np.save(file, rows)
        path = partial.with_suffix(".npy")
        whole_files.rename(partial, path)
        self._blocks[path] = _keys(rows)

    def _places(self) -> dict[bytes, tuple[Path, int]]:
        """Block and row of every key; the last block that holds it counts."""
        return {key: (path, row) for path, keys in self._blocks.items() for row, key in enumerate(keys)}


def _keys(rows: Rows) -> list[bytes]:
    return [key.tobytes() for key in rows["key"]]


def _key(listing: Listing) -> bytes:
    folder, _, picture = listing.key.rpartition("/")
    return b"".join(hashlib.sha256(part.encode()).digest()[:IDENTITY_BYTES] for part in (picture, folder))
