"""Hydraulic test rig: a device is the rig at one state of cooler and accumulator, so a fleet of 12.

The states stand in for machines of different wear: the backbone knows those with a good accumulator, in each
state of the cooler; the others take part. To be told: how much the pump leaks. A tabular task: slow process
values, once a second, in windows of 20 s.
"""

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.fleet import Device, FleetDescription, Split
from protocol.input_schema import InputSchema, WindowSpec
from protocol.recording import Recording
from simulation.recordings import write_fleet_description, write_recording

DESCRIPTION = (
    "Condition monitoring of hydraulic systems (Helwig, Pignanelli, Schuetze 2015, ZeMA; "
    "doi 10.24432/C5CW21), from github.com/kokikwbt/predictive-maintenance. "
    "Licence: CC BY 4.0. Load cycles of 60 s; temperatures, "
    "vibration and efficiency at 1 Hz unchanged, volume flows averaged over each second (source: 10 Hz). "
    "One rig, regrouped by the state of cooler and accumulator."
)
SLOW = ("TS1", "TS2", "TS3", "TS4", "VS1", "SE")
FLOWS = ("FS1", "FS2")
CYCLE_SECONDS = 60
SCHEMA = InputSchema("timeseries", (*SLOW, *FLOWS), 1.0, ("no_leak", "weak_leak", "severe_leak"))
SOURCE_ACCUMULATOR = 130
"""Pressure in bar of an accumulator that is as it should be."""


def import_fleet(source: Path, target: Path) -> None:
    """Write 12 devices, 8 channels, a recording per run of cycles; good accumulators are source.

    Raises:
        FileNotFoundError: hydraulic_rig.npz is missing in `source`.
        KeyError, ValueError: it holds other arrays.
    """
    with np.load(source / "hydraulic_rig.npz") as data:
        profile, samples = data["profile"], _samples({name: data[name] for name in (*SLOW, *FLOWS)})
    cooler, leak, accumulator = profile[:, 0], profile[:, 2], profile[:, 3]
    starts = [0, *(np.flatnonzero((np.diff(profile[:, :4], axis=0) != 0).any(1)) + 1).tolist(), len(profile)]
    devices: dict[str, Device] = {}
    for start, stop in itertools.pairwise(starts):
        identity = f"cooler{cooler[start]:03d}-accumulator{accumulator[start]:03d}"
        folder = target / identity
        if identity not in devices:
            role = "source" if accumulator[start] == SOURCE_ACCUMULATOR else "edge"
            devices[identity] = Device(identity, f"cooler{cooler[start]:03d}", role)
            folder.mkdir(parents=True)
        rows = samples[start:stop].reshape(-1, len(SCHEMA.channels))
        # Cycles are numbered through: the order of names is that of time.
        name = f"cycle{start:04d}.csv"
        labels = np.full(len(rows), leak[start], np.int64)
        write_recording(folder / name, Recording(name, rows, labels), SCHEMA)
    fleet = FleetDescription(
        SCHEMA,
        WindowSpec(20, 20),
        tuple(devices[identity] for identity in sorted(devices)),
        Split("recording"),
        "hydraulic_rig",
        DESCRIPTION,
    )
    write_fleet_description(target, fleet)


def _samples(sensors: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Bring all sensors to 1 Hz: float32 [cycles, seconds, channels]."""
    flows = {name: sensors[name].reshape(-1, CYCLE_SECONDS, 10).mean(2) for name in FLOWS}
    return np.stack([flows.get(name, values) for name, values in sensors.items()], axis=2)
