"""A fleet under attack: rounds of real training on real recordings, without messages in between.

Training, quantisation, norm bound, rule, optimiser and coded releases are the agent's and the server's own
code. Left out is what changes no figure here: signing, the broker, the journal and the gate. So a round of 38
devices takes less than a second.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.config import SourceConfig
from agent.dataset import Labelled, split
from agent.features import FeatureCache
from agent.onnxruntime_engine import OnnxruntimeEngine
from agent.sources import Source
from agent.training import train
from agent.update import clip
from benchmarks.adversaries import Attack, View
from protocol.charter import StalenessPolicy, TrainingPolicy
from protocol.package import unpack
from protocol.quantisation import MAX_VALUE, dequantise, dither_seed, quantise
from protocol.release_coding import adapter_sha256
from server.aggregation import bound_norm
from server.config import ServerConfig
from server.counting import Counting
from server.intake import Accepted, Lateness, RoundTerms
from server.ledger_records import ReleaseRecord
from server.rules.policy import AggregationPolicy
from simulation.experiment import Settings, prepare

Floats = NDArray[np.float32]
LAST = 3
"""Releases that the accuracy is averaged over."""


@dataclass(frozen=True)
class Participant:
    """A device with its windows as features."""

    name: str
    training: Labelled
    test_features: Floats
    test_labels: NDArray[np.int64]


@dataclass(frozen=True)
class Accuracy:
    """Mean over the honest devices and the last releases, in per cent."""

    release: float
    """Of the release as it is."""
    personal: float
    """Of the adapters that the devices trained from it."""


class AttackedFleet:
    """The devices of a fleet and a package, for any number of federations."""

    def __init__(self, directory: Path, fleet: Path, package: bytes, *, labels: int, seed: int) -> None:
        """Compute all features.

        Args:
            directory: for files of this fleet.
            fleet: a fleet directory.
            package: the model package.
            labels: labelled windows per class and device.
            seed: of labels and training.
        """
        self.policy = TrainingPolicy()
        self._seed = seed
        unpacked = unpack(package, None)
        self._manifest, self._initial = unpacked.manifest, unpacked.adapter
        installed = directory / "package"
        installed.mkdir(parents=True)
        for name, member in unpacked.members.items():
            (installed / name).write_bytes(member)
        self._engine = OnnxruntimeEngine(installed, self._manifest)
        experiment = prepare(directory / "run", fleet, Settings(labels_per_class=labels, seed=seed))
        self.devices = []
        for participant in experiment.participants:
            name = participant.device.id
            cache = FeatureCache(directory / "features" / name, self._manifest, limit_bytes=1 << 28)
            source = Source(SourceConfig(str(participant.directory / "spool")), lambda: 0.0)
            labelled = cache.collect(source, self._engine, 20_000).labelled
            training, _ = split(labelled, self.policy.holdout_fraction, self._manifest.window.length)
            windows, truth = experiment.test_set(name)
            self.devices.append(Participant(name, training, self._engine.features(windows), truth))

    def attackers(self, share: float) -> frozenset[int]:
        """Which devices are hostile, the same for every rule and attack; at least one."""
        count = max(1, round(share * len(self.devices)))
        random = np.random.Generator(np.random.PCG64(self._seed))
        return frozenset(int(index) for index in random.permutation(len(self.devices))[:count])

    def run(
        self,
        aggregation: AggregationPolicy,
        rounds: int,
        *,
        attack: Attack | None = None,
        attackers: frozenset[int] = frozenset(),
    ) -> list[list[tuple[float, float]]]:
        """Run a federation.

        Args:
            aggregation: rule and server optimiser.
            rounds: of the federation.
            attack: what the attackers do; None: they are honest.
            attackers: indices of the hostile devices.

        Returns:
            After each of the last releases, for each device: accuracy in per cent of the release and of the
            adapter trained from it.
        """
        release = ReleaseRecord(
            0,
            1,
            None,
            b"",
            adapter_sha256(self._initial),
            self._initial,
            0.0,
            updates=0,
            weight=0,
            metrics={},
        )
        found = []
        for number in range(1, rounds + 2):
            trained = self._train(release.adapter, number, attack, attackers)
            if number > rounds + 1 - LAST:
                found.append(
                    [
                        (self._accuracy(device, release.adapter), self._accuracy(device, adapter))
                        for device, adapter in zip(self.devices, trained, strict=True)
                    ]
                )
            if number <= rounds:
                release = self._close(
                    release, trained, number, aggregation=aggregation, attack=attack, attackers=attackers
                )
        return found

    def mean(self, found: list[list[tuple[float, float]]], left_out: frozenset[int]) -> Accuracy:
        """Average over releases and over the devices that are not left out."""
        honest = [index for index in range(len(self.devices)) if index not in left_out]
        release, personal = np.mean(np.array(found)[:, honest], axis=(0, 1))
        return Accuracy(float(release), float(personal))

    def _train(
        self, start: Floats, number: int, attack: Attack | None, attackers: frozenset[int]
    ) -> list[Floats]:
        classes = len(self._manifest.schema.classes)
        adapters = []
        for index, device in enumerate(self.devices):
            data = device.training
            if attack is not None and attack.flips_labels and index in attackers:
                data = Labelled(data.features, classes - 1 - data.labels, data.recording, data.start)
            digest = hashlib.sha256(f"{self._seed} {number} {device.name}".encode()).digest()
            random = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
            adapters.append(train(self._engine, start, data, self.policy, random))
        return adapters

    def _close(
        self,
        base: ReleaseRecord,
        trained: Sequence[Floats],
        number: int,
        *,
        aggregation: AggregationPolicy,
        attack: Attack | None,
        attackers: frozenset[int],
    ) -> ReleaseRecord:
        bound = self.policy.clipping_bound * (1 + self.policy.step_ratio / 2)  # as in server/intake.py
        updates = [clip(adapter - base.adapter, self.policy.clipping_bound) for adapter in trained]
        weights = [max(1, len(device.training)) for device in self.devices]
        if attack is not None:
            hostile = sorted(attackers)
            honest = [update for index, update in enumerate(updates) if index not in attackers]
            own = np.array([updates[index] for index in hostile], np.float64)
            random = np.random.Generator(np.random.PCG64([self._seed, number]))
            sent = attack.send(View(np.array(honest, np.float64), own, bound, random))
            for index, vector in zip(hostile, sent, strict=True):
                updates[index] = np.clip(vector, -MAX_VALUE, MAX_VALUE).astype(np.float32)
                if attack.boasts:
                    weights[index] = self.policy.maximum_weight
        names = frozenset(device.name for device in self.devices)
        counting = Counting(
            RoundTerms(number, base.number, base.sha256, names, self.policy),
            Lateness(base.number, StalenessPolicy()),
            self._manifest,
            ServerConfig.release_step_ratio,
            aggregation,
        )
        parts = list(self._manifest.slices().values())
        for device, update, weight in zip(self.devices, updates, weights, strict=True):
            seed = dither_seed("attacked", device.name, number, base.sha256)
            vector = dequantise(quantise(update, parts, seed, self.policy.step_ratio), parts, seed)
            counting.add(Accepted(bound_norm(vector, bound), weight, 0.0, 0.0))
        return counting.release(base, [], float(number))

    def _accuracy(self, device: Participant, adapter: Floats) -> float:
        predicted = self._engine.predict(adapter, device.test_features).argmax(1)
        return 100 * float(np.mean(predicted == device.test_labels))
