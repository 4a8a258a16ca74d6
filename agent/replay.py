"""The replay buffer: features of labelled windows whose recordings are gone, a few of every class.

A spool is cleaned, a full cache drops its oldest recordings; what they taught would be forgotten, and rare
classes first. The buffer keeps up to `per_class` windows of each class, a uniform sample of all that were
offered (reservoir sampling, algorithm R of Vitter 1985). One file, written whole or not at all.
"""

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.dataset import Labelled
from agent.engine import Floats
from runtime import whole_files

log = logging.getLogger(__name__)


class ReplayBuffer:
    """A bounded, class-balanced sample of the past."""

    def __init__(self, path: Path, feature_size: int, *, per_class: int, seed: int) -> None:
        """Open the buffer; a damaged file is started anew.

        Args:
            path: of the .npz file.
            feature_size: width of the features.
            per_class: most windows of one class; 0 keeps none.
            seed: decides what stays.
        """
        self._path = path
        self._per_class = per_class
        self._seed = seed
        self.features: Floats = np.zeros((0, feature_size), np.float32)
        self.labels: NDArray[np.int64] = np.zeros(0, np.int64)
        self._offered: dict[int, int] = {}
        """Windows of each class that were offered so far."""
        if path.exists():
            self._load()

    def __len__(self) -> int:
        return len(self.labels)

    def windows(self) -> Labelled:
        """What is kept."""
        nowhere = np.full(len(self), -1, np.int64)
        return Labelled(self.features, self.labels, nowhere, nowhere)

    def offer(self, features: Floats, labels: NDArray[np.int64]) -> None:
        """Take a sample of windows into the buffer and write it down.

        Args:
            features: float32 [n, feature_size].
            labels: int64 [n]; windows below 0 are not labelled and passed over.
        """
        if not self._per_class:
            return
        kept: dict[int, list[int]] = {
            int(label): np.flatnonzero(self.labels == label).tolist() for label in np.unique(self.labels)
        }
        added: list[int] = []
        total = sum(self._offered.values())
        # The seed moves with what was offered: a buffer that is read again goes on as if it never stopped.
        random = np.random.Generator(np.random.PCG64([self._seed, total]))
        for index in np.flatnonzero(labels >= 0):
            label = int(labels[index])
            members = kept.setdefault(label, [])
            self._offered[label] = seen = self._offered.get(label, 0) + 1
            place = len(members) if len(members) < self._per_class else int(random.integers(seen))
            if place < self._per_class:
                members[place : place + 1] = [len(self.labels) + len(added)]
                added.append(int(index))
        if not added:
            return
        everything = np.concatenate([self.features, np.asarray(features[added], np.float32)])
        all_labels = np.concatenate([self.labels, labels[added]])
        order = np.array([index for label in sorted(kept) for index in kept[label]], np.int64)
        self.features, self.labels = everything[order], all_labels[order]
        self._write()

    def _write(self) -> None:
        partial = self._path.with_suffix(".partial.npz")
        np.savez(
            partial,
            features=self.features,
            labels=self.labels,
            offered=np.array(sorted(self._offered.items()), np.int64).reshape(-1, 2),
        )
        whole_files.rename(partial, self._path)

    def _load(self) -> None:
        try:
            with self._path.open("rb") as stream, np.load(stream) as file:
                features, labels, offered = file["features"], file["labels"], file["offered"]
            if features.shape != (len(labels), self.features.shape[1]) or features.dtype != np.float32:
                raise ValueError(  # noqa: TRY301 - handled like any other damage
                    f"expected features [n, {self.features.shape[1]}]"
                )
        except Exception as error:  # noqa: BLE001 - zip and numpy raise all kinds
            log.warning("%s: the replay buffer is damaged and starts anew: %s", self._path, error)
            return
        self.features, self.labels = features, labels.astype(np.int64)
        self._offered = {int(label): int(count) for label, count in offered}
