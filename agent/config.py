"""The agent's configuration: one frozen tree, read once from TOML; unknown keys are errors."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from protocol.charter import SendingPolicy
from protocol.input_schema import ColumnSpec
from protocol.package import ENGINES
from protocol.topics import check_device, check_name
from runtime import configuration
from runtime.broker import BrokerConfig

KEY_FILE, CERTIFICATE_FILE = "device.key", "identity.pem"
"""In the identity directory."""
STORE_FILE = "agent.sqlite"
"""In the state directory."""
SOURCES = ("spool", "replay")
AUTO = "auto"
ENGINE_NAMES = (AUTO, *ENGINES)
PROVIDER_NAMES = ("tensorrt", "cuda", "cpu")


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
    channels: dict[str, ColumnSpec] = field(default_factory=dict)
    """By channel of the package, the column that holds it where name or unit differ."""

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
    """Most labelled windows held in memory; the newest of every class stay."""
    replay_windows: int = 64
    """Windows of each class that the replay buffer keeps of recordings that are gone."""
    nice: int = 10
    """Niceness of the agent: 0 competes with everything else on the device, 19 takes what is left over."""
    cpu_share: float = 1.0
    """Share of one CPU that training takes at most, averaged over seconds."""
    memory_bytes: int = 0
    """Resident memory above which training waits, and to which the windows held are fitted; 0: no ceiling."""
    maximum_celsius: float = 85.0
    """Hottest sensor of the board above which training waits."""
    minimum_battery: float = 0.3
    """Charge below which training waits while the device runs on its battery; 0: never."""

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= 256:
            raise ValueError(f"threads: expected 1 to 256, got {self.threads}")
        if self.feature_cache_bytes < 1 << 20:
            raise ValueError(f"feature_cache_bytes: expected at least 1 MiB, got {self.feature_cache_bytes}")
        if self.training_windows < 16:
            raise ValueError(f"training_windows: expected at least 16, got {self.training_windows}")
        if not 0 <= self.replay_windows <= 100_000:
            raise ValueError(f"replay_windows: expected 0 to 100,000, got {self.replay_windows}")
        if not 0 <= self.nice <= 19:
            raise ValueError(f"nice: expected 0 to 19, got {self.nice}")
        if not 0.01 <= self.cpu_share <= 1:
            raise ValueError(f"cpu_share: expected 0.01 to 1, got {self.cpu_share}")
        if self.memory_bytes and self.memory_bytes < 32 << 20:
            raise ValueError(f"memory_bytes: expected 0 or at least 32 MiB, got {self.memory_bytes}")
        if not 20 <= self.maximum_celsius <= 150:
            raise ValueError(f"maximum_celsius: expected 20 to 150, got {self.maximum_celsius}")
        if not 0 <= self.minimum_battery <= 0.95:
            raise ValueError(f"minimum_battery: expected 0 to 0.95, got {self.minimum_battery}")


@dataclass(frozen=True)
class EngineConfig:
    """What computes features and gradients on the device."""

    name: str = AUTO
    """One of ENGINE_NAMES; "auto": the first that the package is for and that is installed."""
    providers: tuple[str, ...] = ()
    """Of the engine onnxruntime: "tensorrt", "cuda", "cpu"; empty: all that it was built with."""
    gpu_memory_bytes: int = 1 << 30
    """Most that onnxruntime takes of a GPU, per graph."""

    def __post_init__(self) -> None:
        if self.name not in ENGINE_NAMES:
            raise ValueError(f"name: expected one of {', '.join(ENGINE_NAMES)}, got {self.name!r}")
        odd = set(self.providers) - set(PROVIDER_NAMES)
        if odd:
            raise ValueError(f"providers: expected some of {', '.join(PROVIDER_NAMES)}, got {min(odd)!r}")
        if self.gpu_memory_bytes < 1 << 24:
            raise ValueError(f"gpu_memory_bytes: expected at least 16 MiB, got {self.gpu_memory_bytes}")


@dataclass(frozen=True)
class EnrolmentConfig:
    """How the device gets its certificate."""

    port: int = 0
    """Of the broker's listener for newcomers; 0: the device has its certificate, or needs none."""
    host: str = ""
    """Empty: the broker's."""
    token_file: str = ""
    """File of the one-time token; empty: an operator has to approve."""
    claim_certificate: str = ""
    """File of a claim certificate, where the broker asks newcomers for one."""
    claim_key: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: expected 0 to 65535, got {self.port}")


@dataclass(frozen=True)
class FirmwareConfig:
    """Where the device's image says what it is; on devices without one there is nothing."""

    release_file: str = "/etc/graftwork-release"
    """Lines `compatible=...` and `version=...`."""
    update_file: str = "/data/update/state.json"
    """JSON with what became of the last update."""


@dataclass(frozen=True)
class AgentConfig:
    """Everything that the owner of a device can set."""

    device: str
    """Name of the device, unique in its federation."""
    federation: str
    server_key: str = ""
    """The server's public key (hexadecimal), from `graftwork-server key`: all that the device believes."""
    source: SourceConfig = field(default_factory=lambda: SourceConfig(""))
    state_directory: str = "state"
    """For database, packages and feature cache; relative to the configuration file."""
    publishers: tuple[str, ...] = ()
    """Public keys whose packages the device runs; empty: any that the server announces."""
    seed: int = 0
    """Of the order of training windows."""
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    identity_directory: str = ""
    """For the device's keys and certificate, e.g. a partition of its own; empty: the state directory."""
    root: str = ""
    """File with the federation's root of trust, instead of `server_key`: the server's key can then change."""
    enrolment: EnrolmentConfig = field(default_factory=EnrolmentConfig)
    firmware: FirmwareConfig = field(default_factory=FirmwareConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    sending: SendingPolicy = field(default_factory=SendingPolicy)
    """The owner's own limits, e.g. of a metered link; they hold beside those of the charter."""

    def __post_init__(self) -> None:
        check_device(self.device)
        check_name(self.federation)
        if not self.source.directory:
            raise ValueError("source: missing; expected a table that names the directory of the recordings")
        if bool(self.server_key) == bool(self.root):
            raise ValueError("server_key and root: expected one of them")
        if self.server_key:
            configuration.check_public_key("server_key", self.server_key)
        if self.enrolment.port and self.broker.tls_certificate:
            raise ValueError("broker.tls_certificate: expected none, enrolment makes it")
        if self.enrolment.port and not self.broker.tls_ca:
            raise ValueError("broker.tls_ca: expected the file of the services' CA, as there is [enrolment]")
        for key in self.publishers:
            configuration.check_public_key("publishers", key)


def load(path: Path) -> AgentConfig:
    """Read the configuration; relative paths count from its folder.

    Raises:
        SetupError: no such file, no TOML, unknown keys or values out of range.
    """
    config = configuration.load(AgentConfig, path)

    def beside(name: str) -> str:
        return str(path.parent / name) if name else ""

    enrolment = config.enrolment
    state = beside(config.state_directory)
    identity = beside(config.identity_directory) or state
    return replace(
        config,
        state_directory=state,
        identity_directory=identity,
        root=beside(config.root),
        broker=config.broker.relative_to(path.parent),
        enrolment=replace(
            enrolment,
            token_file=beside(enrolment.token_file),
            claim_certificate=beside(enrolment.claim_certificate),
            claim_key=beside(enrolment.claim_key),
        ),
        source=replace(config.source, directory=beside(config.source.directory)),
    )
