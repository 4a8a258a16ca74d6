"""The description of a fleet, fleet.toml: what is sensed, by which devices, and how data are held out.

A fleet directory holds this file and one folder of recordings or pictures per device, named by the device's
id. Only the description lives here; simulation/recordings.py and runtime/pictures.py open the files.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protocol import channels, toml
from protocol.errors import DataError, SchemaError
from protocol.input_schema import IMAGE, ONE_PICTURE, InputSchema, WindowSpec
from protocol.records import from_named

ROLES = ("source", "edge")
DIVISIONS = ("time", "recording")

# An id becomes an MQTT topic level and a folder name: no separators, no wildcards, no "..".
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Device:
    """One device of the fleet."""

    id: str
    """1 to 64 of the characters A-Z a-z 0-9 _ . -, not starting with a full stop."""
    domain: str
    """Devices of one domain have data that are alike: a machine type, a load, a site."""
    role: str
    """ "source": its data pre-train the backbone; "edge": it takes part in the federation."""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(
                f"id: expected 1 to 64 of the characters A-Z a-z 0-9 _ . - (no full stop first), "
                f"got {self.id!r}"
            )
        if not self.domain:
            raise ValueError(f"domain of {self.id!r}: expected a name, got nothing")
        if self.role not in ROLES:
            raise ValueError(f"role of {self.id!r}: expected one of {', '.join(ROLES)}, got {self.role!r}")


@dataclass(frozen=True)
class Split:
    """How each device's data are held out."""

    by: str = "time"
    """ "time": the last part of each recording; "recording": whole recordings."""
    test: float = 0.2
    """Share that never reaches the device and measures the experiment."""

    def __post_init__(self) -> None:
        if self.by not in DIVISIONS:
            raise ValueError(f"by: expected one of {', '.join(DIVISIONS)}, got {self.by!r}")
        if not 0 <= self.test < 1:
            raise ValueError(f"test: expected a share from 0 to below 1, got {self.test}")


@dataclass(frozen=True)
class FleetDescription:
    """Everything fleet.toml says."""

    schema: InputSchema
    window: WindowSpec
    devices: tuple[Device, ...]
    split: Split = Split()
    name: str = ""
    description: str = ""
    """Where the data come from and under which licence."""
    simulated: bool = False
    """True where no sensor was involved; every report then says so."""
    anomalies: tuple[str, ...] = ()
    """Classes that are anomalies: what anomaly detection, which knows no label, is measured by."""

    def __post_init__(self) -> None:
        if not self.devices:
            raise ValueError("devices: expected at least one")
        if self.schema.of_images and self.split.by != "time":
            raise ValueError(f"split: by: expected 'time' for pictures, got {self.split.by!r}")
        if set(self.anomalies) - set(self.schema.classes) or set(self.anomalies) == set(self.schema.classes):
            raise ValueError(f"anomalies: expected some of the classes, not all, got {self.anomalies}")
        seen: set[str] = set()
        for index, device in enumerate(self.devices):
            if device.id in seen:
                raise ValueError(f"devices[{index}]: id {device.id!r}: expected once, found twice")
            seen.add(device.id)

    def of_role(self, role: str) -> tuple[Device, ...]:
        """Return the devices with this role, in the order of the file."""
        return tuple(device for device in self.devices if device.role == role)


def parse(text: str, name: str = "fleet.toml") -> FleetDescription:
    """Parse a fleet description; tables [schema], [window] or [image], [split] (optional) and [[device]].

    Args:
        text: the TOML document.
        name: the file's name, for messages.

    Raises:
        DataError: not TOML, or an entry is missing, unknown or wrong; names the file and the entry.
            Devices count from 0 as `devices[0]`.
    """
    try:
        document = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise DataError(f"{name}: expected TOML: {error}") from None
    if "devices" in document:
        raise DataError(f"{name}: devices: unknown key; expected [[device]] tables")
    # Each [[device]] table describes one; as a field of the record they are devices.
    document["devices"] = document.pop("device", [])
    try:
        fleet = from_named(FleetDescription, inputs_of(document))
        channels.check(fleet.schema, {})
    except channels.ChannelError as error:
        raise DataError(f"{name}: schema: {error}") from None
    except SchemaError as error:
        message = str(error).removeprefix("FleetDescription: ").replace("schema.image", "image", 1)
        raise DataError(f"{name}: {message}") from None
    return fleet


def inputs_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a document with [image] in place of [window] into the form of the records.

    Raises:
        SchemaError: pictures are described like time series.
    """
    schema = document.get("schema")
    if not isinstance(schema, Mapping) or schema.get("kind") != IMAGE:
        return dict(document)
    if "window" in document:
        raise SchemaError("window: only for time series; pictures have a table [image]")
    if "image" in schema:
        raise SchemaError("schema.image: expected height and width in a table [image]")
    rest = {name: value for name, value in document.items() if name != "image"}
    moved = {"image": document["image"]} if "image" in document else {}
    # Only a replay asks how many pictures a second there are.
    rest["schema"] = {"sample_rate_hz": 1.0, **schema, **moved}
    rest["window"] = {"length": ONE_PICTURE.length, "stride": ONE_PICTURE.stride}
    return rest


def dump(fleet: FleetDescription) -> str:
    """Write the TOML that `parse` reads back to an equal description."""
    schema, window, split = fleet.schema, fleet.window, fleet.split
    lines = [f"name = {_text(fleet.name)}"] if fleet.name else []
    lines += [f"description = {_text(fleet.description)}"] if fleet.description else []
    lines += ["simulated = true"] if fleet.simulated else []
    lines += [f"anomalies = [{', '.join(map(_text, fleet.anomalies))}]"] if fleet.anomalies else []
    lines += [
        "",
        "[schema]",
        f"kind = {_text(schema.kind)}",
        f"channels = [{', '.join(map(_text, schema.channels))}]",
        f"sample_rate_hz = {float(schema.sample_rate_hz)!r}",
        f"classes = [{', '.join(map(_text, schema.classes))}]",
        *_columns(schema),
        *_size(schema, window),
        "",
        "[split]",
        f"by = {_text(split.by)}",
        f"test = {float(split.test)!r}",
    ]
    for device in fleet.devices:
        lines += [
            "",
            "[[device]]",
            f"id = {_text(device.id)}",
            f"domain = {_text(device.domain)}",
            f"role = {_text(device.role)}",
        ]
    return "\n".join(lines).lstrip("\n") + "\n"


def _columns(schema: InputSchema) -> list[str]:
    lines = [] if schema.units is None else [f"units = [{', '.join(map(_text, schema.units))}]"]
    lines += [] if schema.normalisation is None else [f"normalisation = {_text(schema.normalisation)}"]
    for alias in schema.aliases or ():
        lines += [
            "",
            "[[schema.aliases]]",
            f"channel = {_text(alias.channel)}",
            f"column = {_text(alias.column)}",
            f"unit = {_text(alias.unit)}",
            f"scale = {float(alias.scale)!r}",
            f"offset = {float(alias.offset)!r}",
        ]
    return lines


def _size(schema: InputSchema, window: WindowSpec) -> list[str]:
    if schema.image is None:
        return ["", "[window]", f"length = {window.length}", f"stride = {window.stride}"]
    return ["", "[image]", f"height = {schema.image.height}", f"width = {schema.image.width}"]


def _text(value: str) -> str:
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
