"""What a model takes in: channels and classes, and how samples become windows or pictures become inputs.

Which column of a recording a channel is, channels.py decides.
"""

import math
from dataclasses import dataclass

from protocol.errors import shown

TIMESERIES, IMAGE = "timeseries", "image"
KINDS = (TIMESERIES, IMAGE)
COLOURS = (("grey",), ("red", "green", "blue"))
"""The channels that a picture can have."""
DEVICE, DEVICE_MEAN = "device", "device-mean"
NORMALISATIONS = (DEVICE, DEVICE_MEAN)
"""By statistics that stay on each device: by mean and deviation, or by the mean alone."""
MAX_ALIASES = 1024
RESERVED = ("label", "timestamp")
"""Columns that are no channels."""
UNLABELLED_FOLDER = "unlabelled"
"""Folder of pictures without a label; those directly in a device's folder have none either."""


@dataclass(frozen=True)
class ImageSpec:
    """The size to which every picture is brought."""

    height: int
    """Rows of pixels."""
    width: int
    """Columns of pixels."""

    def __post_init__(self) -> None:
        for name, value in (("height", self.height), ("width", self.width)):
            if not 1 <= value <= 4096:
                raise ValueError(f"{name}: expected 1 to 4,096 pixels, got {value}")


@dataclass(frozen=True)
class WindowSpec:
    """How a recording is cut: `length` rows at every `stride` rows."""

    length: int
    """Rows per window."""
    stride: int
    """Rows from one window's start to the next."""

    def __post_init__(self) -> None:
        if not 1 <= self.length <= 1_000_000:
            raise ValueError(f"length: expected 1 to 1,000,000 rows, got {self.length}")
        if not 1 <= self.stride <= 1_000_000:
            raise ValueError(f"stride: expected 1 to 1,000,000 rows, got {self.stride}")


ONE_PICTURE = WindowSpec(1, 1)
"""The windows of an image fleet: every picture is one."""


@dataclass(frozen=True)
class ColumnSpec:
    """A column of a device's recordings that holds a channel under another name, or in another unit."""

    column: str = ""
    """Its name; empty: that of the channel."""
    unit: str = ""
    """Of the values; empty: that of the channel."""
    scale: float = 1.0
    """Raw values times `scale`, plus `offset`, are values in `unit`."""
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.column in RESERVED:
            raise ValueError(f"column: {shown(self.column)} is the name of a reserved column")
        if not (math.isfinite(self.scale) and self.scale):
            raise ValueError(f"scale: expected a finite number other than 0, got {self.scale}")
        if not math.isfinite(self.offset):
            raise ValueError(f"offset: expected a finite number, got {self.offset}")


@dataclass(frozen=True)
class Alias:
    """A column that a known type of device records a channel in."""

    channel: str
    """Name of the channel."""
    column: str
    """Name of the column; it is read where there is no column with the channel's name."""
    unit: str = ""
    """Of the values; empty: that of the channel."""
    scale: float = 1.0
    """Raw values times `scale`, plus `offset`, are values in `unit`."""
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not self.column:
            raise ValueError(f"column: expected a name for channel {shown(self.channel)}, got nothing")
        _ = self.spec

    @property
    def spec(self) -> ColumnSpec:
        """The column, without the channel's name."""
        return ColumnSpec(self.column, self.unit, self.scale, self.offset)


@dataclass(frozen=True)
class InputSchema:
    """The sensor data that a federation learns from; part of every model package."""

    kind: str
    """What a sample is; "timeseries": one row per instant, one column per channel; "image": one picture."""
    channels: tuple[str, ...]
    """Column names, in the order of the model's input; of pictures "grey", or "red", "green", "blue"."""
    sample_rate_hz: float
    """Rows, or pictures, per second."""
    classes: tuple[str, ...]
    """Names of the labels, in the order of the model's outputs."""
    image: ImageSpec | None = None
    """Size of a picture; None for time series."""
    units: tuple[str, ...] | None = None
    """Of each channel, in their order, as in units.py; "": not stated; None: none is."""
    aliases: tuple[Alias, ...] | None = None
    """Other columns that channels may stand in; None: there are none."""
    normalisation: str | None = None
    """What every device does to its channels before the backbone, by statistics of its own windows
    (normalisation.py); "device": mean 0 and deviation 1, "device-mean": mean 0; None: nothing."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {shown(self.kind)}")
        if not self.channels or len(set(self.channels)) != len(self.channels):
            raise ValueError("channels: expected at least one name and no name twice")
        reserved = set(RESERVED) & set(self.channels)
        if reserved:
            raise ValueError(f"channels: {shown(min(reserved))} is the name of a reserved column")
        if not 0 < self.sample_rate_hz < 1e9:
            raise ValueError(f"sample_rate_hz: expected a positive number, got {self.sample_rate_hz}")
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: expected at least two names and no name twice")
        if self.normalisation is not None and (self.of_images or self.normalisation not in NORMALISATIONS):
            expected = "none for pictures" if self.of_images else f"one of {', '.join(NORMALISATIONS)}"
            raise ValueError(f"normalisation: expected {expected}, got {shown(self.normalisation)}")
        self._check_columns()
        if self.of_images:
            self._check_image()
        elif self.image is not None:
            raise ValueError(f"image: only for kind {IMAGE!r}, got kind {shown(self.kind)}")

    @property
    def of_images(self) -> bool:
        """Whether a sample is a picture."""
        return self.kind == IMAGE

    def unit(self, channel: str) -> str:
        """Unit of a channel; empty where it is not stated."""
        return self.units[self.channels.index(channel)] if self.units else ""

    def input_shape(self, window: WindowSpec) -> tuple[int, ...]:
        """Shape of one input of the model: (channels, length), or (channels, height, width) of a picture."""
        if self.image is None:
            return len(self.channels), window.length
        return len(self.channels), self.image.height, self.image.width

    def _check_columns(self) -> None:
        if self.units is not None and len(self.units) != len(self.channels):
            raise ValueError(
                f"units: expected one for each of {len(self.channels)} channels, got {len(self.units)}"
            )
        aliases, channels, seen = self.aliases or (), set(self.channels), set[str]()
        if len(aliases) > MAX_ALIASES:
            raise ValueError(f"aliases: expected at most {MAX_ALIASES}, got {len(aliases)}")
        for alias in aliases:
            if alias.channel not in channels:
                expected = ", ".join(self.channels)[:200]
                raise ValueError(
                    f"aliases: expected one of the channels {expected}, got {shown(alias.channel)}"
                )
            if alias.column in channels or alias.column in seen:
                raise ValueError(
                    f"aliases: column {shown(alias.column)}: expected once, and not the name of a channel"
                )
            seen.add(alias.column)
        if self.of_images and (self.units or self.aliases):
            raise ValueError("units, aliases: only for time series; a picture's channels are its colours")

    def _check_image(self) -> None:
        if self.image is None:
            raise ValueError(f"image: missing; kind {IMAGE!r} needs height and width")
        if self.channels not in COLOURS:
            expected = " or ".join(str(list(colours)) for colours in COLOURS)
            raise ValueError(f"channels: expected {expected} for pictures, got {shown(list(self.channels))}")
        for name in self.classes:
            # A class is a folder on every device.
            if not name or name[0] == "." or {"/", "\\", "\0"} & set(name) or name == UNLABELLED_FOLDER:
                raise ValueError(
                    f"classes: expected names that can be folders (not {UNLABELLED_FOLDER!r}, no slash, "
                    f"no full stop first), got {shown(name)}"
                )
