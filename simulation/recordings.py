"""Fleet directories on disk: fleet.toml and one folder of recordings per device.

The only file here that opens recordings; what is in them protocol/recording.py decides. A bad recording
is collected as an error and costs only itself, so that one broken file does not end an experiment.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protocol import fleet as fleet_format
from protocol import recording as recording_format
from protocol.errors import DataError
from protocol.fleet import Device, FleetDescription
from protocol.input_schema import InputSchema
from protocol.recording import UNLABELLED, Recording

FLEET_FILE = "fleet.toml"
SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True)
class DeviceRecordings:
    """What a device's folder held."""

    device: Device
    recordings: tuple[Recording, ...]
    """The good ones, sorted by name; samples float32 [rows, channels], labels int64 [rows]."""
    errors: tuple[DataError, ...]
    """One for every bad recording, and one for the device when it has no good recording."""


def read_fleet(path: Path) -> FleetDescription:
    """Read fleet.toml of a fleet directory.

    Raises:
        DataError: there is none, or it is malformed.
    """
    file = path / FLEET_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{file}: expected text in UTF-8") from None
    except OSError as error:
        raise DataError(f"{file}: expected a readable fleet description: {error.strerror}") from None
    return fleet_format.parse(text, str(file))


def read_device(path: Path, fleet: FleetDescription, device: Device) -> DeviceRecordings:
    """Read all the recordings of one device of the fleet directory `path`.

    Raises nothing for bad data: every error is in the result, beside the recordings that are good.
    """
    folder = path / device.id
    good: list[Recording] = []
    errors: list[DataError] = []
    stems: dict[str, str] = {}
    for file in sorted(folder.glob("*"), key=lambda file: file.name):
        if file.suffix.lower() not in SUFFIXES or file.name.startswith("."):
            continue
        # Parts are written under the stem; two of one stem would overwrite each other.
        if stems.setdefault(file.stem, file.name) != file.name:
            reason = f"expected one recording {file.stem!r}, {stems[file.stem]} is there as well"
            errors.append(DataError(f"device {device.id!r}: {file.name}: {reason}"))
            continue
        try:
            with file.open("rb") as stream:
                good.append(recording_format.parse(stream, file.name, fleet.schema))
        except DataError as error:
            errors.append(DataError(f"device {device.id!r}: {error}"))
        except OSError as error:
            errors.append(DataError(f"device {device.id!r}: {file.name}: not readable: {error.strerror}"))
    if not good:
        reason = (
            "none of them good" if errors else "found none" if folder.is_dir() else "the folder is missing"
        )
        errors.append(
            DataError(f"device {device.id!r}: expected recordings (csv, parquet) in {folder}, {reason}")
        )
    return DeviceRecordings(device, tuple(good), tuple(errors))


def write_fleet_description(path: Path, fleet: FleetDescription) -> None:
    """Write fleet.toml into a fleet directory, making the directory where it is missing."""
    path.mkdir(parents=True, exist_ok=True)
    (path / FLEET_FILE).write_text(fleet_format.dump(fleet), encoding="utf-8")


def write_recording(path: Path, recording: Recording, schema: InputSchema) -> None:
    """Write a recording that `protocol.recording.parse` reads back bit for bit.

    As Parquet where the path ends in ".parquet", otherwise as CSV: numbers with the fewest digits that
    give the same float32, an empty label where a row is unlabelled. The file appears whole or not at all,
    as an agent may be watching its folder.

    Raises:
        OSError: the file cannot be written; its folder must exist.
    """
    write = _write_parquet if path.suffix == ".parquet" else _write_csv
    unfinished = path.with_name(f".{path.name}.part")
    write(unfinished, recording, schema)
    unfinished.replace(path)


def _write_csv(path: Path, recording: Recording, schema: InputSchema) -> None:
    # The last entry is what index -1, unlabelled, finds.
    names = [*(_row([name]).rstrip(b"\n") for name in schema.classes), b""]
    numbers = map(b",".join, recording.samples.astype("S").tolist())
    labels = (names[label] for label in recording.labels.tolist())
    body = b"\n".join(b"%b,%b" % row for row in zip(numbers, labels, strict=True))
    path.write_bytes(_row([*schema.channels, "label"]) + body + b"\n")


def _write_parquet(path: Path, recording: Recording, schema: InputSchema) -> None:
    import pyarrow as pa  # noqa: PLC0415 - slow to import, and only some fleets need it
    import pyarrow.parquet as pq  # noqa: PLC0415

    columns = {
        channel: pa.array(np.ascontiguousarray(recording.samples[:, index]))
        for index, channel in enumerate(schema.channels)
    }
    indices = pa.array(recording.labels, pa.int32(), mask=recording.labels == UNLABELLED)
    columns["label"] = pa.DictionaryArray.from_arrays(indices, pa.array(schema.classes, pa.string()))
    pq.write_table(pa.table(columns), path, compression="zstd")


def _row(cells: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8")
