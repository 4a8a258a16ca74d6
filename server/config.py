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
from protocol.release_coding import MAX_STEP_RATIO, MIN_STEP_RATIO
from protocol.topics import check_name
from runtime import configuration
from runtime.broker import BrokerConfig
from server.aggregation import MAX_TOTAL_WEIGHT
from server.retention import RetentionPolicy
from server.round import RoundPolicy
from server.rules.policy import AggregationPolicy

ENROLMENT = ("closed", "open")


@dataclass(frozen=True)
class ServerConfig:
    """Everything that an operator can set."""

    federation: str
    """Name of the federation: one topic level."""
    data_directory: str
    """For the key, the database and the packages; relative to the configuration file."""
    enrolment: str = "closed"
    """"closed": only devices that `devices add` registered; "open": any device name, and the first key
    that a name presents is kept for it (for trying out)."""
    database: str = ""
    """SQLAlchemy URL; empty: SQLite in the data directory."""
    publishers: tuple[str, ...] = ()
    """Public keys (hexadecimal) whose packages may be pushed; empty: any, the operator vouches."""
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    round: RoundPolicy = field(default_factory=RoundPolicy)
    training: TrainingPolicy = field(default_factory=TrainingPolicy)
    sending: SendingPolicy = field(default_factory=SendingPolicy)
    staleness: StalenessPolicy = field(default_factory=StalenessPolicy)
    withdrawal: WithdrawalPolicy = field(default_factory=WithdrawalPolicy)
    schedule: SchedulePolicy = field(default_factory=SchedulePolicy)
    aggregation: AggregationPolicy = field(default_factory=AggregationPolicy)
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)
    maximum_update_bytes: int = 4 * 1024 * 1024
    release_step_ratio: float = 1.5
    """Quantisation step of a release in root mean squares of its difference to the one before: larger means
    fewer bytes to every device, and more of each round that only comes with the next release."""

    def __post_init__(self) -> None:
        check_name(self.federation)
        if self.enrolment not in ENROLMENT:
            raise ValueError(f"enrolment: expected {' or '.join(ENROLMENT)}, got {self.enrolment!r}")
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
    )
