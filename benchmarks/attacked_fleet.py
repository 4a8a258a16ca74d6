"""A fleet under attack: rounds of real training on real recordings, without messages in between.

Training, quantisation, norm bound, rule, optimiser and coded releases are the agent's and the server's own
code. Left out is what changes no figure here: signing, the broker, the journal and the gate. So a round of 38
devices takes less than a second.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent import classifiers
from agent.dataset import Labelled
from agent.ensemble import FULL, together
from agent.training import train
from agent.update import clip
from benchmarks.adversaries import Attack, View
from benchmarks.laboratory import Laboratory
from protocol.charter import StalenessPolicy
from protocol.package import DISCRIMINANT
from protocol.quantisation import MAX_VALUE, dequantise, dither_seed, quantise
from protocol.release_coding import adapter_sha256
from server.aggregation import bound_norm
from server.config import ServerConfig
from server.counting import Counting
from server.intake import Accepted, Lateness, RoundTerms, largest_norm
from server.ledger_records import ReleaseRecord
from server.rules.policy import AggregationPolicy

Floats = NDArray[np.float32]
LAST = 3
"""Releases that the accuracy is averaged over."""


@dataclass(frozen=True)
class Accuracy:
    """Mean over the honest devices and the last releases, in per cent."""

    release: float
    """Of the release as it is."""
    personal: float
    """Of the adapters that the devices trained from it."""
    classifier: float = 0.0
    """Of the devices' classifiers with its discriminant head; 0 where the package has none."""


class AttackedFleet:
    """The devices of a laboratory, for any number of federations."""

    def __init__(self, lab: Laboratory) -> None:
        """Take a laboratory's devices and seed."""
        self._lab = lab
        self._parts = list(lab.manifest.slices().values())
        self._discriminates = bool(lab.engine.embedding_size)

    def attackers(self, share: float) -> frozenset[int]:
        """Which devices are hostile, the same for every rule and attack; at least one."""
        count = max(1, round(share * len(self._lab.devices)))
        random = np.random.Generator(np.random.PCG64(self._lab.seed))
        return frozenset(int(index) for index in random.permutation(len(self._lab.devices))[:count])

    def run(
        self,
        aggregation: AggregationPolicy,
        rounds: int,
        *,
        attack: Attack | None = None,
        attackers: frozenset[int] = frozenset(),
    ) -> list[NDArray[np.float64]]:
        """Run a federation.

        Args:
            aggregation: rule and server optimiser.
            rounds: of the federation.
            attack: what the attackers do; None: they are honest.
            attackers: indices of the hostile devices.

        Returns:
            After each of the last releases, accuracy in per cent of each device, float64 [devices, 3]: of the
            release, of the adapter trained from it, and of the classifier that its head gives (or zeros).
        """
        release = ReleaseRecord(
            0,
            1,
            None,
            b"",
            adapter_sha256(self._lab.initial),
            self._lab.initial,
            0.0,
            updates=0,
            weight=0,
            metrics={},
        )
        found = []
        for number in range(1, rounds + 2):
            trained = self._train(release.adapter, number, attack, attackers)
            if number > rounds + 1 - LAST:
                of_trained = self._lab.accuracy(dict(zip(self._lab.devices, trained, strict=True)))
                tested = (self._lab.accuracy(release.adapter), of_trained, self._classified(release.adapter))
                found.append(100 * np.stack(tested, axis=1))
            if number <= rounds:
                release = self._close(
                    release, trained, number, aggregation=aggregation, attack=attack, attackers=attackers
                )
        return found

    def mean(self, found: list[NDArray[np.float64]], left_out: frozenset[int]) -> Accuracy:
        """Average over releases and over the devices that are not left out."""
        honest = [index for index in range(len(self._lab.devices)) if index not in left_out]
        return Accuracy(*np.mean(np.array(found)[:, honest], axis=(0, 1)).tolist())

    def _classified(self, release: Floats) -> NDArray[np.float64]:
        """Accuracy of each device's classifier, 0 to 1, float64 [devices]."""
        if not self._discriminates:
            return np.zeros(len(self._lab.devices))
        names = [DISCRIMINANT + FULL]
        made = {
            name: classifiers.of_release(
                self._lab.engine, self._lab.manifest, release, bench.training, bench.labelled
            )
            for name, bench in self._lab.devices.items()
        }
        return self._lab.accuracy({name: together(names, found, {}) for name, found in made.items()})

    def _train(
        self, start: Floats, number: int, attack: Attack | None, attackers: frozenset[int]
    ) -> list[Floats]:
        classes = len(self._lab.manifest.schema.classes)
        adapters = []
        for index, (name, bench) in enumerate(self._lab.devices.items()):
            data = bench.training
            if attack is not None and attack.flips_labels and index in attackers:
                data = Labelled(data.features, classes - 1 - data.labels, data.recording, data.start)
            digest = hashlib.sha256(f"{self._lab.seed} {number} {name}".encode()).digest()
            random = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
            own = start
            if self._discriminates:
                own = classifiers.with_step(self._lab.engine, self._lab.manifest, start, data, number - 1)
            adapters.append(train(self._lab.engine, own, data, self._lab.policy, random))
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
        policy = self._lab.policy
        bound = largest_norm(policy)
        updates = [clip(adapter - base.adapter, policy.clipping_bound) for adapter in trained]
        weights = [max(1, len(bench.training)) for bench in self._lab.devices.values()]
        if attack is not None:
            hostile = sorted(attackers)
            honest = [update for index, update in enumerate(updates) if index not in attackers]
            own = np.array([updates[index] for index in hostile], np.float64)
            random = np.random.Generator(np.random.PCG64([self._lab.seed, number]))
            sent = attack.send(View(np.array(honest, np.float64), own, bound, random))
            for index, vector in zip(hostile, sent, strict=True):
                updates[index] = np.clip(vector, -MAX_VALUE, MAX_VALUE).astype(np.float32)
                if attack.boasts:
                    weights[index] = policy.maximum_weight
        counting = Counting(
            RoundTerms(number, base.number, base.sha256, frozenset(self._lab.devices), policy),
            Lateness(base.number, StalenessPolicy()),
            self._lab.manifest,
            ServerConfig.release_step_ratio,
            aggregation,
        )
        for name, update, weight in zip(self._lab.devices, updates, weights, strict=True):
            seed = dither_seed("attacked", name, number, base.sha256)
            quantised = quantise(update, self._parts, seed, self._lab.manifest.step_ratios(policy.step_ratio))
            vector = dequantise(quantised, self._parts, seed)
            counting.add(name, Accepted(bound_norm(vector, bound), weight, 0.0, 0.0))
        return counting.release(base, [], float(number))
