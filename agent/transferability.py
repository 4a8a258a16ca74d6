"""How well a source would serve a device, estimated where the device's windows are: they stay there.

With a few labels, and without any training: LEEP and the loss of the source's head. Without labels: how sure
the source's head is of the windows, or the distance of features, which needs those of the source, too, or
their mean and covariance: these are for devices that have no label yet, as they cannot see that two devices
give like windows other labels. What each is worth is measured by benchmarks/relatedness.py.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]

_LEAST = 1e-12


def softmax(logits: Matrix) -> Matrix:
    """Probabilities of logits, float64 [n, classes], row by row."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def leep(logits: Matrix, labels: Labels) -> float:
    """Log expected empirical prediction (Nguyen et al. 2020, arXiv:2002.12462): 0 at best, else negative.

    The source's classes may be others than the device's: the labels say what each of them stands for here.

    Args:
        logits: of the source's head on the device's labelled windows, float64 [n, source classes], n > 0.
        labels: the device's, int64 [n], from 0.
    """
    shares = softmax(logits)
    joint = np.zeros((int(labels.max()) + 1, shares.shape[1]))
    np.add.at(joint, labels, shares)
    given = joint / np.maximum(joint.sum(axis=0), _LEAST)
    expected = (given[labels] * shares).sum(axis=1)
    return float(np.log(np.maximum(expected, _LEAST)).mean())


def head_loss(logits: Matrix, labels: Labels) -> float:
    """Cross-entropy of the source's head on the device's labelled windows, classes alike; nats, 0 at best.

    Args:
        logits: float64 [n, classes], n > 0.
        labels: int64 [n], the same classes.
    """
    of_label = softmax(logits)[np.arange(len(labels)), labels]
    losses = -np.log(np.maximum(of_label, _LEAST))
    return float(np.mean([losses[labels == label].mean() for label in np.unique(labels)]))


def unsureness(logits: Matrix) -> float:
    """Mean entropy of the source's head on windows without labels, nats; 0: it is sure of each.

    Args:
        logits: float64 [n, classes], n > 0.
    """
    shares = softmax(logits)
    return float(-(shares * np.log(np.maximum(shares, _LEAST))).sum(axis=1).mean())


def maximum_mean_discrepancy(one: Matrix, other: Matrix) -> float:
    """Squared MMD under a Gaussian kernel (Gretton et al. 2012), 0 for the same windows, 2 at most.

    The kernel's width is the median distance of all pairs of both, as is usual. Time and memory grow with the
    square of the windows: give it a sample.

    Args:
        one: features, float64 [n, size].
        other: features, float64 [m, size].
    """
    both = np.concatenate([one, other])
    squares = (both * both).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares[None] - 2 * both @ both.T, 0)
    np.fill_diagonal(distances, 0)
    width = float(np.median(distances[~np.eye(len(both), dtype=bool)]))
    round_off = 1e-6 * float(squares.max()) + _LEAST  # of distances that are differences of squares
    kernel = np.exp(-distances / max(width, round_off))
    first = len(one)
    within = kernel[:first, :first].mean() + kernel[first:, first:].mean()
    return max(0.0, float(within - 2 * kernel[:first, first:].mean()))


@dataclass(frozen=True)
class Gaussian:
    """All that a Fréchet distance needs of a device's windows."""

    mean: Matrix
    """float64 [size]."""
    covariance: Matrix
    """float64 [size, size]; or float64 [size]: variances alone."""


def gaussian(features: Matrix, *, diagonal: bool = False) -> Gaussian:
    """Mean and covariance of features, float64 [n, size], n > 0.

    Args:
        features: of the device's windows.
        diagonal: variances alone: 2 x size numbers, and not more of the windows than that.
    """
    mean = features.mean(axis=0)
    centred = features - mean
    if diagonal:
        return Gaussian(mean, (centred * centred).mean(axis=0))
    return Gaussian(mean, centred.T @ centred / len(features))


def frechet(one: Gaussian, other: Gaussian) -> float:
    """Squared Fréchet distance of two Gaussians (Dowson & Landau 1982), 0 where they are the same.

    Both are whole, or both are diagonal.
    """
    apart = one.mean - other.mean
    if one.covariance.ndim == 1:
        spread = np.sqrt(one.covariance) - np.sqrt(other.covariance)
        return float(apart @ apart + spread @ spread)
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # tr((AB)^1/2) is that of the symmetric A^1/2 B A^1/2, which has real roots whatever the round-off.
    common = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other.covariance @ root), 0)).sum()
    traces = float(np.trace(one.covariance) + np.trace(other.covariance))
    return max(0.0, float(apart @ apart) + traces - 2 * float(common))
