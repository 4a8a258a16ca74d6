"""ByzFL's counterparts of our rules and attacks: where definitions differ, and how near both must come.

ByzFL computes in float64, our rules in integers of 2**-30. Updates are given on that grid, and with equal
weights, since ByzFL knows none:

* mean, trimmed mean, median: the same definitions.
* bounded mean: no such rule; ByzFL's clipping before its average, at the norm that is the round's median.
* geometric median: the same algorithm from another start. It moves with its input, so ByzFL gets the updates
  less their mean, and starts from our start.
* centered clipping: the same at a fixed radius. The radius that follows the round has no counterpart.
* multi-Krum: ByzFL scores an update by its n - f - 1 nearest, Blanchard et al. and we by n - f - 2. Compared
  is our code with ByzFL's count; what difference the definition makes is reported apart.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.adversaries import ATTACKS, Vectors, View
from protocol.quantisation import FRACTION_BITS, to_float
from server import rules
from server.rules.krum import MultiKrum
from server.rules.policy import AggregationPolicy
from server.rules.rule import Rule

Vector = NDArray[np.float64]
Steps = list[tuple[str, dict[str, Any]]]
"""Classes of ByzFL with arguments, each applied to what the one before gave."""

UNIT = 2.0**-FRACTION_BITS
_SCALE = 2.0**-16
"""What a clipping factor of ours is rounded down to."""
_SHARE = 2.0**-24
"""What a share and a length of ours are rounded down to."""
NO_COUNTERPART = (
    'the radius of "centered_clipping" that follows the round',
    "weights, and their bound by the median weight",
    "the attacks by label flip, at the bound, and boasting",
)


class ByzflKrum(MultiKrum):
    """Our rule with ByzFL's count of neighbours."""

    def _score(self, index: int, neighbours: int) -> int:
        return super()._score(index, neighbours + 1)


@dataclass(frozen=True)
class Counterpart:
    """A rule of ours and the same in ByzFL."""

    rule: str
    steps: Callable[[Vectors, AggregationPolicy], Steps]
    bound: Callable[[Vectors, Vector, AggregationPolicy], float]
    """Largest L2 difference that rounding explains, of the updates and ByzFL's aggregate."""
    policy: Callable[[Vectors], AggregationPolicy]
    kind: Callable[[int, AggregationPolicy], Rule] = lambda parameters, policy: rules.make(policy, parameters)
    centred: bool = False
    """ByzFL gets the updates less their mean."""

    def ours(self, table: Vectors, policy: AggregationPolicy | None = None) -> Vector:
        """Our aggregate, float64 [parameters].

        Args:
            table: updates, multiples of 2**-30.
            policy: in the place of the counterpart's own.
        """
        rule = self.kind(table.shape[1], policy or self.policy(table))
        for update in np.rint(np.ldexp(table, FRACTION_BITS)).astype(np.int64):
            rule.add(update, 1)
        return to_float(rule.mean())

    def shift(self, table: Vectors) -> Vector:
        """What is taken off the updates for ByzFL, and added to its aggregate."""
        return np.asarray(table.mean(0) if self.centred else np.zeros(table.shape[1]))


def median_norm(table: Vectors) -> float:
    """The middle norm, of an even number the lower; rounded down to 2**-24, as our lengths are."""
    return float(np.floor(np.sort(np.linalg.norm(table, axis=1))[(len(table) - 1) // 2] / _SHARE) * _SHARE)


def _default(rule: str) -> Callable[[Vectors], AggregationPolicy]:
    return lambda _: AggregationPolicy(rule=rule)


def _hostile(table: Vectors, policy: AggregationPolicy) -> int:
    return int(policy.assumed_attackers * len(table))


def _rounded(table: Vectors, _theirs: Vector, _policy: AggregationPolicy) -> float:
    """Of a quotient rounded down, less than a unit in each parameter; the rest is float64's own."""
    return float(np.sqrt(table.shape[1])) * UNIT + 1e-14 * float(np.abs(table).sum(0).max())


def _clipped(table: Vectors, theirs: Vector, policy: AggregationPolicy) -> float:
    """In each step less than 2**-16 of each distance. A step is nonexpansive, so steps add up."""
    iterations = 1 if policy.rule == "bounded_mean" else policy.iterations
    distances = np.linalg.norm(table, axis=1) + np.linalg.norm(theirs)
    return float(iterations * ((_SCALE + _SHARE) * distances.mean() + 2 * np.sqrt(table.shape[1]) * UNIT))


def _weighed(table: Vectors, theirs: Vector, policy: AggregationPolicy) -> float:
    """In each step 2**-24 of each distance, for the share; and as much for the length it is made of."""
    distances = np.linalg.norm(table - theirs, axis=1)
    return float(policy.iterations * (2 * _SHARE * distances.sum() + np.sqrt(table.shape[1]) * UNIT))


COUNTERPARTS: Mapping[str, Counterpart] = {
    made.rule: made
    for made in (
        Counterpart("mean", lambda *_: [("Average", {})], _rounded, _default("mean")),
        Counterpart(
            "bounded_mean",
            lambda table, _: [("Clipping", {"c": median_norm(table)}), ("Average", {})],
            _clipped,
            _default("bounded_mean"),
        ),
        Counterpart(
            "trimmed_mean",
            lambda table, policy: [("TrMean", {"f": _hostile(table, policy)})],
            _rounded,
            _default("trimmed_mean"),
        ),
        Counterpart("median", lambda *_: [("Median", {})], _rounded, _default("median")),
        Counterpart(
            "geometric_median",
            lambda _, policy: [("GeometricMedian", {"nu": 1e-6, "T": policy.iterations})],
            _weighed,
            _default("geometric_median"),
            centred=True,
        ),
        Counterpart(
            "centered_clipping",
            lambda table, policy: [("CenteredClipping", {"L": policy.iterations, "tau": median_norm(table)})],
            _clipped,
            lambda table: AggregationPolicy(rule="centered_clipping", clipping_radius=median_norm(table)),
        ),
        Counterpart(
            "multi_krum",
            lambda table, policy: [("MultiKrum", {"f": _hostile(table, policy)})],
            _rounded,
            _default("multi_krum"),
            kind=ByzflKrum,
        ),
    )
}


@dataclass(frozen=True)
class AttackCounterpart:
    """An attack of ours and the same in ByzFL, from the honest updates."""

    steps: Callable[[Vectors], Steps]
    factor: float = 1.0
    """What ByzFL's is multiplied by."""


ATTACK_COUNTERPARTS: Mapping[str, AttackCounterpart] = {
    # Of an attacker that learned the mean of the others: ByzFL's knows nothing of its own.
    "sign flip x3": AttackCounterpart(lambda _: [("SignFlipping", {})], 3.0),
    # Theirs goes up unless tau is negative, and divides by n - 1 for the deviation.
    "ALIE 1.5": AttackCounterpart(
        lambda honest: [("ALittleIsEnough", {"tau": -1.5 * float(np.sqrt(1 - 1 / len(honest)))})]
    ),
    "IPM 0.5": AttackCounterpart(lambda _: [("InnerProductManipulation", {"tau": 0.5})]),
    "IPM 10": AttackCounterpart(lambda _: [("InnerProductManipulation", {"tau": 10.0})]),
}


def our_attack(name: str, honest: Vectors, bound: float, random: np.random.Generator) -> Vector:
    """What one attacker of ours sends that learned the mean of the honest updates, float64 [parameters]."""
    view = View(honest, honest.mean(0, keepdims=True), bound, random)
    return np.asarray(ATTACKS[name].send(view)[0])
