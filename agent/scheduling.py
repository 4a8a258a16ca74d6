"""The schedule of one device: its state in the store, and what a release's trainings say about the next.

The decisions are those of schedule.py. What is kept is committed with the release that it was learned from:
a device that is switched off in the middle of a training makes the same plan again, and goes on with it.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from agent import schedule
from agent.engine import Floats
from agent.ensemble import FULL
from agent.learner import Learner, Material
from agent.learning import Learning
from agent.measurement import Gain
from agent.schedule import CHAINS, Observation, Plan, State
from agent.store import Store
from protocol import records
from protocol.charter import ADAPTIVE
from protocol.errors import SchemaError
from protocol.messages import Release
from protocol.package import ANOMALY

log = logging.getLogger(__name__)

CATCH_UP = 4
"""Trainings alone that a device makes up for before it waits."""
FLEET_GAIN = "release_gain"
"""Among a release's metrics, what the release before brought the devices of the fleet."""


@dataclass(frozen=True)
class Trainings:
    """The trainings of a release, as they were planned and as they went."""

    plan: Plan
    starts: Mapping[str, Floats]
    """By name, where each began, float32 [parameters]."""
    learning: Learning


class Scheduler:
    """Plans trainings, and takes down what came of them."""

    def __init__(self, store: Store) -> None:
        """Go on from what the store holds: state and charter."""
        self._store = store

    def begin(
        self, learner: Learner, release: int, starts: Mapping[str, Floats], material: Material
    ) -> Trainings:
        """Begin what is to be trained from a release; `starts` as for Learner.begin."""
        state = schedule.begin(self._state(), material.windows)
        segments = [name for name in learner.manifest.slices() if name != ANOMALY]
        plan = schedule.plan(state, self._store.schedule(), learner.policy, segments, release)
        return Trainings(plan, starts, learner.begin(release, starts, material, plan))

    def look(self, windows: int) -> None:
        """Let an update go that holds many new labels, on so many windows to train on."""
        if self._store.number("idle", 0) and schedule.grown(self._state(), windows):
            self._store.note_idle(False)

    def conclude(
        self, learner: Learner, release: Release, adapter: Floats, trainings: Trainings, material: Material
    ) -> dict[str, str]:
        """What is to be committed with a release, before it is: state, plan, and whether an update is sent.

        Args:
            learner: of the device.
            release: that was trained from.
            adapter: the release's, float32 [parameters].
            trainings: what was trained.
            material: what it was trained on.
        """
        policy, training = self._store.schedule(), learner.policy
        if policy.mode != ADAPTIVE or not trainings.plan.epochs:  # the charter may have changed meanwhile
            return {"effort": "", "idle": "0", "frozen": "", "plan": ""}
        seen = Observation(
            self._halves(learner, trainings, material),
            _steps(trainings.learning),
            learner.left(trainings.learning.adapters["local"], material),
            self._release_gain(learner, release, adapter, material),
            self._update_bytes(),
        )
        state = schedule.observe(schedule.begin(self._state(), material.windows), seen, policy, training)
        sends = schedule.sends(state, policy)
        told = describe(trainings.plan, state, training.epochs, sends=sends)
        log.info("release=%d schedule: %s", release.number, told)
        return {
            "effort": json.dumps(asdict(state)),
            "idle": str(int(not sends)),
            "frozen": " ".join(trainings.plan.frozen),
            "plan": told,
        }

    def catch_up(
        self,
        learner: Learner,
        release: int,
        learned: Mapping[str, Floats],
        material: Material,
        concluded: Mapping[str, str],
    ) -> Callable[[], Learning] | None:
        """More of training alone, where a device is going to wait and has not fitted its windows; else None.

        No release comes for a while, and without one there is no training.

        Args:
            learner: of the device.
            release: its number.
            learned: from it, by name.
            material: what it was trained on.
            concluded: what `conclude` said.
        """
        left = learner.left(learned["local"], material)
        if concluded["idle"] != "1" or not left >= self._store.schedule().fitted:
            return None
        starts = {name: learned[name] for name in ("local", "local" + FULL) if name in learned}
        plan = Plan({"local": CATCH_UP * learner.policy.epochs})
        return lambda: learner.begin(release, starts, material, plan)

    def _state(self) -> State:
        text = self._store.text("effort")
        try:
            return records.from_named(State, json.loads(text)) if text else State()
        except (SchemaError, ValueError, TypeError, RecursionError) as error:
            log.warning("the schedule begins anew: %s", error)
            return State()

    def _halves(self, learner: Learner, trainings: Trainings, material: Material) -> dict[str, Gain]:
        learned, halves = trainings.learning.adapters, {}
        for chain in CHAINS:
            before = trainings.learning.halfway.get(chain, trainings.starts[chain])
            gain = learner.gain(before, learned[chain], material)
            if gain is not None:
                halves[chain] = gain
        return halves

    def _release_gain(
        self, learner: Learner, release: Release, adapter: Floats, material: Material
    ) -> Gain | None:
        """The fleet's figure; where the server does not tell it, this device's."""
        if release.withdraws >= 0:
            return None
        if FLEET_GAIN in release.metrics:
            return Gain(release.metrics[FLEET_GAIN], 0.0)
        before = self._store.adapter("global") if self._store.state().base else None
        return None if before is None else learner.gain(before, adapter, material)

    def _update_bytes(self) -> int:
        """Of the update to the release that is left, where it was sent and was one of all segments."""
        sent = self._store.number("sent_release", -1) == self._store.state().release
        return self._store.number("update_bytes", 0) if sent and not self._store.text("frozen") else 0


def describe(plan: Plan, state: State, epochs: int, *, sends: bool) -> str:
    """A plan and its reason in a line."""
    told = [
        f"{name} {plan.epochs.get(chain, epochs)} of {epochs} epochs (the last half: {_shown(state, chain)})"
        for name, chain in (("alone", "local"), ("from the release", "personal"))
    ]
    told.append(f"frozen: {', '.join(plan.frozen)}" if plan.frozen else "all segments")
    told.append(f"a release brings {state.releases.mean:+.4f} nats: {'sends' if sends else 'waits'}")
    return "; ".join(told)


def _shown(state: State, chain: str) -> str:
    evidence = state.effort(chain).evidence
    return f"{evidence.mean:+.4f} nats" if evidence.count else "not known yet"


def _steps(learning: Learning) -> dict[str, float]:
    """By chain, gradient steps of the last half of its trainings."""
    return {
        chain: (learning.steps.get(chain, 0) + learning.steps.get(chain + FULL, 0)) / 2 for chain in CHAINS
    }
