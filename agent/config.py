"""The agent's configuration: one frozen tree, read once from TOML; unknown keys are errors."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from protocol.topics import check_name
from runtime import configuration
from runtime.link import BrokerConfig

KEY_FILE = "device.key"
STORE_FILE = "agent.sqlite"
"""In the state directory."""
SOURCES = ("spool", "replay")


@dataclass(frozen=True)
class SourceConfig:
    """Where sensor recordings come from."""

    directory: str
    """Folder of CSV or Parquet recordings; relative to the configuration file."""
    kind: str = "spool"
    """"spool": every recording in the folder, new ones as they come; "replay": the same recordings,
    uncovered in time as if the sensor were recording them now."""
    speed: float = 1.0
    """Of "replay": recorded seconds per second."""

    def __post_init__(self) -> None:
        if self.kind not in SOURCES:
            raise ValueError(f"kind: expected one of {', '.join(SOURCES)}, got {self.kind!r}")
        if not 0 < self.speed <= 1e9:
            raise ValueError(f"speed: expected a positive number, got {self.speed}")


@dataclass(frozen=True)
class LimitsConfig:
    """What the agent may take of the device."""

    threads: int = 1
    """Of the training engine."""
    feature_cache_bytes: int = 256 * 1024 * 1024
    """On disk; the newest recordings stay."""
    training_windows: int = 20_000
    """Most labelled windows held in memory; the newest stay."""

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= 256:
            raise ValueError(f"threads: expected 1 to 256, got {self.threads}")
        if self.feature_cache_bytes < 1 << 20:
            raise ValueError(f"feature_cache_bytes: expected at least 1 MiB, got {self.feature_cache_bytes}")
        if self.training_windows < 16:
            raise ValueError(f"training_windows: expected at least 16, got {self.training_windows}")


@dataclass(frozen=True)
class AgentConfig:
    """Everything that the owner of a device can set."""

    device: str
    """Name of the device, unique in its federation."""
    federation: str
    server_key: str
    """The server's public key (hexadecimal), from `graftwork-server key`: all that the device believes."""
    source: SourceConfig
    state_directory: str = "state"
    """For key, database, packages and feature cache; relative to the configuration file."""
    publishers: tuple[str, ...] = ()
    """Public keys whose packages the device runs; empty: any that the server announces."""
    seed: int = 0
    """Of the order of training windows."""
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    def __post_init__(self) -> None:
        check_name(self.device)
        check_name(self.federation)
        configuration.check_public_key("server_key", self.server_key)
        for key in self.publishers:
            configuration.check_public_key("publishers", key)


def load(path: Path) -> AgentConfig:
    """Read the configuration; relative paths count from its folder.

    Raises:
        SetupError: no such file, no TOML, unknown keys or values out of range.
    """
    config = configuration.load(AgentConfig, path)
    return replace(
        config,
        state_directory=str(path.parent / config.state_directory),
        broker=config.broker.relative_to(path.parent),
        source=replace(config.source, directory=str(path.parent / config.source.directory)),
    )
