"""Digits of utility meters: a device is one meter with its camera, so a fleet of 16; domains are utilities.

The files carry reading and hash, no time. So that held-out pictures have no near-identical ones on the
device, as consecutive frames of one meter would be, pictures of one digit that hardly differ are neighbours.
"""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.fleet import Device, FleetDescription, Split
from protocol.image import decode
from protocol.input_schema import ONE_PICTURE, ImageSpec, InputSchema
from simulation.recordings import write_fleet_description

DESCRIPTION = (
    "Digits of water, gas and power meters (Tenth-of-step-of-a-meter-digit, images/collected), from "
    "github.com/haverland/Tenth-of-step-of-a-meter-digit. Licence: Apache-2.0. JPEG files unchanged; the "
    "label is the digit before the decimal point. There is no time of recording: near-identical pictures "
    "were made neighbours, and their order is otherwise that of the hashes in their names."
)
SCHEMA = InputSchema("image", ("grey",), 1.0, tuple("0123456789"), ImageSpec(32, 20))
SOURCE_METERS = (
    "gas_gmt_iotson",
    "power_emeter1",
    "power_iskra",
    "power_heliowatt",
    "water_techem",
    "water_altair",
)
NEAR = 0.04
"""Root mean square difference, of grey values from 0 to 1, below which two pictures are near-identical."""


def import_fleet(source: Path, target: Path) -> None:
    """Write 16 devices with 230 to 700 pictures each, in a folder per digit; six meters are source.

    Raises:
        FileNotFoundError: meter_digits.npz is missing in `source`.
        KeyError, ValueError, DataError: it holds other arrays, or no pictures; or Pillow is not installed.
    """
    with np.load(source / "meter_digits.npz") as data:
        archive, offsets, digits = data["jpeg"].tobytes(), data["offsets"], data["y"]
        meters, paths = data["domain"], [Path(path) for path in data["source"].tolist()]
    devices = []
    for meter in np.unique(meters).tolist():
        role = "source" if meter in SOURCE_METERS else "edge"
        devices.append(Device(meter, meter.partition("_")[0], role))
        for digit in range(10):
            members = np.flatnonzero((meters == meter) & (digits == digit)).tolist()
            # By the hash alone: the reading in front of it would put all half-turned digits at the end.
            members.sort(key=lambda index: paths[index].stem.rpartition("_")[2])
            files = [archive[offsets[index] : offsets[index + 1]] for index in members]
            folder = target / meter / str(digit)
            if members:
                folder.mkdir(parents=True)
            for position, index in enumerate(_neighbours(files)):
                (folder / f"{position:04d}_{paths[members[index]].name}").write_bytes(files[index])
    fleet = FleetDescription(SCHEMA, ONE_PICTURE, tuple(devices), Split("time"), "meter_digits", DESCRIPTION)
    write_fleet_description(target, fleet)


def _neighbours(files: list[bytes]) -> list[int]:
    """Order pictures so that near-identical ones follow one another; otherwise the order stays."""
    if not files:
        return []
    pixels = np.stack([decode(io.BytesIO(file), "picture", SCHEMA).ravel() for file in files])
    near = _distances(pixels) < NEAR
    order: list[int] = []
    left = dict.fromkeys(range(len(files)))
    while left:
        pending = [next(iter(left))]
        del left[pending[0]]
        while pending:
            index = pending.pop()
            order.append(index)
            found = [other for other in np.flatnonzero(near[index]).tolist() if other in left]
            for other in found:
                del left[other]
            pending += reversed(found)
    return order


def _distances(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Root mean square differences of all pairs, [n, n]."""
    values = pixels.astype(np.float64)
    squares = (values**2).sum(1)
    products = squares[:, None] + squares[None, :] - 2 * values @ values.T
    distances: NDArray[np.float64] = np.sqrt(products.clip(0) / pixels.shape[1])
    return distances
