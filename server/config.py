"""The server's configuration: one frozen tree, read once from TOML; unknown keys are errors."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from protocol.charter import (
    SchedulePolicy,
    SendingPolicy,
    StalenessPolicy,
    TrainingPolicy,
    WithdrawalPolicy,
)
from protocol.field_checks import check_range
from protocol.release_coding import MAX_STEP_RATIO, MIN_STEP_RATIO
from protocol.sealing import SUITES, X25519
from protocol.topics import check_name
from runtime import configuration
from runtime.broker import BrokerConfig
from server.aggregation import MAX_TOTAL_WEIGHT
from server.limits import LimitsPolicy
from server.metrics import MetricsPolicy
from server.retention import RetentionPolicy
from server.round import RoundPolicy
from server.rules.policy import AggregationPolicy

ENROLMENT = ("closed", "open", "token", "approval")


@dataclass(frozen=True)
class TrustPolicy:
    """How long what the server signs is good, and how devices seal."""

    validity_days: float = 90.0
    """After which devices no longer begin to follow a package or release, unless it is signed anew; the
    server does so in the middle of that time."""
    certificate_days: int = 60
    """How long a device's certificate is good; it renews it after two thirds."""
    sealing: str = X25519
    """Suite of a new sealing key: "x25519", or "mlkem768-x25519" against computers to come (1.1 KiB an
    update)."""
    broker_directory: str = ""
    """What `broker-config` wrote, for revocation; relative to the configuration file. Empty: an operator
    brings the list of revoked certificates to the broker."""
    restart_command: tuple[str, ...] = ()
    """Has the broker started anew, to read the list; empty: SIGTERM to the process in mosquitto.pid there,
    which its supervisor starts again."""

    def __post_init__(self) -> None:
        check_range("validity_days", self.validity_days, 0.01, 3650)
        check_range("certificate_days", self.certificate_days, 1, 825)
        if self.sealing not in SUITES:
            raise ValueError(f"sealing: expected one of {', '.join(SUITES)}, got {self.sealing!r}")


@dataclass(frozen=True)
class ServerConfig:
    """Everything that an operator can set."""

    federation: str
    """Name of the federation: one topic level."""
    data_directory: str
    """For the key, the database and the packages; relative to the configuration file."""
    enrolment: str = "closed"
    """Who is let in beside devices that `devices add` registered. "closed": nobody; "token": who brings a
    one-time token; "approval": others, too, once an operator approves; "open": any name, with the first key
    that it presents (for trying out)."""
    database: str = ""
    """SQLAlchemy URL; empty: SQLite in the data directory."""
    publishers: tuple[str, ...] = ()
    """Public keys (hexadecimal) whose packages may be pushed; empty: any, the operator vouches."""
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    trust: TrustPolicy = field(default_factory=TrustPolicy)
    round: RoundPolicy = field(default_factory=RoundPolicy)
    training: TrainingPolicy = field(default_factory=TrainingPolicy)
    sending: SendingPolicy = field(default_factory=SendingPolicy)
    staleness: StalenessPolicy = field(default_factory=StalenessPolicy)
    withdrawal: WithdrawalPolicy = field(default_factory=WithdrawalPolicy)
    schedule: SchedulePolicy = field(default_factory=SchedulePolicy)
    aggregation: AggregationPolicy = field(default_factory=AggregationPolicy)
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)
    limits: LimitsPolicy = field(default_factory=LimitsPolicy)
    metrics: MetricsPolicy = field(default_factory=MetricsPolicy)
    maximum_update_bytes: int = 4 * 1024 * 1024
    release_step_ratio: float = 1.5
    """Quantisation step of a release in root mean squares of its difference to the one before: larger means
    fewer bytes to every device, and more of each round that only comes with the next release."""

    def __post_init__(self) -> None:
        check_name(self.federation)
        if self.enrolment not in ENROLMENT:
            raise ValueError(f"enrolment: expected one of {', '.join(ENROLMENT)}, got {self.enrolment!r}")
        if not 1024 <= self.maximum_update_bytes <= 16 * 1024 * 1024:
            raise ValueError("maximum_update_bytes: expected 1 KiB to 16 MiB")
        if not MIN_STEP_RATIO <= self.release_step_ratio <= MAX_STEP_RATIO:
            raise ValueError(
                f"release_step_ratio: expected {MIN_STEP_RATIO} to {MAX_STEP_RATIO:g}, "
                f"got {self.release_step_ratio}"
            )
        for key in self.publishers:
            configuration.check_public_key("publishers", key)
        # A round counts at most one late update of each device of each round before that is not too old.
        heaviest = self.round.maximum_devices * self.training.maximum_weight * (1 + self.staleness.maximum)
        if heaviest > MAX_TOTAL_WEIGHT:
            raise ValueError(
                "round.maximum_devices x training.maximum_weight x (1 + staleness.maximum): "
                f"expected at most {MAX_TOTAL_WEIGHT}, got {heaviest}"
            )


def load(path: Path) -> ServerConfig:
    """Read the configuration.

    Raises:
        SetupError: no such file, no TOML, unknown keys or values out of range.
    """
    config = configuration.load(ServerConfig, path)
    return replace(
        config,
        data_directory=str(path.parent / config.data_directory),
        broker=config.broker.relative_to(path.parent),
        trust=replace(config.trust, broker_directory=_beside(path, config.trust.broker_directory)),
    )


def _beside(path: Path, name: str) -> str:
    return str(path.parent / name) if name else ""
