"""Recordings cut into windows: what the model sees, and which label each window carries.

The agent and the simulation both cut through here, so a label budget counted in the simulation is the
number of labelled windows that the device finds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from protocol.input_schema import WindowSpec
from protocol.recording import UNLABELLED, Recording


@dataclass(frozen=True, eq=False)
class Windows:
    """n windows of equal length."""

    x: NDArray[np.float32]
    """[n, channels, length], of pictures [n, channels, height, width]; contiguous: as the model takes it."""
    y: NDArray[np.int64]
    """[n], class index; -1 where unlabelled."""
    recording: NDArray[np.int64]
    """[n], index of the window's recording in the order in which the recordings were given."""
    start: NDArray[np.int64]
    """[n], row of the recording at which the window starts; always a multiple of the stride."""

    def __len__(self) -> int:
        return len(self.y)


def cut(recording: Recording, window: WindowSpec) -> Windows:
    """Cut a recording at rows 0, stride, 2 * stride ...; a rest shorter than a window is left out.

    A window has the label that all its rows share. Where some rows are unlabelled, it is unlabelled;
    where its rows carry two different labels, it is dropped: it belongs to neither class, and as an
    unlabelled window it would teach the transition as if it were a state. Every picture is one window.
    """
    if recording.samples.ndim > 2:
        every = np.arange(len(recording.labels))
        samples = np.ascontiguousarray(recording.samples, np.float32)
        return Windows(samples, recording.labels, np.zeros_like(every), every)
    rows, channels = recording.samples.shape
    if rows < window.length:
        nothing = np.zeros(0, np.int64)
        return Windows(np.zeros((0, channels, window.length), np.float32), nothing, nothing, nothing)
    labels = sliding_window_view(recording.labels, window.length)[:: window.stride]
    lowest, highest = labels.min(axis=1), labels.max(axis=1)
    # The lowest label apart from "unlabelled" decides whether a window has two labels.
    above_all = np.where(recording.labels == UNLABELLED, np.iinfo(np.int64).max, recording.labels)
    lowest_known = sliding_window_view(above_all, window.length)[:: window.stride].min(axis=1)
    kept = np.flatnonzero((highest == UNLABELLED) | (lowest_known == highest))
    views = sliding_window_view(recording.samples, window.length, axis=0)[:: window.stride]
    return Windows(
        x=np.ascontiguousarray(views[kept], np.float32),
        y=np.where(lowest == UNLABELLED, UNLABELLED, highest)[kept],
        recording=np.zeros(len(kept), np.int64),
        start=kept.astype(np.int64) * window.stride,
    )


def concatenate(parts: Sequence[Windows]) -> Windows:
    """Join windows; part i holds the windows of recording i, and `recording` becomes i.

    Raises:
        ValueError: no parts: the number of channels is then unknown.
    """
    if not parts:
        raise ValueError("parts: expected the windows of at least one recording")
    return Windows(
        x=np.concatenate([part.x for part in parts]),
        y=np.concatenate([part.y for part in parts]),
        recording=np.repeat(np.arange(len(parts), dtype=np.int64), [len(part) for part in parts]),
        start=np.concatenate([part.start for part in parts]),
    )
