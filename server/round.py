"""When rounds open and close: a state machine without I/O or clock.

    Waiting --enough devices ready--> Open --everyone counted, or deadline with quorum--> Waiting ...
                                       |--deadline without quorum--> Open, with a later deadline

Rules:

* A round opens when at least `minimum_devices` are ready (online, holding the newest release and labels) and
  every other expected device is ready too, or `gather_seconds` have passed since the minimum was reached.
* It closes as soon as every device of the cohort is counted that did not say that it
  sends nothing at the moment; at the deadline a quorum is enough.
* Deadlines do not count while the devices cannot reach the server, nor until they had time to come back.
* A deadline without quorum moves on by `deadline_seconds`: no update that was counted is thrown away.
* A device that dies changes nothing but the wait: its update is missing, the others' stay.

What a round computes is not handled here.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

RETURN_SECONDS = 90.0
"""In which devices are back after the broker or the server was away: their longest wait before an attempt to
connect, and the time between two sendings of an update."""


@dataclass(frozen=True)
class RoundPolicy:
    """When rounds open and close."""

    minimum_devices: int = 2
    """Devices that must be ready before a round opens."""
    maximum_devices: int = 1000
    """Largest cohort; of more ready devices a random part is taken."""
    quorum: float = 0.5
    """Share of the cohort that is enough at the deadline."""
    deadline_seconds: float = 600.0
    gather_seconds: float = 30.0
    """How long devices that are not ready yet are waited for."""
    pause_seconds: float = 0.0
    """Rest between two rounds."""
    rounds: int = 0
    """Rounds per package; 0: no end."""

    def __post_init__(self) -> None:
        if not 1 <= self.minimum_devices <= self.maximum_devices:
            raise ValueError(
                f"minimum_devices: expected 1 to maximum_devices ({self.maximum_devices}), "
                f"got {self.minimum_devices}"
            )
        if not 0 < self.quorum <= 1:
            raise ValueError(f"quorum: expected more than 0, at most 1, got {self.quorum}")
        seconds = (self.deadline_seconds, self.gather_seconds, self.pause_seconds)
        if not all(math.isfinite(value) and value >= 0 for value in seconds) or self.deadline_seconds == 0:
            raise ValueError(
                "deadline_seconds, gather_seconds, pause_seconds: expected finite, none negative"
            )
        if self.rounds < 0:
            raise ValueError(f"rounds: expected 0 or more, got {self.rounds}")


@dataclass(frozen=True)
class Waiting:
    """No round is open."""

    next_number: int
    rounds_done: int = 0
    """Of the running package."""
    not_before: float = 0.0
    minimum_since: float | None = None
    """When the minimum of ready devices was reached."""


@dataclass(frozen=True)
class Open:
    """A round is open."""

    number: int
    cohort: frozenset[str]
    counted: frozenset[str]
    deadline: float
    rounds_done: int = 0


State = Waiting | Open


@dataclass(frozen=True)
class OpenRound:
    """Announce the round."""

    number: int
    cohort: tuple[str, ...]
    deadline: float


@dataclass(frozen=True)
class ExtendRound:
    """Announce the round's later deadline."""

    number: int
    deadline: float


@dataclass(frozen=True)
class CloseRound:
    """Make a release of the counted updates."""

    number: int


Action = OpenRound | ExtendRound | CloseRound


def tick(
    state: State,
    policy: RoundPolicy,
    now: float,
    ready: frozenset[str],
    expected: frozenset[str],
    *,
    excused: frozenset[str] = frozenset(),
    reachable_since: float | None = -math.inf,
) -> tuple[State, list[Action]]:
    """Let time pass.

    Args:
        state: where the machine stands.
        policy: when rounds open and close.
        now: seconds, never going back.
        ready: devices that could take part now.
        expected: devices that are not ready but worth waiting for.
        excused: devices that send nothing at the moment: an open round does not wait for them.
        reachable_since: when the server was last connected to the broker; None: it is not.
    """
    if isinstance(state, Open):
        return _tick_open(state, policy, now, excused, reachable_since)
    if reachable_since is None:
        return state, []
    if policy.rounds and state.rounds_done >= policy.rounds:
        return state, []
    if len(ready) < policy.minimum_devices:
        return replace(state, minimum_since=None), []
    since = now if state.minimum_since is None else state.minimum_since
    state = replace(state, minimum_since=since)
    if now < state.not_before or (expected - ready and now < since + policy.gather_seconds):
        return state, []
    cohort = _choose(ready, policy.maximum_devices, state.next_number)
    deadline = now + policy.deadline_seconds
    opened = Open(state.next_number, frozenset(cohort), frozenset(), deadline, state.rounds_done)
    return opened, [OpenRound(state.next_number, cohort, deadline)]


def count(state: Open, policy: RoundPolicy, now: float, device: str) -> tuple[State, list[Action]]:
    """Count the update of `device`, which is of the cohort."""
    state = replace(state, counted=state.counted | {device})
    if state.counted >= state.cohort:
        return _close(state, policy, now)
    return state, []


def _tick_open(
    state: Open, policy: RoundPolicy, now: float, excused: frozenset[str], reachable_since: float | None
) -> tuple[State, list[Action]]:
    if state.counted and state.counted >= state.cohort - excused:
        return _close(state, policy, now)
    if reachable_since is None:
        return state, []
    if now < max(state.deadline, reachable_since + min(policy.deadline_seconds, RETURN_SECONDS)):
        return state, []
    if len(state.counted) >= max(1, math.ceil(policy.quorum * len(state.cohort))):
        return _close(state, policy, now)
    deadline = now + policy.deadline_seconds
    return replace(state, deadline=deadline), [ExtendRound(state.number, deadline)]


def _close(state: Open, policy: RoundPolicy, now: float) -> tuple[State, list[Action]]:
    waiting = Waiting(state.number + 1, state.rounds_done + 1, now + policy.pause_seconds)
    return waiting, [CloseRound(state.number)]


def _choose(ready: frozenset[str], maximum: int, number: int) -> tuple[str, ...]:
    """Take a random part of the ready devices, the same one whenever the round is asked again."""
    devices = sorted(ready)
    if len(devices) <= maximum:
        return tuple(devices)
    chosen = np.random.Generator(np.random.PCG64(number)).choice(len(devices), maximum, replace=False)
    return tuple(devices[index] for index in sorted(chosen.tolist()))
