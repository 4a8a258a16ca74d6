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

from agent.dataset import Labelled
from agent.training import train
from agent.update import clip
from benchmarks.adversaries import Attack, View
from benchmarks.laboratory import Laboratory
from protocol.charter import StalenessPolicy
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


class AttackedFleet:
    """The devices of a laboratory, for any number of federations."""

    def __init__(self, lab: Laboratory) -> None:
        """Take a laboratory's devices and seed."""
        self._lab = lab
        self._parts = list(lab.manifest.slices().values())

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
                of_release = 100 * self._lab.accuracy(release.adapter)
                of_trained = 100 * self._lab.accuracy(dict(zip(self._lab.devices, trained, strict=True)))
                found.append(list(zip(of_release, of_trained, strict=True)))
            if number <= rounds:
                release = self._close(
                    release, trained, number, aggregation=aggregation, attack=attack, attackers=attackers
                )
        return found

    def mean(self, found: list[list[tuple[float, float]]], left_out: frozenset[int]) -> Accuracy:
        """Average over releases and over the devices that are not left out."""
        honest = [index for index in range(len(self._lab.devices)) if index not in left_out]
        release, personal = np.mean(np.array(found)[:, honest], axis=(0, 1))
        return Accuracy(float(release), float(personal))

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
            adapters.append(train(self._lab.engine, start, data, self._lab.policy, random))
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
            quantised = quantise(update, self._parts, seed, policy.step_ratio)
            vector = dequantise(quantised, self._parts, seed)
            counting.add(name, Accepted(bound_norm(vector, bound), weight, 0.0, 0.0))
        return counting.release(base, [], float(number))
