"""How long a device trains, and whether its update is worth its bytes: decisions without I/O.

Held-out windows say what a training brought, in nats per gradient step, and what the fleet's releases
bring, in nats per byte; the charter says what these must bring (see protocol.charter.SchedulePolicy). The
rules:

* A chain of trainings ("local": alone, "personal": from the release) begins with all epochs of the training
  policy. Each level of effort below has half of them. The level falls where the last half of several
  trainings brought no more on held-out windows than it cost. It rises where the gain is beyond chance, and
  after a while anyway, to look again.
* With one or two held-out windows per class a gain is never proved, and neither is that there is none. So
  training alone, which goes on where it was, is not cut short before it fits the windows that it is trained
  on; then it may rest. Training for the fleet is not cut short while releases still pay: what it brings to
  others is not seen here. It starts anew from each release, and never has less than the least effort.
* While a release brings a device more than an update costs, all of the adapter is trained for the fleet.
  Later it is every other segment in turn, which takes fewer bytes; and once there is next to nothing to gain,
  the device waits. The figure is the mean over the fleet where the release tells it: so all devices train the
  same segments, and come to wait together. No release is made of the few that happened to think otherwise.
* A device that has many more labels than before begins anew. One that is going to wait, and has not fitted
  its windows, trains alone for longer first (see scheduling.py).

Without held-out windows, and in the mode "fixed", the plan is always the training policy's. Measuring is done
in appraisal.py, keeping in scheduling.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from agent.measurement import MAX_GAIN, Evidence, Gain
from protocol.charter import ADAPTIVE, SchedulePolicy, TrainingPolicy

CHAINS = ("local", "personal")
PROOF = 2.0
"""Standard errors by which a gain exceeds its price where there are to be more epochs."""
HOLD = {"local": 1.0, "personal": 0.0}
"""The same where there are to be no fewer. Training alone that fits its windows has the burden of proof; that
for the fleet starts anew each time, and what is used comes out of it."""
LOOK_AGAIN = 8
"""Trainings at a level below the first after which the one above is tried again."""
GROWN = 1.25
"""Windows to train on, relative to those at the start, with which a device begins anew."""
LITTLE = 0.25
"""Share of an update's price below which a release's gain is next to nothing."""
MOST = 4.0
"""Prices of an update that a single release's gain counts for at most: the first ones bring so much that
later ones would not show, and a fleet's figure can be lied about."""
MAX_LEVEL = 16


@dataclass(frozen=True)
class Effort:
    """Of one chain of trainings."""

    level: int = 0
    """How often the epochs are halved; beyond the last half there is rest."""
    evidence: Evidence = field(default_factory=Evidence)
    """Of the last halves of the trainings at this level."""

    def __post_init__(self) -> None:
        if not 0 <= self.level <= MAX_LEVEL:
            raise ValueError(f"level: expected 0 to {MAX_LEVEL}, got {self.level}")


@dataclass(frozen=True)
class State:
    """What a device knows of its trainings."""

    windows: int = 0
    """Windows to train on when it began."""
    local: Effort = field(default_factory=Effort)
    personal: Effort = field(default_factory=Effort)
    releases: Evidence = field(default_factory=Evidence)
    """What a release brings, beside the one before."""
    update_bytes: int = 0
    """Of an update of all segments; 0: none was sent yet."""

    def effort(self, chain: str) -> Effort:
        """Of one of CHAINS."""
        return self.local if chain == "local" else self.personal


@dataclass(frozen=True)
class Plan:
    """How to train from a release."""

    epochs: Mapping[str, int] = field(default_factory=dict)
    """By chain; none for one: those of the training policy."""
    frozen: tuple[str, ...] = ()
    """Segments of the adapter that are not trained for the fleet."""

    @property
    def identity(self) -> bytes:
        """Names what a training by it depends on; empty for that of the training policy."""
        epochs = " ".join(f"{chain} {count}" for chain, count in sorted(self.epochs.items()))
        return "\n".join((epochs, *self.frozen)).encode() if self.epochs or self.frozen else b""

    def rests(self, chain: str) -> bool:
        """Whether a chain is not trained at all."""
        return self.epochs.get(chain) == 0

    def halfway(self, chain: str) -> int:
        """Epochs after which the last half of a chain's training begins; 0: with its start."""
        return self.epochs.get(chain, 0) // 2


