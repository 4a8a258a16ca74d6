"""What a model takes in: the sensor's channels, the classes, and how samples become windows."""

from dataclasses import dataclass

KINDS = ("timeseries",)


@dataclass(frozen=True)
class InputSchema:
    """The sensor data that a federation learns from; part of every model package."""

    kind: str
    """What a sample is; "timeseries": one row per instant, one column per channel."""
    channels: tuple[str, ...]
    """Column names, in the order of the model's input."""
    sample_rate_hz: float
    """Rows per second."""
    classes: tuple[str, ...]
    """Names of the labels, in the order of the model's outputs."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if not self.channels or len(set(self.channels)) != len(self.channels):
            raise ValueError("channels: expected at least one name and no name twice")
        reserved = {"label", "timestamp"} & set(self.channels)
        if reserved:
            raise ValueError(f"channels: {min(reserved)!r} is the name of a reserved column")
        if not 0 < self.sample_rate_hz < 1e9:
            raise ValueError(f"sample_rate_hz: expected a positive number, got {self.sample_rate_hz}")
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: expected at least two names and no name twice")


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
