"""SKAB water pump loop: a device is three or four experiments of one kind of fault, so a fleet of 10.

The folders of the source (a valve closed at the outlet, at the inlet, other faults) are the domains.
"""

from pathlib import Path

import numpy as np

from protocol.fleet import Device, FleetDescription, Split
from protocol.input_schema import InputSchema, WindowSpec
from protocol.recording import Recording
from simulation.recordings import write_fleet_description, write_recording

DESCRIPTION = (
    "Skoltech Anomaly Benchmark (Katser and Kozitsin 2020, doi 10.34740/KAGGLE/DSV/1693952), from "
    "github.com/waico/SKAB. Licence: GPL-3.0 (no separate licence for the data). Water pump test bed, "
    "1 Hz; the anomaly column became the label, values unchanged; the unlabelled anomaly-free.csv left out."
)
SOURCE_CHANNELS = (
    "Accelerometer1RMS",
    "Accelerometer2RMS",
    "Current",
    "Pressure",
    "Temperature",
    "Thermocouple",
    "Voltage",
    "Volume Flow RateRMS",
)
DOMAINS = ("valve1", "valve2", "other")
SOURCE_DEVICES = ("valve1-0", "valve1-1")
SCHEMA = InputSchema(
    "timeseries", tuple(name.replace(" ", "") for name in SOURCE_CHANNELS), 1.0, ("normal", "anomaly")
)


def import_fleet(source: Path, target: Path) -> None:
    """Write 10 devices with 3 or 4 recordings each, 8 channels; two valve1 devices are source.

    Raises:
        FileNotFoundError: a domain's folder is missing in `source`.
        ValueError: a file has other columns, or cells that are no numbers.
    """
    devices = []
    for domain in DOMAINS:
        # By number: the files of one device were then recorded one after another.
        files = sorted((source / domain).glob("*.csv"), key=lambda file: int(file.stem))
        if not files:
            raise FileNotFoundError(2, "no recordings", str(source / domain / "*.csv"))
        for group, numbers in enumerate(np.array_split(np.arange(len(files)), max(1, len(files) // 3))):
            identity = f"{domain}-{group}"
            role = "source" if identity in SOURCE_DEVICES else "edge"
            devices.append(Device(identity, domain, role))
            folder = target / identity
            folder.mkdir(parents=True)
            for number in numbers:
                recording = _read(files[number])
                write_recording(folder / recording.name, recording, SCHEMA)
    fleet = FleetDescription(
        SCHEMA,
        WindowSpec(32, 16),
        tuple(devices),
        Split("recording"),
        "skab_valve",
        DESCRIPTION,
        anomalies=("anomaly",),
    )
    write_fleet_description(target, fleet)


def _read(file: Path) -> Recording:
    with file.open(encoding="utf-8") as lines:
        columns = next(lines, "").strip().split(";")
        wanted = [columns.index(name) for name in (*SOURCE_CHANNELS, "anomaly")]
        rows = np.loadtxt(lines, np.float64, delimiter=";", usecols=wanted, ndmin=2)
    # Padded, as recordings are sorted by name and 10 comes after 9.
    name = f"experiment{int(file.stem):02d}.csv"
    return Recording(name, rows[:, :-1].astype(np.float32), rows[:, -1].astype(np.int64))
