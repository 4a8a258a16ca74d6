"""The charter: what every device of a federation does alike, signed by the server with each announcement.

How devices train, when they send what they learned, how much an update counts that comes late, and when a
release is withdrawn. Owners can be stricter on a device of theirs (agent/config.py), never laxer.
"""

import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TypeVar

from protocol.errors import shown
from protocol.field_checks import check_range
from protocol.package import TASKS

Number = TypeVar("Number", int, float)

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", re.ASCII)
MAX_STALENESS = 1000
MAX_QUIET_HOURS = 24
FIXED, ADAPTIVE = "fixed", "adaptive"
"""Modes of the schedule."""


@dataclass(frozen=True)
class TrainingPolicy:
    """How every device of a federation trains, clips and quantises."""

    optimizer: str = "adamw"
    """"adamw" or "sgd"."""
    learning_rate: float = 0.003
    weight_decay: float = 0.0
    momentum: float = 0.9
    """Of "sgd" only."""
    epochs: int = 20
    """Passes over the labelled windows per release."""
    balance_classes: bool = True
    """Weight the windows so that every class counts the same."""
    clipping_bound: float = 4.0
    """Largest L2 norm of an update."""
    step_ratio: float = 2.5
    """Quantisation step in root mean squares of a segment's update."""
    maximum_weight: int = 4096
    """Most labelled windows that a device's update counts for."""
    holdout_fraction: float = 0.3
    """Share of the labelled windows, the latest, that a device keeps for its gate."""
    accumulation: int = 1
    """Batches per step of the optimiser."""
    replay_share: float = 0.25
    """Share of each batch that comes from the replay buffer, where a device has something in it."""
    early_stopping: int = 0
    """Epochs without a better held-out loss after which training stops, and the best epoch is kept; 0: never.
    The gate then judges on windows that chose the epoch."""
    learning_rate_factors: dict[str, float] = field(default_factory=dict)
    """By segment of the adapter, what its learning rate is multiplied by; 0 freezes it."""
    proximal: float = 0.0
    """Pull of the adapter that a training starts from: mu of FedProx (Li et al. 2020, arXiv:1812.06127)."""
    tasks: tuple[str, ...] = TASKS
    """What is trained, of what the package has segments for."""
    reference_windows: int = 24
    """Windows at the start of each recording that anomaly detection takes as normal."""

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer: expected adamw or sgd, got {shown(self.optimizer)}")
        check_range("learning_rate", self.learning_rate, 1e-8, 10)
        check_range("weight_decay", self.weight_decay, 0, 1)
        check_range("momentum", self.momentum, 0, 0.9999)
        check_range("epochs", self.epochs, 1, 1000)
        check_range("clipping_bound", self.clipping_bound, 1e-4, 15)
        check_range("step_ratio", self.step_ratio, 1 / 64, 16)
        check_range("maximum_weight", self.maximum_weight, 1, 1 << 16)
        check_range("holdout_fraction", self.holdout_fraction, 0, 0.9)
        check_range("accumulation", self.accumulation, 1, 1024)
        check_range("replay_share", self.replay_share, 0, 0.9)
        check_range("early_stopping", self.early_stopping, 0, 1000)
        check_range("proximal", self.proximal, 0, 1000)
        check_range("reference_windows", self.reference_windows, 4, 4096)
        if not self.tasks or set(self.tasks) - set(TASKS):
            raise ValueError(f"tasks: expected one or more of {', '.join(TASKS)}, got {shown(self.tasks)}")
        check_range("number of learning_rate_factors", len(self.learning_rate_factors), 0, 256)
        for name, factor in self.learning_rate_factors.items():
            check_range(f"learning_rate_factors of {shown(name)}", factor, 0, 100)


