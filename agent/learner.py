"""One device's learning: data, engine and adapters of the installed package.

From a release it trains two adapters on the same windows: "local" goes on training alone as if there were no
fleet, "personal" starts from the release. The gate compares both, the release itself ("global") and the
untouched initial adapter ("backbone") on held-out windows. Messages and storage are not handled here.
"""

import hashlib
import logging
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent import gate
from agent.dataset import Labelled, split
from agent.engine import Engine, Floats
from agent.features import FeatureCache, Inventory
from agent.sources import Source
from agent.training import losses, mean_loss, train
from protocol.messages import TrainingPolicy
from protocol.package import Manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """An adapter that was trained from a release on the windows that were there."""

    adapter: Floats
    """float32 [parameters]."""
    fingerprint: str
    """Of the labelled windows that were used."""
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
    holdout_windows: int
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
        maximum_windows: int,
        seed: bytes,
    ) -> None:
        """Take an installed package.

        Args:
            engine: computes on it.
            manifest: describes it.
            source: of recordings.
            cache: of features.
            policy: how to train.
            maximum_windows: most labelled windows held in memory.
            seed: of the order of windows, different on every device.
        """
        self.manifest = manifest
        self.policy = policy
        self._engine = engine
        self._source = source
        self._cache = cache
        self._maximum = maximum_windows
        self._seed = seed

    def inventory(self) -> Inventory:
        """Look at the source; features of new recordings are computed now."""
        return self._cache.collect(self._source, self._engine, self._maximum)

    def trainable_windows(self) -> int:
        """Labelled windows that could be trained on now."""
        return len(self._split(self.inventory())[0])

    def problems(self) -> tuple[str, ...]:
        """Recordings that cannot be read, with the reason; at most ten, shortened."""
        return tuple(problem[:500] for problem in self._source.problems.values())[:10]

    def learn(self, name: bytes, release: Floats, local: Floats, initial: Floats, default: str) -> Learned:
        """Train from a release and decide.

        Args:
            name: SHA-256 of the release's adapter.
            release: its adapter, float32 [parameters].
            local: the adapter that was trained alone so far.
            initial: the package's initial adapter.
            default: what the gate keeps without evidence.
        """
        inventory = self.inventory()
        training, holdout = self._split(inventory)
        local = train(self._engine, local, training, self.policy, self._random(name, "local"))
        personal = self._personalise(name, release, training, inventory.fingerprint)
        candidates = {
            "local": local,
            "personal": personal.adapter,
            "global": release,
            "backbone": initial,
        }
        held = {label: losses(self._engine, adapter, holdout) for label, adapter in candidates.items()}
        decision = gate.decide(held, default)
        return Learned(
            {
                "global": release,
                "local": local,
                "personal": personal.adapter,
                "adopted": candidates[decision.choice],
            },
            decision,
            gate.mean(gate.gains(held["local"], held["personal"])),
            len(holdout),
            personal,
        )

    def personalise(self, name: bytes, release: Floats) -> Trained:
        """Train from a release, float32 [parameters], on the windows of now."""
        inventory = self.inventory()
        return self._personalise(name, release, self._split(inventory)[0], inventory.fingerprint)

    def _personalise(self, name: bytes, release: Floats, training: Labelled, fingerprint: str) -> Trained:
        adapter = train(self._engine, release, training, self.policy, self._random(name, "personal"))
        return Trained(
            adapter,
            fingerprint,
            len(training),
            mean_loss(self._engine, release, training),
            mean_loss(self._engine, adapter, training),
        )

    def _split(self, inventory: Inventory) -> tuple[Labelled, Labelled]:
        return split(inventory.labelled, self.policy.holdout_fraction, self.manifest.window.length)

    def _random(self, name: bytes, purpose: str) -> np.random.Generator:
        seed = hashlib.sha256(self._seed + name + purpose.encode()).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(seed[:16], "little")))


def resources() -> tuple[float, int]:
    """CPU seconds of this process so far, and its peak resident memory in bytes."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, _peak_rss() or usage.ru_maxrss * 1024


def _peak_rss() -> int:
    """VmHWM in bytes; 0 where there is none. ru_maxrss would count the parent that started this process."""
    try:
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, UnicodeDecodeError):
        return 0
    return 0
