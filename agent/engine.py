"""What every training engine offers: features of the frozen part, loss and gradient of the adapter.

The graphs have a fixed batch; `batched` pads the last one. Weights of 0 make padding rows count nothing, so a
short batch has exactly the loss and gradient of its own rows.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agent.errors import EngineError

Floats = NDArray[np.float32]


class Engine(Protocol):
    """A model package, ready to train."""

    batch: int
    """Rows that the graphs take."""
    feature_size: int
    parameters: int
    classes: int

    def features(self, windows: Floats) -> Floats:
        """Run the frozen part: float32 [n, channels, length] -> float32 [n, feature_size]."""

    def loss_and_gradient(
        self, adapter: Floats, features: Floats, labels: NDArray[np.int64], weights: Floats
    ) -> tuple[float, Floats]:
        """Weighted mean cross-entropy over at most `batch` rows, and its gradient float32 [parameters]."""

    def predict(self, adapter: Floats, features: Floats) -> Floats:
        """Logits float32 [n, classes] of any number of rows."""


def batched(array: NDArray[np.generic], batch: int) -> Iterator[tuple[NDArray[np.generic], int]]:
    """Cut an array into batches of exactly `batch` rows, the last one padded with zeros; (batch, rows)."""
    for start in range(0, len(array), batch):
        rows = array[start : start + batch]
        yield pad(rows, batch), len(rows)


def pad(rows: NDArray[np.generic], batch: int) -> NDArray[np.generic]:
    """Pad with zero rows up to `batch` rows.

    Raises:
        EngineError: more rows than that.
    """
    if len(rows) > batch:
        raise EngineError(f"expected at most {batch} rows, got {len(rows)}")
    if len(rows) == batch:
        return rows
    padded = np.zeros((batch, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return padded
