"""What one simulated device gets in its spool, and what it is tested on.

The development part goes into the spool, labels beyond the budget erased; the test part stays here.
Recordings are written as CSV, pictures copied as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.fleet import Device, FleetDescription
from protocol.recording import Recording
from protocol.windows import concatenate, cut
from runtime.pictures import read_picture
from simulation.pictures import copy_pictures, read_device_pictures
from simulation.recordings import read_device, write_recording
from simulation.splits import divide, divide_pictures, keep_labels, keep_picture_labels


@dataclass(frozen=True, eq=False)
class Allotment:
    """The data of one device."""

    development_windows: int
    labelled_windows: int
    test_x: NDArray[np.float32]
    """[n, *input_shape]."""
    test_y: NDArray[np.int64]
    """[n], all labelled."""
    test_recording: NDArray[np.int64]
    """[n], index of the test recording; windows stand in the order of time."""
    problems: tuple[str, ...]
    """What was left out, with the reason; the last one says so when the device cannot take part."""

    without_labels: bool = False
    """Whether windows without labels are something to train on: where the fleet has anomalies."""

    @property
    def usable(self) -> bool:
        """Whether there is something to train on and something to test on."""
        trainable = self.development_windows if self.without_labels else self.labelled_windows
        return trainable > 0 and len(self.test_y) > 0


@dataclass(frozen=True)
class Budget:
    """How many labels a device knows."""

    per_class: int | None
    """Labelled windows, or pictures, of each class; None: all."""
    seed: int
    """Decides which."""


def allot(directory: Path, fleet: FleetDescription, device: Device, budget: Budget, spool: Path) -> Allotment:
    """Fill a device's spool, and keep back its test part.

    Args:
        directory: the fleet directory.
        fleet: its description.
        device: one of its devices.
        budget: how many labels it knows.
        spool: folder to make and fill.
    """
    of = _allot_pictures if fleet.schema.of_images else _allot_recordings
    found = replace(of(directory, fleet, device, budget, spool), without_labels=bool(fleet.anomalies))
    if found.usable or not (found.development_windows or len(found.test_y) or spool.exists()):
        return found
    inputs = "pictures" if fleet.schema.of_images else "windows"
    enough = found.labelled_windows or found.without_labels
    what = f"labelled test {inputs}" if enough else f"labelled {inputs} to train on"
    reason = f"device {device.id!r}: expected {what}, found none"
    return Allotment(
        found.development_windows,
        found.labelled_windows,
        found.test_x,
        found.test_y,
        found.test_recording,
        (*found.problems, reason),
    )


def _allot_recordings(
    directory: Path, fleet: FleetDescription, device: Device, budget: Budget, spool: Path
) -> Allotment:
    data = read_device(directory, fleet, device)
    division = divide(data.recordings, fleet.split)
    development = keep_labels(division.development, fleet.schema, fleet.window, budget.per_class, budget.seed)
    for recording in development:
        spool.mkdir(parents=True, exist_ok=True)
        write_recording(spool / f"{Path(recording.name).stem}.csv", recording, fleet.schema)
    _, labels, _ = _windows(development, fleet)
    test_x, test_y, test_recording = _windows(division.test, fleet)
    known = test_y >= 0
    problems = tuple(str(error) for error in data.errors)
    return Allotment(
        len(labels),
        int(np.count_nonzero(labels >= 0)),
        test_x[known],
        test_y[known],
        test_recording[known],
        problems,
    )


def _allot_pictures(
    directory: Path, fleet: FleetDescription, device: Device, budget: Budget, spool: Path
) -> Allotment:
    data = read_device_pictures(directory, fleet, device)
    division = divide_pictures(data.pictures, fleet.split)
    kept = keep_picture_labels(division.development, fleet.schema, budget.per_class, budget.seed)
    copy_pictures(kept, spool, fleet.schema)
    test = [file for file in division.test if file.label >= 0]
    pixels = np.empty((len(test), *fleet.schema.input_shape(fleet.window)), np.float32)
    for index, file in enumerate(test):
        pixels[index] = read_picture(file, fleet.schema)
    labels = np.array([file.label for file in test], np.int64)
    problems = tuple(str(error) for error in data.errors)
    recording = np.arange(len(test), dtype=np.int64)
    return Allotment(len(kept), sum(file.label >= 0 for file in kept), pixels, labels, recording, problems)


def _windows(
    recordings: Sequence[Recording], fleet: FleetDescription
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Windows, labels, and the index of each one's recording."""
    if not recordings:
        shape, empty = (0, *fleet.schema.input_shape(fleet.window)), np.zeros(0, np.int64)
        return np.zeros(shape, np.float32), empty, empty
    windows = concatenate([cut(recording, fleet.window) for recording in recordings])
    return windows.x, windows.y, windows.recording
