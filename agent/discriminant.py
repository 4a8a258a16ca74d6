"""Telling classes apart by a handful of labels, with what the fleet knows of how windows scatter.

Two-covariance PLDA (Ioffe 2006; Kenny 2010) on a frozen embedding. A device's own labels place its classes:
the mean of a class is that of its windows, pulled towards where the fleet expects it: at the fleet's mean of
the class, moved by what moves all classes of this device. How far it is pulled, and how windows scatter about
the means, comes from the head (protocol/discriminant.py), which a whole fleet has learned: 5 windows per
class cannot tell which of 128 directions carry noise. All is closed form, in milliseconds. Messages, the gate
and the adapters of the graphs are not handled here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.engine import Floats
from protocol.discriminant import LARGEST_BETWEEN, Doubles, Statistics

Labels = NDArray[np.int64]

SHRINKAGE = 0.05
"""Share of the fleet's correlations that is given up: directions in which few windows were seen to vary must
not decide (Schäfer and Strimmer 2005)."""
VARIANCE_FLOOR = 1e-3
"""Least variance of a dimension, relative to the mean of all."""
BETWEEN_FLOOR = 0.02
"""Least variance of devices' means: no fleet agrees wholly."""
FRESH_ROUNDS = 4
"""Releases in which a head takes shape: every device contributes, and their mean is one of all rounds."""
REFRESH = 10
"""Later on, devices contribute to each release whose number is a multiple of this."""
LONGEST_STEP = 1.0
"""L2 norm of a step at most, whatever the data."""
LARGEST_VALUE = 1e9
"""Of an embedded window. One that is farther off, or no number, would leave nothing of the others."""


@dataclass(frozen=True)
class Discriminant:
    """A classifier of one device, ready to predict."""

    whitening: Doubles
    """Brings the scatter of windows to one in all directions, float64 [dimension, dimension]."""
    means: Doubles
    """Whitened, float64 [classes, dimension]."""
    variances: Doubles
    """Of a new window about its class's mean, float64 [classes]."""

    def logits(self, embedded: Floats) -> Doubles:
        """Log-likelihood of each class, less its mean over classes, float64 [n, classes].

        Args:
            embedded: windows, float32 [n, dimension].
        """
        found = self.densities(embedded)
        return np.asarray(found - found.mean(axis=1, keepdims=True), np.float64)

    def densities(self, embedded: Floats) -> Doubles:
        """Logarithm of the density of each class, up to a constant, float64 [n, classes]; not centred."""
        whitened = embedded.astype(np.float64) @ self.whitening
        squares = ((whitened[:, None] - self.means) ** 2).sum(axis=2)
        found = -0.5 * (squares / self.variances + self.means.shape[1] * np.log(self.variances))
        return np.asarray(found, np.float64)

    def vector(self) -> Floats:
        """The classifier, for the store, float32 [dimension**2 + classes * (dimension + 1)]."""
        parts = [self.whitening.reshape(-1), self.means.reshape(-1), self.variances]
        return np.asarray(np.concatenate(parts), np.float32)

    @classmethod
    def of(cls, vector: Floats, classes: int) -> "Discriminant":
        """Read what `vector` wrote.

        Raises:
            ValueError: it has another size.
        """
        values = vector.astype(np.float64)
        root = np.sqrt(classes * classes + 4.0 * max(0, len(values) - classes))
        dimension = int((root - classes) / 2 + 0.5)
        if dimension < 1 or dimension * dimension + classes * (dimension + 1) != len(values):
            raise ValueError(f"expected a classifier of {classes} classes, got {len(values)} values")
        end = dimension * dimension
        means = values[end : end + classes * dimension].reshape(classes, dimension)
        return cls(values[:end].reshape(dimension, dimension), means, values[-classes:])


def fit(statistics: Statistics, embedded: Floats, labels: Labels) -> Discriminant:
    """A device's classifier, from what the fleet knows and its own labelled windows.

    A class that the device has never seen is expected about the fleet's mean, as far as devices differ.

    Args:
        statistics: of the fleet.
        embedded: labelled windows, float32 [n, dimension].
        labels: int64 [n].
    """
    embedded, labels = _usable(embedded, labels)
    whitening = _whitening(statistics.within)
    own = max(float(statistics.between.mean()) - statistics.shared, BETWEEN_FLOOR)
    sums = np.zeros_like(statistics.means)
    np.add.at(sums, labels, embedded.astype(np.float64) @ whitening)
    counts = np.bincount(labels, minlength=len(sums)).astype(np.float64)
    expected = statistics.means @ whitening
    expected = expected + _offset(expected, sums, counts, own, statistics.shared)
    # A Gaussian prior of variance `own` about what is expected, and `counts` windows of variance 1.
    precision = 1 / own + counts
    means = (expected / own + sums) / precision[:, None]
    return Discriminant(whitening, means, 1 + 1 / precision)