@dataclass(frozen=True)
class SendingPolicy:
    """When a device sends its update, and when it waits and adds it to the next one.

    A device that waits says so in its state, so that no round waits for it. What it learned is not lost: the
    update that it sends later holds the earlier ones, after the significance filter of Gaia (Hsieh et al.
    2017, NSDI).
    """

    minimum_relative_norm: float = 0.0
    """Smallest L2 norm of an update worth sending, relative to that of the release's adapter; 0: any."""
    bytes_per_day: int = 0
    """Bytes up and down in any 24 hours after which a device sends no more updates; 0: no limit."""
    quiet_hours: tuple[str, ...] = ()
    """Times in which no updates are sent, "22:00-06:00" in the device's local time."""
    maximum_outstanding: int = 8
    """Updates without a receipt at which a device waits: its link is broken or busy; 0: it never does."""
    carry_over: float = 1.0
    """Share of an update that was not sent that is added to the next one."""
    maximum_wait_hours: float = 24.0
    """Hours after which an update is sent however small it is, within bytes and quiet hours; 0: never."""

    def __post_init__(self) -> None:
        check_range("minimum_relative_norm", self.minimum_relative_norm, 0, 10)
        check_range("bytes_per_day", self.bytes_per_day, 0, 1 << 50)
        check_range("number of quiet_hours", len(self.quiet_hours), 0, MAX_QUIET_HOURS)
        for hours in self.quiet_hours:
            if not _HOURS.fullmatch(hours):
                raise ValueError(f'quiet_hours: expected "HH:MM-HH:MM", got {shown(hours)}')
        check_range("maximum_outstanding", self.maximum_outstanding, 0, 256)
        check_range("carry_over", self.carry_over, 0, 1)
        check_range("maximum_wait_hours", self.maximum_wait_hours, 0, 24 * 366)

    def quiet(self, minute: int) -> bool:
        """Whether a minute of the day, 0 to 1439, is quiet; an end before its start is on the next day."""
        return any(
            start <= minute < end if start <= end else minute >= start or minute < end
            for start, end in map(_minutes, self.quiet_hours)
        )

    def stricter(self, other: "SendingPolicy") -> "SendingPolicy":
        """What holds where two policies hold."""
        return SendingPolicy(
            max(self.minimum_relative_norm, other.minimum_relative_norm),
            _lower(self.bytes_per_day, other.bytes_per_day),
            tuple(dict.fromkeys((*self.quiet_hours, *other.quiet_hours)))[:MAX_QUIET_HOURS],
            _lower(self.maximum_outstanding, other.maximum_outstanding),
            min(self.carry_over, other.carry_over),
            _lower(self.maximum_wait_hours, other.maximum_wait_hours),
        )


@dataclass(frozen=True)
class StalenessPolicy:
    """How much an update counts that comes after its round was closed.

    It is rebased: a difference to an older release is added to the newest one. Its weight shrinks by
    (1 + staleness)**-exponent, where staleness is the number of releases since, as in Xie et al. 2019
    (arXiv:1903.03934).
    """

    maximum: int = 4
    """Releases after which an update does not count any more; 0: only the open round's updates count."""
    exponent: float = 0.5

    def __post_init__(self) -> None:
        check_range("maximum", self.maximum, 0, MAX_STALENESS)
        check_range("exponent", self.exponent, 0, 10)

    def weight(self, weight: int, staleness: int) -> int:
        """The weight of an update, in decimal arithmetic: the same integer on every machine.

        Args:
            weight: of an update that is not late, 1 or more.
            staleness: releases since its round, 0 to `maximum`.
        """
        if staleness == 0:
            return weight
        factor = Decimal(1 + staleness) ** -Decimal(repr(self.exponent))
        return max(1, int(weight * factor))


@dataclass(frozen=True)
class WithdrawalPolicy:
    """When the server withdraws a release, and goes back to the one before (see server/guard.py)."""

    share: float = 0.3
    """Largest share of the devices that a release may be worse for than the one before; 1: any may be."""
    minimum_devices: int = 6
    """Fewest devices whose reports decide; fewer than six can never show more than luck."""
    tolerance: float = 0.05
    """Nats by which a device's held-out loss may rise before the release counts as worse for it."""

    def __post_init__(self) -> None:
        check_range("share", self.share, 0, 1)
        check_range("minimum_devices", self.minimum_devices, 1, 1 << 20)
        check_range("tolerance", self.tolerance, 0, 4)


@dataclass(frozen=True)
class SchedulePolicy:
    """How much devices train, and when an update is worth sending (see agent/schedule.py).

    Prices are in nats of held-out loss, each class counting the same: what a training, or a release, has to
    bring to be worth it. Gradient steps stand for CPU seconds and joules: they are the same in every run.
    """

    mode: str = FIXED
    """"fixed": all epochs from every release, and every update is sent; "adaptive": what pays."""
    nats_per_thousand_steps: float = 0.02
    """What the last half of a training has to bring, per 1,000 gradient steps."""
    nats_per_kib: float = 0.01
    """What a release has to bring a device, per KiB of its update."""
    least_effort: float = 0.5
    """Smallest share of the epochs that a training has; training alone may rest."""
    fitted: float = 0.001
    """Loss on its training windows, in nats, below which training alone may have fewer epochs."""
    patience: int = 2
    """Trainings to measure before there are fewer epochs; twice as many releases before devices wait."""

    def __post_init__(self) -> None:
        if self.mode not in (FIXED, ADAPTIVE):
            raise ValueError(f"mode: expected fixed or adaptive, got {shown(self.mode)}")
        check_range("nats_per_thousand_steps", self.nats_per_thousand_steps, 0, 1e6)
        check_range("nats_per_kib", self.nats_per_kib, 0, 1e6)
        check_range("least_effort", self.least_effort, 0, 1)
        check_range("fitted", self.fitted, 0, 1e6)
        check_range("patience", self.patience, 1, 100)


def _lower(one: Number, other: Number) -> Number:
    """The lower of two limits, where 0 is none."""
    return min(one, other) if one and other else one or other


def _minutes(hours: str) -> tuple[int, int]:
    """Start and end of "HH:MM-HH:MM" in minutes of the day."""
    start, end = ((int(part[:2]) * 60 + int(part[3:])) for part in hours.split("-"))
    return start, end
