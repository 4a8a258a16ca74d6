"""Human activity: a device is one person's phone or watch, so a fleet of 46.

Phone to watch is the hard shift; person to person is a mild one.
"""

from pathlib import Path

import numpy as np

from protocol.fleet import Device, FleetDescription, Split
from protocol.input_schema import InputSchema, WindowSpec
from protocol.recording import Recording
from simulation.recordings import write_fleet_description, write_recording

DESCRIPTION = (
    "Smartphone and smartwatch HAR data (Matey-Sanz, Casteleyn, Granell 2023, Data in Brief 109809; "
    "doi 10.5281/zenodo.8398688), from github.com/GeoTecINIT/sp-sw-har-dataset. Licence: CC BY 4.0. "
    "Accelerometer m/s2 and gyroscope rad/s at about 100 Hz; regrouped by device, values unchanged."
)
SOURCE_PEOPLE = 8
# Standing up, turning and sitting down last about 1.2 s. Windows of 128 rows rarely fit into them whole
# (2 windows per device and class at a stride of 64); windows of 64 rows leave about 20 or more.
WINDOW = WindowSpec(64, 32)


def import_fleet(source: Path, target: Path) -> None:
    """Write 46 devices, 6 channels, a recording per execution; phones of the first 8 people are source.

    Raises:
        FileNotFoundError: sp_sw_har.npz is missing in `source`.
        KeyError, ValueError: it holds other arrays.
    """
    with np.load(source / "sp_sw_har.npz") as data:
        samples, labels, offsets = data["x"], data["y"].astype(np.int64), data["offsets"]
        subjects, kinds, executions = data["subject"].tolist(), data["device"].tolist(), data["execution"]
        channels, classes = tuple(data["channels"].tolist()), tuple(data["classes"].tolist())
    schema = InputSchema("timeseries", channels, 100.0, tuple(name.lower() for name in classes))
    source_people = sorted(set(subjects))[:SOURCE_PEOPLE]
    devices: dict[str, Device] = {}
    for index, (subject, kind) in enumerate(zip(subjects, kinds, strict=True)):
        role = "source" if kind == "sp" and subject in source_people else "edge"
        device = Device(f"{subject}-{kind}", kind, role)
        folder = target / device.id
        if device.id not in devices:
            folder.mkdir(parents=True)
            devices[device.id] = device
        rows = slice(offsets[index], offsets[index + 1])
        name = f"execution{executions[index]:02d}.parquet"
        write_recording(folder / name, Recording(name, samples[rows], labels[rows]), schema)
    ordered = tuple(devices[identity] for identity in sorted(devices))
    fleet = FleetDescription(schema, WINDOW, ordered, Split("recording"), "sp_sw_har", DESCRIPTION)
    write_fleet_description(target, fleet)
