"""A density of normal windows on the frozen features: what it is made of, and how it is learned together.

A window is seen as how far it is from the first windows of its own recording, in their standard deviations.
So what differs between sensors, mountings and runs stays on the device. The density of these deviations is
that of probabilistic PCA (Tipping and Bishop 1999): a few directions in which normal windows vary together,
and the same small variance in all others. No label is needed.

The head, the parameters that devices share, is a matrix Y, float32 [feature_size, rank]. One step of a
device is one step of orthogonal iteration: Y becomes C Q, where C is the device's second moment, of trace 1,
and Q the orthonormal factor of the Y that it started from. C Q is linear in C, and all devices of a round
have the same Q. So the mean of their steps is exactly the step of the mean second moment, and rounds
converge to the directions that the fleet has in common, with quantisation as the noise of the noisy power
method (Hardt and Price 2014, arXiv:1311.2495). The singular values of Y are the shares of variance. No step
is longer than 1, whatever the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.engine import Floats

Doubles = NDArray[np.float64]

SCALE_FLOOR = 0.01
"""Of the mean deviation of all features: a feature that hardly moved in the first windows must not decide."""
VARIANCE_FLOOR = 0.01
"""Least variance outside the directions of the head, where the mean variance is 1."""


def standardise(features: Floats, reference: Floats) -> Doubles:
    """Deviations from the reference windows of the same recording, float64 [n, feature_size].

    Args:
        features: float32 [n, feature_size].
        reference: windows that are taken as normal, float32 [m, feature_size], m of 2 or more.
    """
    normal = reference.astype(np.float64)
    scale = normal.std(axis=0)
    floor = max(SCALE_FLOOR * float(scale.mean()), float(np.finfo(np.float32).tiny))
    return np.asarray((features - normal.mean(axis=0)) / np.sqrt(scale**2 + floor**2), np.float64)


def advance(head: Floats, deviations: Sequence[Doubles]) -> Floats:
    """One step of orthogonal iteration, float32 [feature_size * rank]; without variance the head stays.

    Args:
        head: where to start, float32 [feature_size * rank].
        deviations: of normal windows, by recording, float64 [n, feature_size] each.
    """
    total = sum(float(np.sum(part**2)) for part in deviations)
    if not np.isfinite(total) or total <= 0:
        return head
    directions = _orthonormal(head.astype(np.float64).reshape(deviations[0].shape[1], -1))
    return _flat(np.sum([part.T @ (part @ directions) for part in deviations], axis=0) / total)


@dataclass(frozen=True)
class Density:
    """The density that a head describes; deviations have a mean variance of 1 over all features."""

    directions: Doubles
    """Orthonormal, float64 [feature_size, rank]."""
    variances: Doubles
    """Along them, float64 [rank]."""
    rest: float
    """In every other direction."""

    @classmethod
    def of(cls, head: Floats, feature_size: int) -> "Density":
        """Read a head, float32 [feature_size * rank]; any finite values give a proper density."""
        directions, shares, _ = np.linalg.svd(
            head.astype(np.float64).reshape(feature_size, -1), full_matrices=False
        )
        left = feature_size - len(shares)
        variances = feature_size * np.minimum(shares, 1.0)
        rest = max((feature_size - float(variances.sum())) / max(1, left), VARIANCE_FLOOR)
        return cls(directions, np.maximum(variances, rest), rest)

    def scores(self, deviations: Doubles) -> Doubles:
        """How unusual each window is, float64 [n]: its squared Mahalanobis length per feature."""
        along = deviations @ self.directions
        off = np.maximum(np.sum(deviations**2, axis=1) - np.sum(along**2, axis=1), 0.0)
        return np.asarray(
            (off / self.rest + np.sum(along**2 / self.variances, axis=1)) / deviations.shape[1], np.float64
        )

    def losses(self, deviations: Doubles) -> Doubles:
        """How badly the density explains the direction of each window, float64 [n], in nats per feature.

        The negative logarithm of the angular central Gaussian density (Tyler 1987), up to a constant: how
        far a window is out does not matter, so that the slow drift of a sensor does not decide among heads.
        """
        size, rank = self.directions.shape
        logarithm = float(np.sum(np.log(self.variances))) + (size - rank) * float(np.log(self.rest))
        length = np.mean(deviations**2, axis=1)
        quotient = np.divide(self.scores(deviations), length, out=np.ones_like(length), where=length > 0)
        return np.asarray(0.5 * np.log(quotient) + 0.5 * logarithm / size, np.float64)


def _orthonormal(matrix: Doubles) -> Doubles:
    """The orthonormal matrix nearest to `matrix`.

    Unlike that of a QR decomposition it does not change its columns' signs or order from step to step, so
    updates get small where the fleet has converged.
    """
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray(left @ right, np.float64)


def _flat(matrix: Doubles) -> Floats:
    return np.asarray(matrix.reshape(-1), np.float32)