def log_likelihoods(statistics: Statistics, embedded: Floats) -> Doubles:
    """Of windows of an unknown device and unknown classes, nats, float64 [m]; broken windows are left out.

    Each class is as likely as any other.

    Args:
        statistics: of the fleet, or of a domain.
        embedded: float32 [n, dimension].
    """
    embedded, _ = _usable(embedded, np.zeros(len(embedded), np.int64))
    found = fit(statistics, embedded[:0], np.zeros(0, np.int64))
    densities = found.densities(embedded)
    largest = densities.max(axis=1)
    together = largest + np.log(np.exp(densities - largest[:, None]).mean(axis=1))
    return np.asarray(together + np.linalg.slogdet(found.whitening)[1], np.float64)


def advance(head: Floats, embedded: Floats, labels: Labels, release: int) -> Floats:
    """A head after a device's step, float32 [parameters]: towards the statistics of its own windows.

    The first rounds of a package are averaged, so that coding and chance fade; later ones follow slowly.

    Args:
        head: of the release, float32 [parameters].
        embedded: labelled windows, float32 [n, dimension].
        labels: int64 [n]; without any the head stays.
        release: number of the release; between the first rounds and the next refreshing nothing is said.
    """
    embedded, labels = _usable(embedded, labels)
    statistics = Statistics.of(head, embedded.shape[1])
    rounds = round(statistics.rounds)
    if not len(labels) or (rounds >= FRESH_ROUNDS and release % REFRESH):
        return head
    target = _own(statistics, embedded.astype(np.float64), labels)
    rate = 1 / (1 + min(rounds, FRESH_ROUNDS - 1))
    # The count of rounds goes on by one whole, whatever the rate.
    step = rate * (target.head().astype(np.float64) - head)
    step[-1] = 1 / embedded.shape[1]
    length = float(np.linalg.norm(step))
    if not np.isfinite(length):
        return head
    return np.asarray(head + step * min(1.0, LONGEST_STEP / length), np.float32)


def _usable(embedded: Floats, labels: Labels) -> tuple[Floats, Labels]:
    """Labelled windows without those that are broken."""
    usable = (np.abs(embedded) <= LARGEST_VALUE).all(axis=1)  # also false for NaN
    return embedded[usable], labels[usable]


def _own(statistics: Statistics, embedded: Doubles, labels: Labels) -> Statistics:
    """Statistics of a device's own windows; the fleet's where it has none to offer."""
    whitening = _whitening(statistics.within)
    means, between = statistics.means.copy(), statistics.between.copy()
    scatter, freedom = np.zeros_like(statistics.within), 0
    apart: dict[int, Doubles] = {}
    for label in np.unique(labels).tolist():
        windows = embedded[labels == label]
        means[label] = windows.mean(axis=0)
        deviations = windows - means[label]
        scatter += deviations.T @ deviations
        freedom += len(windows) - 1
        apart[label] = (means[label] - statistics.means[label]) @ whitening
        # The device's mean is itself off by the windows' scatter, of variance 1 / windows.
        between[label] = np.clip(np.mean(apart[label] ** 2) - 1 / len(windows), 0.0, LARGEST_BETWEEN)
    within = scatter / freedom if freedom else statistics.within
    return Statistics(within, means, between, _shared(apart, statistics.shared), statistics.rounds)


def _offset(expected: Doubles, sums: Doubles, counts: Doubles, own: float, shared: float) -> Doubles:
    """By what all classes of the device are moved, whitened, float64 [dimension]: its posterior mean.

    Args:
        expected: the fleet's means, whitened, float64 [classes, dimension].
        sums: of the windows of each class, whitened, float64 [classes, dimension].
        counts: windows of each class, float64 [classes].
        own: variance of a class's mean about what is expected.
        shared: variance of the offset.
    """
    seen = counts > 0
    if not shared or not seen.any():
        return np.zeros(expected.shape[1])
    apart = sums[seen] / counts[seen, None] - expected[seen]
    precision = 1 / (own + 1 / counts[seen])
    return np.asarray(precision @ apart / (1 / shared + precision.sum()))


def _shared(apart: Mapping[int, Doubles], held: float) -> float:
    """Mean product of how far two classes of a device are off: what they have in common, without noise."""
    if len(apart) < 2:
        return held
    rows = np.stack(list(apart.values()))
    together, alone = float((rows.sum(axis=0) ** 2).mean()), float((rows**2).mean(axis=1).sum())
    return float(
        np.clip((together - alone) / (len(rows) * (len(rows) - 1)), -LARGEST_BETWEEN, LARGEST_BETWEEN)
    )


def _whitening(within: Doubles) -> Doubles:
    """A matrix that brings a covariance, shrunk towards its diagonal, to the identity.

    The mean of devices' coded steps need not be a covariance: what is negative counts as nothing.
    """
    variances = np.diag(within)
    floor = VARIANCE_FLOOR * max(float(variances.mean()), float(np.finfo(np.float32).tiny))
    deviations = np.sqrt(np.maximum(variances, floor))
    values, vectors = np.linalg.eigh(within / np.outer(deviations, deviations))
    shrunk = (1 - SHRINKAGE) * np.maximum(values, 0) + SHRINKAGE
    return np.asarray(vectors / np.sqrt(shrunk) / deviations[:, None], np.float64)