@dataclass(frozen=True)
class Observation:
    """What came out of a plan."""

    halves: Mapping[str, Gain] = field(default_factory=dict)
    """By chain, what the last half of its training brought."""
    steps: Mapping[str, float] = field(default_factory=dict)
    """By chain, gradient steps that this half took, with those on all windows."""
    alone_left: float = math.inf
    """Loss of training alone on the windows that it was trained on."""
    release: Gain | None = None
    """What the newest release brought of which this is known, beside the one before it."""
    update_bytes: int = 0
    """Of the last update, where it was one of all segments."""


def begin(state: State, windows: int) -> State:
    """The state with which a device plans its next training on so many windows."""
    return State(windows, update_bytes=state.update_bytes) if grown(state, windows) else state


def grown(state: State, windows: int) -> bool:
    """Whether a device begins anew with so many windows to train on."""
    return windows > GROWN * state.windows


def plan(
    state: State, policy: SchedulePolicy, training: TrainingPolicy, segments: Sequence[str], release: int
) -> Plan:
    """How to train from a release.

    Args:
        state: of the device.
        policy: the charter's.
        training: the charter's.
        segments: of the classifier, in order; the last one is always trained.
        release: its number: the whole fleet trains the same segments.
    """
    if policy.mode != ADAPTIVE:
        return Plan()
    epochs = {}
    for chain in CHAINS:
        steps = ladder(chain, policy, training)
        epochs[chain] = steps[min(state.effort(chain).level, len(steps) - 1)]
    in_turn = LITTLE < _price_share(state, policy) <= 1
    frozen = [name for place, name in enumerate(segments[:-1]) if in_turn and (place + release) % 2]
    return Plan(epochs, tuple(frozen))


def ladder(chain: str, policy: SchedulePolicy, training: TrainingPolicy) -> list[int]:
    """Epochs of a chain, by level of effort."""
    epochs = [training.epochs]
    while epochs[-1] > 1 and (half := (epochs[-1] + 1) // 2) >= policy.least_effort * training.epochs:
        epochs.append(half)
    return [*epochs, 0] if chain == "local" else epochs


def observe(state: State, seen: Observation, policy: SchedulePolicy, training: TrainingPolicy) -> State:
    """What is known after a training; a figure that cannot be one is passed over."""
    if policy.mode != ADAPTIVE:
        return state
    state = replace(state, update_bytes=seen.update_bytes or state.update_bytes)
    if seen.release is not None and seen.release.sound:
        bound = MOST * _price(state, policy) or MAX_GAIN
        release = replace(seen.release, mean=min(max(seen.release.mean, -bound), bound))
        state = replace(state, releases=state.releases.add(release))
    found = {}
    for chain in CHAINS:
        effort, gain, steps = state.effort(chain), seen.halves.get(chain), seen.steps.get(chain, 0.0)
        if gain is not None and gain.sound and 0 <= steps < math.inf:
            price = steps / 1000 * policy.nats_per_thousand_steps
            # Training alone goes on where it was: what it left undone, nobody makes up for.
            may_fall = (
                seen.alone_left < policy.fitted if chain == "local" else _price_share(state, policy) <= 1
            )
            effort = Effort(min(effort.level, len(ladder(chain, policy, training)) - 1), effort.evidence)
            lowest = not may_fall or effort.level == len(ladder(chain, policy, training)) - 1
            effort = _moved(effort, gain, price, policy.patience, None if lowest else HOLD[chain])
        found[chain] = effort
    return replace(state, local=found["local"], personal=found["personal"])


def _moved(effort: Effort, gain: Gain, price: float, patience: int, hold: float | None) -> Effort:
    """The effort after a measurement; a new level begins without evidence, and `hold` None is the lowest."""
    evidence, level = effort.evidence.add(gain), effort.level
    if level and (evidence.mean - PROOF * evidence.error > price or evidence.count >= LOOK_AGAIN):
        return Effort(level - 1)
    enough = evidence.count >= patience or evidence.mean + PROOF * evidence.error < 0
    if hold is not None and enough and evidence.mean - hold * evidence.error <= price:
        return Effort(level + 1)
    return Effort(level, evidence)


def sends(state: State, policy: SchedulePolicy) -> bool:
    """Whether an update is worth sending."""
    return _price_share(state, policy) > LITTLE


def _price(state: State, policy: SchedulePolicy) -> float:
    """What a release has to bring, in nats; 0 as long as no update was sent."""
    return state.update_bytes / 1024 * policy.nats_per_kib


def _price_share(state: State, policy: SchedulePolicy) -> float:
    """What a release brings, in prices of an update; infinite as long as too little is known."""
    price = _price(state, policy)
    if policy.mode != ADAPTIVE or state.releases.count < 2 * policy.patience or not price:
        return math.inf
    return state.releases.mean / price
