"""The batches of one epoch: every window once, beside draws from the replay buffer.

A rare fault that was seen last year must not be forgotten because this month brought none: a share of
every batch is drawn from what the replay buffer keeps, each class as often as any other (experience replay,
Rolnick et al. 2019, arXiv:1811.11682).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.dataset import Labelled
from agent.engine import Floats
from agent.objective import class_weights


@dataclass(frozen=True)
class Pool:
    """Windows to train on: the current ones first, then the replayed ones."""

    features: Floats
    """float32 [n, feature_size]."""
    labels: NDArray[np.int64]
    """int64 [n]."""
    weights: Floats
    """float32 [n]."""
    current: int
    """How many of them are current."""

    @classmethod
    def of(cls, current: Labelled, replay: Labelled | None, *, balance: bool) -> "Pool":
        """Put windows together; replayed ones are drawn in balance, so they need no weights."""
        weights = class_weights(current.labels) if balance else np.ones(len(current), np.float32)
        if replay is None or not len(replay):
            return cls(current.features, current.labels, weights, len(current))
        return cls(
            np.concatenate([current.features, replay.features]),
            np.concatenate([current.labels, replay.labels]),
            np.concatenate([weights, np.ones(len(replay), np.float32)]),
            len(current),
        )


@dataclass(frozen=True)
class Epoch:
    """Full batches: rows that only fill the last one weigh 0."""

    rows: NDArray[np.int64]
    """int64 [batches, batch], indices into the pool."""
    weights: Floats
    """float32 [batches, batch]."""


def draw(pool: Pool, batch: int, replay_share: float, random: np.random.Generator) -> Epoch:
    """Draw the batches of an epoch.

    Args:
        pool: at least one current window.
        batch: rows per batch.
        replay_share: of each batch, where there is something to replay.
        random: order of the windows, and what is replayed.
    """
    replayed = len(pool.labels) - pool.current
    # At least one row stays for what is new.
    fresh = batch - min(batch - 1, int(batch * replay_share)) if replayed else batch
    batches = -(-pool.current // fresh)
    order = np.zeros(batches * fresh, np.int64)
    order[: pool.current] = random.permutation(pool.current)
    filled = np.arange(batches * fresh) < pool.current
    rows = order.reshape(batches, fresh)
    weights = np.where(filled, pool.weights[order], 0).astype(np.float32).reshape(batches, fresh)
    if fresh < batch:
        drawn = pool.current + _balanced(pool.labels[pool.current :], batches * (batch - fresh), random)
        rows = np.concatenate([rows, drawn.reshape(batches, -1)], axis=1)
        weights = np.concatenate([weights, pool.weights[drawn].reshape(batches, -1)], axis=1)
    return Epoch(rows, weights)


def _balanced(labels: NDArray[np.int64], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw `count` indices, int64, each class that occurs as often as any other."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    chosen = random.integers(len(starts), size=count)
    return np.asarray(order[starts[chosen] + random.integers(counts[chosen])], np.int64)
