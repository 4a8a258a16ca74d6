"""The labelled windows or pictures of a fleet's source devices, as Lightning wants them.

Opens the recordings of a fleet directory (`fleet.toml` and one folder per device); what a valid recording
or picture is, and how it is cut, protocol decides. Edge devices' folders are never read: their data do not
move. Held out are the last windows of every class of every recording, and the last pictures of every class of
every device, so that neighbours in time, which look alike, do not stand on both sides.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset, WeightedRandomSampler

from models.errors import TrainingError
from protocol import fleet as fleet_format
from protocol import recording as recording_format
from protocol import windows as windowing
from protocol.errors import DataError
from protocol.fleet import FleetDescription
from protocol.image import SUFFIXES as PICTURES
from protocol.input_schema import InputSchema, WindowSpec
from protocol.normalisation import Moments, Statistics
from protocol.recording import Recording
from protocol.windows import Windows
from runtime.pictures import pictures_in, read_picture

FLEET_FILE = "fleet.toml"
SUFFIXES = (".csv", ".parquet")
HELD_OUT_BATCH = 256


@dataclass(frozen=True, eq=False)
class SourceWindows:
    """Labelled windows of all the source devices, in two parts."""

    x: Tensor
    """float32 [n, *input_shape], to train on."""
    y: Tensor
    """int64 [n]."""
    group: Tensor
    """int64 [n]: device and class, numbered; every group is drawn equally often within its class."""
    held_x: Tensor
    """float32 [m, *input_shape], to choose the epoch by."""
    held_y: Tensor
    """int64 [m]."""


class SourceDevices(pl.LightningDataModule):
    """Reads the source devices once and hands out class-balanced batches."""

    def __init__(
        self,
        fleet_dir: Path,
        *,
        batch: int = 64,
        held_out: float = 0.2,
        seed: int = 0,
        normalisation: str | None = None,
    ) -> None:
        """Read the fleet's description and its source devices' recordings.

        Args:
            fleet_dir: holds fleet.toml and the recordings.
            batch: windows per step.
            held_out: share of the windows, the last in time, that is not trained on.
            seed: of the batches.
            normalisation: one of NORMALISATIONS, or "none", in place of what fleet.toml says.

        Raises:
            TrainingError: fleet.toml or a recording is malformed, or the data are not enough.
        """
        super().__init__()
        self.fleet = with_normalisation(read_fleet(fleet_dir), normalisation)
        self.windows = read_sources(fleet_dir, self.fleet, held_out)
        self.batch, self.seed = batch, seed

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel of the training part, float32 [channels] each."""
        x = self.windows.x.double()
        others = (0, *range(2, x.dim()))
        return x.mean(others).float(), x.std(others, correction=0).float()

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches in which all classes, and within a class all devices, come equally often."""
        windows = self.windows
        sizes = torch.bincount(windows.group).double()
        devices = torch.zeros(int(windows.y.max()) + 1).double()
        for group in sizes.nonzero():
            devices[windows.y[windows.group == group][0]] += 1
        weights = 1 / (sizes[windows.group] * devices[windows.y])
        random = torch.Generator().manual_seed(self.seed)
        sampler = WeightedRandomSampler(weights.tolist(), len(weights), generator=random)
        dataset = TensorDataset(windows.x, windows.y)
        # A batch sampler as sampler: the tensors are indexed once per batch, not once per window. A last
        # batch of one window has no statistics for BatchNorm, so short batches are dropped.
        drop = len(weights) > self.batch
        return DataLoader(dataset, batch_size=None, sampler=BatchSampler(sampler, self.batch, drop))

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of the held-out part, in order."""
        dataset = TensorDataset(self.windows.held_x, self.windows.held_y)
        sampler = BatchSampler(SequentialSampler(dataset), HELD_OUT_BATCH, False)
        return DataLoader(dataset, batch_size=None, sampler=sampler)


