"""What hostile devices send instead of their updates, as pure functions.

An attacker knows all honest updates of its round and the bounds: more than a real one would. What it sends
still has to pass the server's intake, which clips its norm.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float64]
"""float64 [updates, parameters]."""


@dataclass(frozen=True)
class View:
    """What the attackers of a round know."""

    honest: Vectors
    """Updates of the honest devices."""
    own: Vectors
    """What the attackers learned, from their own labels or from flipped ones."""
    bound: float
    """Largest L2 norm that the server lets pass."""
    random: np.random.Generator


def sign_flip(view: View) -> Vectors:
    """The opposite of what was learned, three times as long."""
    return -3.0 * view.own


def a_little_is_enough(view: View) -> Vectors:
    """1.5 standard deviations below the mean, in every parameter (Baruch et al. 2019, arXiv:1902.06156)."""
    return _all(view, view.honest.mean(0) - 1.5 * view.honest.std(0))


def inner_product(factor: float) -> Callable[[View], Vectors]:
    """The opposite of the honest mean times `factor` (Xie et al. 2019, arXiv:1903.03936)."""
    return lambda view: _all(view, -factor * view.honest.mean(0))


def noise(view: View) -> Vectors:
    """Random directions, each as long as the server lets pass."""
    drawn = view.random.standard_normal(view.own.shape)
    return np.asarray(drawn * (view.bound / np.linalg.norm(drawn, axis=1, keepdims=True)))


def as_learned(view: View) -> Vectors:
    """What was learned: from flipped labels."""
    return view.own


def scaled(view: View) -> Vectors:
    """What was learned, drawn out to the server's bound, so that it drowns the others."""
    norms = np.maximum(np.linalg.norm(view.own, axis=1, keepdims=True), 1e-12)
    return np.asarray(view.own * (view.bound / norms))


def flipped_and_scaled(view: View) -> Vectors:
    """The opposite of what was learned, drawn out to the server's bound."""
    return -scaled(view)


def _all(view: View, vector: NDArray[np.float64]) -> Vectors:
    return np.tile(vector, (len(view.own), 1))


@dataclass(frozen=True)
class Attack:
    """A way to be hostile."""

    send: Callable[[View], Vectors]
    flips_labels: bool = False
    """The attackers train on class C - 1 - c instead of c."""
    boasts: bool = False
    """They claim the largest weight that the charter allows, not that of their windows."""


ATTACKS: Mapping[str, Attack] = {
    "sign flip x3": Attack(sign_flip),
    "ALIE 1.5": Attack(a_little_is_enough),
    "IPM 0.5": Attack(inner_product(0.5)),
    "IPM 10": Attack(inner_product(10.0)),
    "label flip": Attack(as_learned, flips_labels=True),
    "label flip, scaled": Attack(scaled, flips_labels=True),
    "noise at the bound": Attack(noise),
    "IPM 10, boasting": Attack(inner_product(10.0), boasts=True),
    "sign flip at the bound, boasting": Attack(flipped_and_scaled, boasts=True),
}
