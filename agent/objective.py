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


SPREAD = 3.0
"""Standard deviation to which logits are brought before adapters are compared."""


def losses(engine: Engine, adapter: Floats, data: Labelled) -> NDArray[np.float64]:
    """Cross-entropy of each window, float64 [n]."""
    return _cross_entropy(engine.predict(adapter, data.features).astype(np.float64), data.labels)


def comparable_losses(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cross-entropy of each window, float64 [n], after logits [n, classes] are brought to one spread.

    How sure an adapter is says more of how long it was trained than of how good it is: a mean of adapters
    is less sure than each, and its plain loss lower where it errs as often. With the same spread of the
    logits, what remains is which class stands out, and by how much of that.
    """
    return _cross_entropy(logits.astype(np.float64) * (SPREAD / spread(logits)), labels)


def spread(logits: NDArray[np.floating]) -> float:
    """Standard deviation of the finite ones among logits [n, classes]; 1 where they do not differ."""
    values = logits[np.isfinite(logits)].astype(np.float64)
    found = float(values.std()) if len(values) else 0.0
    return found if 0 < found < np.inf else 1.0


def _cross_entropy(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    normaliser = np.log(np.exp(shifted).sum(axis=1))
    return np.asarray(normaliser - shifted[np.arange(len(labels)), labels], np.float64)


def mean_loss(engine: Engine, adapter: Floats, data: Labelled) -> float:
    """Cross-entropy averaged over the classes that occur; 0 without data."""
    if not len(data):
        return 0.0
    return float(np.average(losses(engine, adapter, data), weights=class_weights(data.labels)))
