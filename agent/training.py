"""Local training of the adapter on cached features."""

import logging

import numpy as np
from numpy.typing import NDArray

from agent import optimizers
from agent.dataset import Labelled
from agent.engine import Engine, Floats
from protocol.messages import TrainingPolicy

log = logging.getLogger(__name__)


def train(
    engine: Engine, adapter: Floats, data: Labelled, policy: TrainingPolicy, random: np.random.Generator
) -> Floats:
    """Train for the policy's epochs and return the new adapter, float32 [parameters].

    Args:
        engine: computes loss and gradient.
        adapter: where to start, float32 [parameters].
        data: labelled windows; none returns `adapter` as it is, and so does training that diverges.
        policy: optimiser, epochs, class balance.
        random: order of the windows.
    """
    start_from, optimizer = adapter, optimizers.make(policy)
    weights = class_weights(data.labels) if policy.balance_classes else np.ones(len(data), np.float32)
    for _ in range(policy.epochs):
        order = random.permutation(len(data))
        for start in range(0, len(order), engine.batch):
            rows = order[start : start + engine.batch]
            _, gradient = engine.loss_and_gradient(
                adapter, data.features[rows], data.labels[rows], weights[rows]
            )
            adapter = optimizer.step(adapter, gradient)
        if not np.isfinite(adapter).all():
            log.warning("training diverged (learning rate %g); the adapter stays", policy.learning_rate)
            return start_from
    return adapter


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
