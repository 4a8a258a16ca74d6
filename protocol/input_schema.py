"""What a model takes in: channels and classes, and how samples become windows or pictures become inputs."""

from dataclasses import dataclass

from protocol.errors import shown

TIMESERIES, IMAGE = "timeseries", "image"
KINDS = (TIMESERIES, IMAGE)
COLOURS = (("grey",), ("red", "green", "blue"))
"""The channels that a picture can have."""
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

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {shown(self.kind)}")
        if not self.channels or len(set(self.channels)) != len(self.channels):
            raise ValueError("channels: expected at least one name and no name twice")
        reserved = {"label", "timestamp"} & set(self.channels)
        if reserved:
            raise ValueError(f"channels: {shown(min(reserved))} is the name of a reserved column")
        if not 0 < self.sample_rate_hz < 1e9:
            raise ValueError(f"sample_rate_hz: expected a positive number, got {self.sample_rate_hz}")
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: expected at least two names and no name twice")
        if self.of_images:
            self._check_image()
        elif self.image is not None:
            raise ValueError(f"image: only for kind {IMAGE!r}, got kind {shown(self.kind)}")

    @property
    def of_images(self) -> bool:
        """Whether a sample is a picture."""
        return self.kind == IMAGE

    def input_shape(self, window: WindowSpec) -> tuple[int, ...]:
        """Shape of one input of the model: (channels, length), or (channels, height, width) of a picture."""
        if self.image is None:
            return len(self.channels), window.length
        return len(self.channels), self.image.height, self.image.width

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
