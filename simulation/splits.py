"""What goes onto a device, what is kept back to measure the experiment, and how many labels are known.

Pure: recordings in, recordings out, and the same for lists of pictures. Data are never split by shuffling
windows: neighbouring windows of one recording look alike, and a random split would measure memory. No row of
a test part is in a development part, so no window of the one overlaps a window of the other.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from protocol.fleet import Split
from protocol.input_schema import ONE_PICTURE, InputSchema, WindowSpec
from protocol.recording import UNLABELLED, Recording
from protocol.windows import Windows, cut
from runtime.pictures import PictureFile


@dataclass(frozen=True, eq=False)
class Division:
    """The recordings of one device, divided."""

    development: tuple[Recording, ...]
    """Goes onto the device, which holds out its own validation part; each is one contiguous block."""
    test: tuple[Recording, ...]
    """Never goes onto the device."""


def divide(recordings: Sequence[Recording], split: Split) -> Division:
    """Divide a device's recordings into development and test parts.

    By "time": the last share of each recording's rows is test. Where that would leave a class of the
    recording wholly out of either part, every run of equal labels of this recording is divided by time
    instead, so its development part is several blocks; the name of a block says at which row it starts.

    By "recording": whole recordings are test: per combination of classes the last ones by name; then, for
    each class still without test data, the last recording whose classes all stay in development too. A
    class that is in one recording only stays in development.
    """
    if split.test == 0:
        return Division(tuple(recordings), ())
    if split.by == "recording":
        return _divide_by_recording(recordings, split.test)
    development: list[Recording] = []
    test: list[Recording] = []
    for recording in recordings:
        for start, stop, of_test in _time_blocks(recording.labels, split.test):
            part = _part(recording, start, stop)
            (test if of_test else development).append(part)
    return Division(tuple(development), tuple(test))


def _time_blocks(labels: NDArray[np.int64], share: float) -> list[tuple[int, int, bool]]:
    """Return (start, stop, whether it is test) of contiguous blocks that cover all rows."""
    rows = len(labels)
    boundary = rows - round(rows * share)
    before, after = set(labels[:boundary].tolist()), set(labels[boundary:].tolist())
    edges = [0, rows]
    if (before ^ after) - {UNLABELLED}:
        edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), rows]
    blocks = []
    for start, stop in itertools.pairwise(edges):
        boundary = stop - round((stop - start) * share)
        blocks += [(start, boundary, False), (boundary, stop, True)]
    return [block for block in blocks if block[0] < block[1]]


def _part(recording: Recording, start: int, stop: int) -> Recording:
    # Zero-padded, so that sorting by name keeps the order of time.
    name = f"{PurePath(recording.name).stem}-{start:08d}.csv"
    return Recording(name, recording.samples[start:stop], recording.labels[start:stop])


def _divide_by_recording(recordings: Sequence[Recording], share: float) -> Division:
    ordered = sorted(recordings, key=lambda recording: recording.name)
    classes = [frozenset(np.unique(recording.labels).tolist()) - {UNLABELLED} for recording in ordered]
    groups: defaultdict[frozenset[int], list[int]] = defaultdict(list)
    for index, present in enumerate(classes):
        groups[present].append(index)
    test: set[int] = set()
    for members in groups.values():
        count = min(round(len(members) * share), len(members) - 1)
        test.update(members[len(members) - count :])
    for label in sorted(frozenset().union(*classes)):
        if any(label in classes[index] for index in test):
            continue
        remaining = [index for index in range(len(ordered)) if index not in test]
        holders = Counter(present for index in remaining for present in classes[index])
        candidates = [
            index
            for index in remaining
            if label in classes[index] and all(holders[present] > 1 for present in classes[index])
        ]
        test.update(candidates[-1:])
    return Division(
        tuple(recording for index, recording in enumerate(ordered) if index not in test),
        tuple(recording for index, recording in enumerate(ordered) if index in test),
    )


def keep_labels(
    recordings: Sequence[Recording], schema: InputSchema, window: WindowSpec, per_class: int | None, seed: int
) -> list[Recording]:
    """Leave exactly `per_class` labelled windows per class, spread over time; erase all other labels.

    The number is exact as `protocol.windows.cut` counts it on the device; a class that has fewer windows
    keeps them all, and labels that fill no window are erased.

    Args:
        recordings: the development part of one device, in order of time.
        schema: names the classes.
        window: the grid on which the device cuts.
        per_class: labelled windows to keep; None keeps all labels as they are.
        seed: decides which windows; the same seed, the same windows.

    Raises:
        ValueError: per_class is negative.
    """
    if per_class is None:
        return list(recordings)
    if per_class < 0:
        raise ValueError(f"per_class: expected 0 or more windows, got {per_class}")
    kept = [np.zeros(len(recording.labels), np.bool_) for recording in recordings]
    windows = [cut(recording, window) for recording in recordings]
    for label in range(len(schema.classes)):
        # A generator per class: how often one class draws does not move the windows of the next.
        random = np.random.Generator(np.random.PCG64([seed, label]))
        _keep_class(_positions(windows, label), window, per_class, kept, random)
    return [
        Recording(recording.name, recording.samples, np.where(rows, recording.labels, UNLABELLED))
        for recording, rows in zip(recordings, kept, strict=True)
    ]


@dataclass(frozen=True)
class PictureDivision:
    """The pictures of one device, divided; both parts in the order of time."""

    development: tuple[PictureFile, ...]
    test: tuple[PictureFile, ...]


def divide_pictures(pictures: Sequence[PictureFile], split: Split) -> PictureDivision:
    """Divide a device's pictures: of every label the last share is test, of the unlabelled ones as well.

    Args:
        pictures: of one device, in the order of time.
        split: the share.
    """
    held: set[int] = set()
    for label in {file.label for file in pictures}:
        members = [index for index, file in enumerate(pictures) if file.label == label]
        held.update(members[len(members) - round(len(members) * split.test) :])
    return PictureDivision(
        tuple(file for index, file in enumerate(pictures) if index not in held),
        tuple(file for index, file in enumerate(pictures) if index in held),
    )


def keep_picture_labels(
    pictures: Sequence[PictureFile], schema: InputSchema, per_class: int | None, seed: int
) -> list[PictureFile]:
    """Leave `per_class` labelled pictures per class, spread over time; take the label off all others."""
    labels = np.array([file.label for file in pictures], np.int64)
    rows = Recording("pictures", np.zeros((len(labels), 1), np.float32), labels)
    [kept] = keep_labels([rows], schema, ONE_PICTURE, per_class, seed)
    return [replace(file, label=int(label)) for file, label in zip(pictures, kept.labels, strict=True)]


def _positions(windows: Sequence[Windows], label: int) -> list[tuple[int, int]]:
    """Return (recording, start) of all windows of one class, in order of time."""
    return [
        (index, int(start)) for index, part in enumerate(windows) for start in part.start[part.y == label]
    ]


def _keep_class(
    positions: list[tuple[int, int]],
    window: WindowSpec,
    count: int,
    kept: list[NDArray[np.bool_]],
    random: np.random.Generator,
) -> None:
    """Mark in `kept` the rows of exactly min(count, all) windows.

    Overlapping windows make this more than a choice: two kept windows may together hold all the rows of
    a third, which the device would then count as well. So a window that adds too many is passed over.
    """
    total = len(positions)
    count = min(count, total)
    if count == 0:
        return
    known = set(positions)
    spread = np.floor((np.arange(count) + random.random()) * (total / count)).astype(np.int64)
    order = dict.fromkeys([*np.minimum(spread, total - 1).tolist(), *random.permutation(total).tolist()])
    labelled = 0
    for recording, start in (positions[index] for index in order):
        rows = kept[recording]
        before = rows[start : start + window.length].copy()
        if before.all():
            continue
        nearby = _overlapping(recording, start, window, known)
        already = sum(bool(rows[other : other + window.length].all()) for other in nearby)
        rows[start : start + window.length] = True
        added = sum(bool(rows[other : other + window.length].all()) for other in nearby) - already
        if labelled + added > count:
            rows[start : start + window.length] = before
            continue
        labelled += added
        if labelled == count:
            return
    # Every window left would close a gap and add several. A run from the start has no gaps.
    for recording, start in positions:
        kept[recording][start : start + window.length] = False
    for recording, start in positions[:count]:
        kept[recording][start : start + window.length] = True


def _overlapping(recording: int, start: int, window: WindowSpec, known: set[tuple[int, int]]) -> list[int]:
    """Return the starts of the windows of the class that share rows with this one, itself included."""
    reach = math.ceil(window.length / window.stride) - 1
    starts = range(start - reach * window.stride, start + reach * window.stride + 1, window.stride)
    return [other for other in starts if (recording, other) in known]