def read_fleet(fleet_dir: Path) -> FleetDescription:
    """Read fleet.toml of a fleet directory.

    Raises:
        TrainingError: there is none, or it is malformed.
    """
    file = fleet_dir / FLEET_FILE
    try:
        return fleet_format.parse(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{file}: expected a readable fleet description: {error}") from error
    except DataError as error:
        raise TrainingError(str(error)) from error


def with_normalisation(fleet: FleetDescription, normalisation: str | None) -> FleetDescription:
    """Describe a fleet with another normalisation, or "none"; None: as it is.

    Raises:
        TrainingError: the fleet's data cannot be normalised so.
    """
    if normalisation is None:
        return fleet
    try:
        chosen = None if normalisation == "none" else normalisation
        return replace(fleet, schema=replace(fleet.schema, normalisation=chosen))
    except ValueError as error:
        raise TrainingError(str(error)) from error


def read_sources(fleet_dir: Path, fleet: FleetDescription, held_out: float) -> SourceWindows:
    """Read, cut and divide the recordings of all the source devices.

    Raises:
        TrainingError: a recording is malformed, or a class has no window to train on.
    """
    devices = fleet.of_role("source")
    if not devices:
        raise TrainingError(
            f"{fleet_dir / FLEET_FILE}: no device has the role 'source'",
            "give the role to the devices whose data may be read here",
        )
    if not 0 <= held_out < 1:
        raise TrainingError(f"held_out: expected a share from 0 to below 1, got {held_out}")
    kept: list[tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]] = []
    held: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []
    for index, device in enumerate(devices):
        for windows in _windows(fleet_dir / device.id, fleet):
            training, later = _divide(windows, fleet.window, held_out)
            labels = windows.y[training]
            kept.append((windows.x[training], labels, labels + index * len(fleet.schema.classes)))
            held.append((windows.x[later], windows.y[later]))
    x, y, group = (torch.from_numpy(np.concatenate(part)) for part in zip(*kept, strict=True))
    held_x, held_y = (torch.from_numpy(np.concatenate(part)) for part in zip(*held, strict=True))
    for label, name in enumerate(fleet.schema.classes):
        if not (y == label).any():
            raise TrainingError(
                f"class {name!r}: the source devices have no labelled {_inputs(fleet)}",
                "label more data" + ("" if fleet.schema.of_images else ", or use shorter windows"),
            )
    return SourceWindows(x, y, group, held_x, held_y)


def _windows(folder: Path, fleet: FleetDescription) -> Iterator[Windows]:
    """Cut each recording of a device; its pictures are one recording."""
    if fleet.schema.of_images:
        yield windowing.cut(_read_pictures(folder, fleet.schema), fleet.window)
        return
    statistics = _statistics(folder, fleet)
    for file in _recordings(folder):
        windows = _read(file, fleet.schema, fleet.window)
        yield replace(windows, x=statistics.standardise(windows.x)) if statistics else windows


def _statistics(folder: Path, fleet: FleetDescription) -> Statistics | None:
    """Of all windows of a source device, as an agent takes them of its own; None: its windows stay raw."""
    if fleet.schema.normalisation is None:
        return None
    moments = Moments()
    for file in _recordings(folder):
        moments.add(_read(file, fleet.schema, fleet.window).x)
    return moments.statistics(fleet.schema.normalisation)


def _inputs(fleet: FleetDescription) -> str:
    return "picture" if fleet.schema.of_images else f"window of {fleet.window.length} rows"


def _read_pictures(folder: Path, schema: InputSchema) -> Recording:
    try:
        files, errors = pictures_in(folder, schema)
        if errors:
            raise errors[0]
        labelled = [file for file in files if file.label >= 0]
        if not labelled:
            raise TrainingError(
                f"{folder}: expected a folder of pictures ({', '.join(PICTURES)}) for each class, found none",
                f"name the folders {', '.join(schema.classes)}",
            )
        samples = np.stack([read_picture(file, schema) for file in labelled])
    except OSError as error:
        raise TrainingError(f"{folder}: not readable: {error.strerror}") from error
    except DataError as error:
        raise TrainingError(f"{folder}: {error}") from error
    return Recording(folder.name, samples, np.array([file.label for file in labelled], np.int64))


def _recordings(folder: Path) -> list[Path]:
    files = sorted(
        file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        raise TrainingError(f"{folder}: expected recordings ({', '.join(SUFFIXES)}), found none")
    return files


def _read(file: Path, schema: InputSchema, window: WindowSpec) -> Windows:
    try:
        with file.open("rb") as stream:
            return windowing.cut(recording_format.parse(stream, str(file), schema), window)
    except OSError as error:
        raise TrainingError(f"{file}: not readable: {error.strerror}") from error
    except DataError as error:
        raise TrainingError(str(error)) from error


def _divide(
    windows: Windows, window: WindowSpec, share: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the windows to train on and of those held out, unlabelled ones in neither."""
    training, later = [], []
    for label in np.unique(windows.y[windows.y >= 0]):
        members = np.flatnonzero(windows.y == label)
        count = round(len(members) * share)
        first = len(members) - count
        later.append(members[first:])
        # Windows may overlap: one that reaches into the held-out rows would leak them.
        end = windows.start[members[first]] if count else np.iinfo(np.int64).max
        earlier = members[:first]
        training.append(earlier[windows.start[earlier] + window.length <= end])
    nothing = [np.zeros(0, np.int64)]
    return np.concatenate(training or nothing), np.concatenate(later or nothing)
