"""The labelled windows of a device, split by time into training and held-out ones.

The latest windows of every class are held out: a gate that saw shuffled windows would praise an adapter for
knowing its neighbours. Training windows that share rows with a held-out one are left out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.engine import Floats

MINIMUM_PER_CLASS = 3
"""Fewer windows of a class than this are all trained on."""


@dataclass(frozen=True)
class Labelled:
    """Labelled windows as features, in the order of recording."""

    features: Floats
    """float32 [n, feature_size]."""
    labels: NDArray[np.int64]
    """int64 [n]."""
    recording: NDArray[np.int64]
    """int64 [n]: index of the recording, growing with time."""
    start: NDArray[np.int64]
    """int64 [n]: first row within the recording."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64]) -> "Labelled":
        """The windows at `index`, int64 [m]."""
        return Labelled(self.features[index], self.labels[index], self.recording[index], self.start[index])


def split(data: Labelled, holdout_fraction: float, window_length: int) -> tuple[Labelled, Labelled]:
    """Split into (training, held out).

    Args:
        data: all labelled windows.
        holdout_fraction: share of each class's windows, the latest, that is held out.
        window_length: rows per window, to leave out training windows that overlap held-out ones.
    """
    held = np.zeros(len(data), bool)
    for label in np.unique(data.labels):
        index = np.flatnonzero(data.labels == label)
        if len(index) < MINIMUM_PER_CLASS or holdout_fraction == 0:
            continue
        order = index[np.lexsort((data.start[index], data.recording[index]))]
        held[order[-max(1, int(holdout_fraction * len(order))) :]] = True
    overlapping = np.zeros(len(data), bool)
    for recording in np.unique(data.recording[held]):
        same = data.recording == recording
        starts = np.sort(data.start[same & held])
        position = np.searchsorted(starts, data.start)
        before = starts[np.maximum(position - 1, 0)]
        after = starts[np.minimum(position, len(starts) - 1)]
        near = np.minimum(np.abs(data.start - before), np.abs(data.start - after)) < window_length
        overlapping |= same & near
    return data.take(np.flatnonzero(~held & ~overlapping)), data.take(np.flatnonzero(held))


def newest(labels: NDArray[np.int64], maximum: int) -> NDArray[np.int64]:
    """Choose at most `maximum` windows, in order: the newest of every class, rare classes before common ones.

    Args:
        labels: int64 [n], in the order of recording.
        maximum: how many to choose.
    """
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    # Classes share the room alike; what a rare one leaves over goes to the others.
    quota, room = np.zeros(len(counts), np.int64), maximum
    for rank, label in enumerate(np.argsort(counts, kind="stable")):
        quota[label] = min(counts[label], room // (len(counts) - rank))
        room -= quota[label]
    seen_later = np.zeros(len(labels), np.int64)
    for label in range(len(counts)):
        members = np.flatnonzero(inverse == label)
        seen_later[members] = np.arange(len(members))[::-1]
    return np.flatnonzero(seen_later < quota[inverse])
