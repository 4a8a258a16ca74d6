"""Which windows an int8 prefix gets its ranges from, and on which its cost is measured."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from protocol.input_schema import InputSchema, WindowSpec

if TYPE_CHECKING:
    from models.fleet_data import SourceWindows

WINDOWS = 512
"""Enough for the ranges of every activation; more only take time."""
HELD_OUT = 0.2
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Calibration:
    """The windows that a prefix is quantised with."""

    windows: Floats
    """float32 [n, *input_shape]: their activations set the ranges."""
    held_out: tuple[Floats, NDArray[np.int64]] | None = None
    """Labelled windows, not among `windows`, to measure the cost in accuracy."""
    real: bool = True
    """False for random windows, which say little about a sensor's ranges."""
    report: Callable[[str], object] = print
    """Takes a line about the cost."""


def from_source(source: "SourceWindows") -> Calibration:
    """Take a fleet's source windows: some to train on for the ranges, the held-out ones for the cost."""
    order = np.random.default_rng(0).permutation(len(source.x))[:WINDOWS]
    return Calibration(source.x.numpy()[order], (source.held_x.numpy(), source.held_y.numpy()))


def from_fleet(fleet_dir: Path, schema: InputSchema, window: WindowSpec, *, labelled: bool) -> Calibration:
    """Read the source devices of a fleet directory.

    Args:
        fleet_dir: holds fleet.toml and the recordings.
        schema: of the package.
        window: of the package.
        labelled: whether the package's classes and its initial head are those of the fleet, so that accuracy
            means something.

    Raises:
        ModelError: the fleet has other channels, another window length, or malformed data.
    """
    classes, source = _read(fleet_dir, schema, window)
    calibration = from_source(source)
    return calibration if labelled and classes == schema.classes else Calibration(calibration.windows)


def sources(fleet_dir: Path, schema: InputSchema, window: WindowSpec) -> "SourceWindows | None":
    """Labelled windows of a fleet's source devices; None where its classes are not those of the package.

    Raises:
        ModelError: as `from_fleet`.
    """
    classes, source = _read(fleet_dir, schema, window)
    return source if classes == schema.classes else None


def _read(
    fleet_dir: Path, schema: InputSchema, window: WindowSpec
) -> tuple[tuple[str, ...], "SourceWindows"]:
    """Classes and source windows of a fleet whose windows fit a package."""
    from models.fleet_data import read_fleet, read_sources, with_normalisation  # noqa: PLC0415 - imports Lightning

    # The prefix sees what the package's normalisation leaves of a window.
    fleet = with_normalisation(read_fleet(fleet_dir), schema.normalisation or "none")
    found, wanted = fleet.schema.input_shape(fleet.window), schema.input_shape(window)
    if found != wanted:
        raise ModelError(f"--calibrate {fleet_dir}: expected windows of {list(wanted)}, got {list(found)}")
    return fleet.schema.classes, read_sources(fleet_dir, fleet, HELD_OUT)


def at_random(schema: InputSchema, window: WindowSpec) -> Calibration:
    """Take standard normal windows, where there are no others."""
    shape = schema.input_shape(window)
    windows = np.random.default_rng(0).standard_normal((64, *shape)).astype(np.float32)
    return Calibration(windows, real=False)
