"""Gearbox vibration: a device is one accelerometer position at one load, so a fleet of 40.

With all four channels the task is trivial at every load; one channel a device makes the sensor position
the domain, and positions contradict one another: a hard shift.
"""

from pathlib import Path

import numpy as np

from protocol.fleet import Device, FleetDescription, Split
from protocol.input_schema import InputSchema, WindowSpec
from protocol.recording import Recording
from simulation.recordings import write_fleet_description, write_recording

DESCRIPTION = (
    "Gearbox Fault Diagnosis Data (OpenEI/OEDI submission 623; SpectraQuest simulator; Pandya and Parey), "
    "from github.com/kokikwbt/predictive-maintenance. Licence: CC BY 4.0. Shaft at 30 Hz. First 50,000 rows "
    "of each file, the four accelerometers taken apart into one channel per device, values unchanged. "
    "The sampling rate is not stated by the source; 10,000 Hz is a placeholder."
)
# Nothing computes with the rate (windows count rows), so a wrong placeholder misleads only a reader.
SAMPLE_RATE_HZ = 10_000.0
SOURCE_SENSOR = "a1"


def import_fleet(source: Path, target: Path) -> None:
    """Write 40 devices with two recordings each: healthy and broken_tooth, 50,000 rows of one channel.

    Raises:
        FileNotFoundError: gearbox_vibration.npz is missing in `source`.
        KeyError, ValueError: it holds other arrays.
    """
    with np.load(source / "gearbox_vibration.npz") as data:
        samples, labels, loads = data["x"], data["y"], data["domain"]
        sensors, classes = data["channels"].tolist(), tuple(data["classes"].tolist())
    schema = InputSchema("timeseries", ("acceleration",), SAMPLE_RATE_HZ, classes)
    devices = []
    for position, sensor in enumerate(sensors):
        role = "source" if sensor == SOURCE_SENSOR else "edge"
        for load in np.unique(loads):
            device = Device(f"{sensor}-load{load:02d}", sensor, role)
            devices.append(device)
            folder = target / device.id
            folder.mkdir(parents=True)
            for index in np.flatnonzero(loads == load):
                rows = samples[index, :, position : position + 1]
                name = f"{classes[labels[index]]}.parquet"
                recording = Recording(name, rows, np.full(len(rows), labels[index], np.int64))
                write_recording(folder / name, recording, schema)
    fleet = FleetDescription(
        schema, WindowSpec(1_000, 1_000), tuple(devices), Split("time"), "gearbox_vibration", DESCRIPTION
    )
    write_fleet_description(target, fleet)
