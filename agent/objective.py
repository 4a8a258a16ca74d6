"""What training lowers and the gate compares: cross-entropy of windows, with classes that count the same."""

import numpy as np
from numpy.typing import NDArray

from agent.dataset import Labelled
from agent.engine import Engine, Floats


def class_weights(labels: NDArray[np.int64]) -> Floats:
    """Weights, float32 [n] with mean 1, under which every class that occurs counts the same."""
    if not len(labels):
        return np.zeros(0, np.float32)
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.asarray(len(labels) / (len(counts) * counts[inverse]), np.float32)


def losses(engine: Engine, adapter: Floats, data: Labelled) -> NDArray[np.float64]:
    """Cross-entropy of each window, float64 [n]."""
    logits = engine.predict(adapter, data.features).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    normaliser = np.log(np.exp(shifted).sum(axis=1))
    return np.asarray(normaliser - shifted[np.arange(len(data)), data.labels], np.float64)


def mean_loss(engine: Engine, adapter: Floats, data: Labelled) -> float:
    """Cross-entropy averaged over the classes that occur; 0 without data."""
    if not len(data):
        return 0.0
    return float(np.average(losses(engine, adapter, data), weights=class_weights(data.labels)))
