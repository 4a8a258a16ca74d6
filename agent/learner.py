"""One device's learning: data, engine and adapters of the installed package.

From a release it trains two adapters on the same windows: "local" goes on training alone as if there were no
fleet, "personal" starts from the release. The gate compares both, the mean of "personal" and the release
("mixed"), the release itself ("global") and the untouched initial adapter ("backbone") on held-out windows.
Messages and storage are not handled here.

What is mixed forgets less of what other devices know than fine-tuning alone, after Wortsman et al. 2022
(arXiv:2109.01903); with few labels that is worth more than the fit to them.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from agent import domains, gate
from agent.dataset import Labelled, split
from agent.engine import Engine, Floats
from agent.features import FeatureCache
from agent.learning import Learning
from agent.objective import comparable_losses, mean_loss
from agent.sources import Source
from agent.training import Training
from protocol import cbor, records
from protocol.charter import TrainingPolicy
from protocol.package import Manifest


@dataclass(frozen=True)
class Material:
    """What a learning learns from."""

    labelled: Labelled
    """All labelled windows."""
    training: Labelled
    holdout: Labelled
    labelled_windows: int
    unlabelled_windows: int
    fingerprint: str
    """Of the labelled windows."""


@dataclass(frozen=True)
class Trained:
    """An adapter that was trained from a release on the windows that were there."""

    adapter: Floats
    """float32 [parameters]."""
    windows: int
    """Labelled windows that were trained on."""
    loss_before: float
    loss_after: float


@dataclass(frozen=True)
class Learned:
    """What came out of a release."""

    adapters: Mapping[str, Floats]
    """"global", "local", "personal" and "adopted", float32 [parameters] each."""
    decision: gate.Decision
    personal_gain: float
    """Mean held-out loss of training alone minus that of the personal adapter."""
    mixed_gain: float
    """The same of the mixed adapter."""
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
        self._seen: list[tuple[str, int | None]] | None = None

    def changed(self) -> bool:
        """Whether the source differs from what it was when this was last asked; cheap, for idle times."""
        seen = [(listing.key, listing.rows) for listing in self._source.list(self.manifest.schema)]
        changed, self._seen = seen != self._seen, seen
        return changed

    def material(self) -> Material:
        """What there is to learn from now; features of new recordings are computed."""
        inventory = self._cache.collect(self._source, self._engine, self._maximum())
        training, holdout = split(
            inventory.labelled, self.policy.holdout_fraction, self.manifest.window.length
        )
        return Material(
            inventory.labelled,
            training,
            holdout,
            len(inventory.labelled),
            inventory.unlabelled_windows,
            inventory.fingerprint,
        )

    def problems(self) -> tuple[str, ...]:
        """Recordings that cannot be read, with the reason; at most ten, shortened."""
        return tuple(problem[:500] for problem in self._source.problems.values())[:10]

    def domain(self, stack: Floats, material: Material, held: int | None) -> int:
        """Which of a release's adapters to go on from; see domains.py."""
        return domains.choose(self._engine, stack, material.labelled, held)

    def begin(self, release: int, starts: Mapping[str, Floats], material: Material) -> Learning:
        """Begin to train.

        Args:
            release: its number. The order of windows depends on it and not on the adapter, so that training
                alone does not depend on what the fleet does.
            starts: by purpose ("local", "personal"), where to start, float32 [parameters].
            material: windows to train on.
        """
        # All that the result depends on: a checkpoint of anything else must not be gone on with.
        identity = hashlib.sha256(b"%d " % release + material.fingerprint.encode() + self._seed)
        identity.update(cbor.encode(records.to_numbered(self.policy)))
        for purpose, start in starts.items():
            identity.update(purpose.encode() + start.tobytes())
        replay = self._cache.replay.windows()
        makers = {
            purpose: partial(self._training, start, material, replay, self._random(release, purpose))
            for purpose, start in starts.items()
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
            learned: the adapters "local" and "personal".
            material: what they were trained on.
            release: the release's adapter, float32 [parameters].
            initial: the package's initial adapter.
            default: what the gate keeps without evidence.
        """
        candidates = {
            "local": learned["local"],
            "personal": learned["personal"],
            "mixed": mixed(release, learned["personal"]),
            "global": release,
            "backbone": initial,
        }
        held = {
            label: comparable_losses(self._engine, a, material.holdout) for label, a in candidates.items()
        }
        decision = gate.decide(held, default)
        return Learned(
            {**learned, "global": release, "adopted": candidates[decision.choice]},
            decision,
            gate.mean(gate.gains(held["local"], held["personal"])),
            gate.mean(gate.gains(held["local"], held["mixed"])),
            self.assess(learned["personal"], material, release),
        )

    def assess(self, adapter: Floats, material: Material, release: Floats) -> Trained:
        """Measure what training from a release did, on the windows that it saw."""
        return Trained(
            adapter,
            len(material.training),
            mean_loss(self._engine, release, material.training),
            mean_loss(self._engine, adapter, material.training),
        )

    def _training(
        self,
        start: Floats,
        material: Material,
        replay: Labelled,
        random: Callable[[], np.random.Generator],
    ) -> Training:
        return Training(
            self._engine,
            start,
            material.training,
            self.policy,
            random(),
            replay=replay,
            holdout=material.holdout,
            segments=self.manifest.slices(),
        )

    def _random(self, release: int, purpose: str) -> Callable[[], np.random.Generator]:
        seed = hashlib.sha256(self._seed + f"{release} {purpose}".encode()).digest()
        return lambda: np.random.Generator(np.random.PCG64(int.from_bytes(seed[:16], "little")))


def mixed(release: Floats, personal: Floats) -> Floats:
    """The mean of a release and of what was trained from it, float32 [parameters]."""
    return np.asarray(release + np.float32(0.5) * (personal - release), np.float32)
