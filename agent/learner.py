"""One device's learning: data, engine and adapters of the installed package.

From a release it trains two adapters, each twice. "local" goes on training alone as if there were no fleet,
"personal" starts from the release; both without the held-out windows, on which the gate compares them.
"local_full" and "personal_full" learn from all labelled windows: they are what the device uses. "personal" is
what it sends. "local_full" is a chain of its own, from release to release, like "local". Heads behind the
graphs' segments are not trained by gradients: a device's step of them is part of where "personal" starts.
Messages and storage are not handled here.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from agent import anomaly, appraisal, classifiers, domains, gate
from agent.anomaly import NO_REFERENCES, References
from agent.dataset import Labelled, split
from agent.engine import Engine, Floats
from agent.ensemble import FULL, TRAINED
from agent.features import FeatureCache
from agent.learning import Learning
from agent.measurement import Gain
from agent.objective import comparable_losses, mean_loss
from agent.schedule import Plan
from agent.sources import Source
from agent.training import Training
from agent.update import without_heads
from agent.verdict import Verdict, judge
from protocol import cbor, records
from protocol.charter import TrainingPolicy
from protocol.package import ANOMALY, CLASSIFICATION, DISCRIMINANT, Manifest


@dataclass(frozen=True)
class Material:
    """What a learning learns from."""

    labelled: Labelled
    """All labelled windows: those below, and training windows that overlap held-out ones."""
    training: Labelled
    holdout: Labelled
    unlabelled_windows: int
    fingerprint: str
    """Of all windows that are learned from."""
    references: References = NO_REFERENCES
    """What anomaly detection learns from."""

    @property
    def windows(self) -> int:
        """What an update counts for: labelled windows; without any, those of anomaly detection."""
        return len(self.training) or len(self.references)


@dataclass(frozen=True)
class Trained:
    """An adapter that was trained from a release on the windows that were there."""

    adapter: Floats
    """float32 [parameters]."""
    windows: int
    """Windows that were trained on."""
    loss_before: float
    loss_after: float


@dataclass(frozen=True)
class Learned:
    """What came out of a release."""

    adapters: Mapping[str, Floats]
    """"global", "local", "personal", "local_full" and "personal_full", float32 [parameters] each; with a
    discriminant head also the classifier, "discriminant" and "discriminant_full"."""
    verdict: Verdict
    personal: Trained


class Learner:
    """Data, engine and policy of an installed package."""

    def __init__(
        self,
        engine: Engine,
        manifest: Manifest,
        source: Source,
        cache: FeatureCache,
        *,
        policy: TrainingPolicy,
        maximum_windows: Callable[[], int],
        seed: bytes,
    ) -> None:
        """Take an installed package.

        Args:
            engine: computes on it.
            manifest: describes it.
            source: of recordings.
            cache: of features.
            policy: how to train.
            maximum_windows: most labelled windows that may be held in memory now.
            seed: of the order of windows, different on every device.
        """
        self.manifest = manifest
        self.policy = policy
        self._engine = engine
        self._source = source
        self._cache = cache
        self._maximum = maximum_windows
        self._seed = seed
        self._graph_segments = sum(
            part.stop <= manifest.graph_parameters for part in manifest.slices().values()
        )
        self._seen: list[tuple[str, int | None]] | None = None

    def changed(self) -> bool:
        """Whether the source differs from what it was when this was last asked; cheap, for idle times."""
        seen = [(listing.key, listing.rows) for listing in self._source.list(self.manifest.schema)]
        changed, self._seen = seen != self._seen, seen
        return changed

    def material(self) -> Material:
        """What there is to learn from now; features of new recordings are computed."""
        inventory = self._cache.collect(self._source, self._engine, self._maximum())
        labelled = inventory.labelled
        if not self._trains(CLASSIFICATION):
            labelled = labelled.take(np.zeros(0, np.int64))
        training, holdout = split(labelled, self.policy.holdout_fraction, self.manifest.window.length)
        material = Material(
            labelled,
            training,
            holdout,
            inventory.unlabelled_windows,
            inventory.fingerprint,
        )
        return self._with_references(material) if self._trains(ANOMALY) else material

    def problems(self) -> tuple[str, ...]:
        """Recordings that cannot be read, with the reason; at most ten, shortened."""
        return tuple(problem[:500] for problem in self._source.problems.values())[:10]

    def domain(self, stack: Floats, material: Material, held: int | None) -> int:
        """Which of a release's adapters to go on from; see domains.py."""
        if len(material.labelled) or not (self._trains(DISCRIMINANT) and self._engine.embedding_size):
            return domains.choose(self._engine, stack, material.labelled, held)
        first = self._cache.first_windows(
            self._source, self._engine, self.policy.reference_windows, self._maximum() // 4
        )
        features = np.concatenate([np.zeros((0, self._engine.feature_size), np.float32), *first])
        return domains.likeliest(self._engine, self.manifest, stack, features, held)

    def begin(
        self, release: int, starts: Mapping[str, Floats], material: Material, plan: Plan | None = None
    ) -> Learning:
        """Begin to train.

        Args:
            release: its number. The order of windows depends on it and not on the adapter, so that training
                alone does not depend on what the fleet does.
            starts: by name ("local", "personal", "local_full", "personal_full"), where to start, float32
                [parameters]. Where nothing is held out, one in full is left out if it would be the same.
            material: windows to train on.
            plan: how much; None: as the policy says.
        """
        plan = plan or Plan()
        starts = {name: self._with_heads(name, start, material, release) for name, start in starts.items()}
        if not len(material.holdout):
            starts = {name: start for name, start in starts.items() if not self._repeats(name, starts)}
        # All that the result depends on: a checkpoint of anything else must not be gone on with.
        identity = hashlib.sha256(b"%d " % release + material.fingerprint.encode() + self._seed)
        identity.update(cbor.encode(records.to_numbered(self.policy)))
        identity.update(plan.identity)
        for name, start in starts.items():
            identity.update(name.encode() + start.tobytes())
        replay = self._cache.replay.windows()
        makers = {
            name: partial(
                self._training,
                name,
                start,
                material=material,
                replay=replay,
                random=self._random(release, name),
                plan=plan,
            )
            for name, start in starts.items()
        }
        return Learning(identity.digest(), makers)

    def conclude(
        self,
        learned: Mapping[str, Floats],
        material: Material,
        release: Floats,
        initial: Floats,
        default: str,
    ) -> Learned:
        """Let the gate decide.

        Args:
            learned: what was trained, by name.
            material: what it was trained on.
            release: the release's adapter, float32 [parameters].
            initial: the package's initial adapter.
            default: what the gate keeps without evidence.
        """
        full = {name + FULL: learned.get(name + FULL, learned[name]) for name in TRAINED}
        adapters = {**learned, **full, "global": release, **self._classifiers(release, material)}
        if self._trains(ANOMALY):
            adapters[ANOMALY] = self._chosen_head(
                {**learned, "global": release, "backbone": initial}, material
            )
        verdict = judge(
            self._engine, {**adapters, "initial": initial}, material.training, material.holdout, default
        )
        return Learned(adapters, verdict, self.assess(learned["personal"], material, release))

    def assess(self, adapter: Floats, material: Material, release: Floats) -> Trained:
        """Measure what training from a release did, on the windows that it saw."""
        return Trained(
            adapter,
            material.windows,
            mean_loss(self._engine, release, material.training),
            mean_loss(self._engine, adapter, material.training),
        )

    def release_gain(self, before: Floats, release: Floats, material: Material) -> float:
        """Mean held-out loss of the release before minus that of a release, as the gate compares them."""
        features, labels = material.holdout.features, material.holdout.labels
        old, new = (
            comparable_losses(self._engine.predict(adapter, features), labels)
            for adapter in (before, release)
        )
        return gate.mean(gate.gains(old, new))

    def gain(self, before: Floats, after: Floats, material: Material) -> Gain | None:
        """By how much an adapter's held-out loss is below that of one before; None: nothing is held out."""
        return appraisal.gain(self._engine, before, after, material.holdout)

    def left(self, adapter: Floats, material: Material) -> float:
        """The loss of an adapter on the training windows."""
        return mean_loss(self._engine, adapter, material.training)

    def carried_over(self, difference: Floats) -> Floats:
        """Of a difference that was not sent, what may be added to the next one, float32 [parameters].

        A step of the heads goes all the way from the release that it starts from: not twice.
        """
        return without_heads(self.manifest, difference)

    def _classifiers(self, release: Floats, material: Material) -> dict[str, Floats]:
        if not self._trains(DISCRIMINANT):
            return {}
        return classifiers.of_release(
            self._engine, self.manifest, release, material.training, material.labelled
        )

    def _with_heads(self, name: str, start: Floats, material: Material, release: int) -> Floats:
        """Where a training starts: only what is sent says something of the device's own statistics."""
        start = self._with_density(start, material)
        if name != "personal" or not self._trains(DISCRIMINANT):
            return start
        return classifiers.with_step(self._engine, self.manifest, start, material.training, release)

    # Anomaly detection: its head is trained before the classifier, which leaves it as it is.

    def _trains(self, task: str) -> bool:
        return task in self.manifest.tasks and task in self.policy.tasks

    def _with_references(self, material: Material) -> Material:
        # A quarter of the room, as deviations are float64 and stand beside the labelled windows.
        first = self._cache.first_windows(
            self._source, self._engine, self.policy.reference_windows, self._maximum() // 4
        )
        return replace(
            material,
            fingerprint=anomaly.fingerprint(material.fingerprint, first),
            references=References.of(first, self.policy.holdout_fraction),
        )

    def _with_density(self, start: Floats, material: Material) -> Floats:
        if not self._trains(ANOMALY):
            return start
        part = self.manifest.task_slices()[ANOMALY]
        return anomaly.with_head(start, part, material.references.advance(start[part]))

    def _chosen_head(self, candidates: Mapping[str, Floats], material: Material) -> Floats:
        """The head that the held-out normal windows choose, of adapters by name, float32 [head]."""
        part = self.manifest.task_slices()[ANOMALY]
        heads = {name: candidate[part] for name, candidate in candidates.items()}
        heads["mixed"] = (heads["global"] + heads["personal"]) / np.float32(2)
        return heads[material.references.choose(heads, anomaly.DEFAULT)]

    def _training(
        self,
        name: str,
        start: Floats,
        epochs: Mapping[str, int],
        *,
        material: Material,
        replay: Labelled,
        random: Callable[[], np.random.Generator],
        plan: Plan,
    ) -> Training:
        full, chain = name.endswith(FULL), name.removesuffix(FULL)
        windows = material.labelled if full else material.training
        frozen = plan.frozen if name == "personal" else ()
        # Weight decay must not move the heads behind the graphs' segments either.
        heads = (segment.name for segment in self.manifest.segments[self._graph_segments :])
        if frozen := (*frozen, *heads):
            factors = {**self.policy.learning_rate_factors, **dict.fromkeys(frozen, 0.0)}
            policy = replace(self.policy, learning_rate_factors=factors)
        else:
            policy = self.policy
        return Training(
            self._engine,
            start,
            windows.take(np.zeros(0, np.int64)) if plan.rests(chain) else windows,
            policy,
            random(),
            replay=replay,
            # No window is left to say when to stop: the training with windows held out has found it.
            holdout=None if full else material.holdout,
            segments=self.manifest.slices(),
            epochs=epochs.get(chain, 0) if full else plan.epochs.get(chain, 0),
            halfway=0 if full else plan.halfway(chain),
        )

    def _random(self, release: int, name: str) -> Callable[[], np.random.Generator]:
        seed = hashlib.sha256(self._seed + f"{release} {name}".encode()).digest()
        return lambda: np.random.Generator(np.random.PCG64(int.from_bytes(seed[:16], "little")))

    def _repeats(self, name: str, starts: Mapping[str, Floats]) -> bool:
        """Whether another training starts alike, and so ends alike where it has the same windows.

        Heads do not count: trainings leave them as they are, and only what is sent needs its own.
        """
        other = starts.get(name.removesuffix(FULL)) if name.endswith(FULL) else None
        trained = self.manifest.graph_parameters
        return other is not None and other[:trained].tobytes() == starts[name][:trained].tobytes()
