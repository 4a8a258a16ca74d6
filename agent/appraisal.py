"""What a training brought, measured on the windows that it did not see."""

import numpy as np
from numpy.typing import NDArray

from agent.dataset import Labelled
from agent.engine import Engine, Floats
from agent.gate import gains
from agent.measurement import Gain
from agent.objective import class_weights, comparable_losses

EXPECTED = 0.5
"""Standard deviation, in nats, of a window's gain before any is seen; it counts as one window. Two windows
that happen to agree prove nothing."""


def gain(engine: Engine, before: Floats, after: Floats, data: Labelled) -> Gain | None:
    """By how much the loss of an adapter `after` is below that of one `before`; None without windows.

    Args:
        engine: predicts.
        before: float32 [parameters].
        after: float32 [parameters].
        data: held-out windows.
    """
    if not len(data):
        return None
    losses = [
        comparable_losses(engine.predict(adapter, data.features), data.labels) for adapter in (before, after)
    ]
    return weighed(gains(*losses), class_weights(data.labels))


def weighed(found: NDArray[np.float64], weights: Floats) -> Gain:
    """Mean of windows' gains, float64 [n], with weights, float32 [n] with mean 1, and its variance."""
    share = weights.astype(np.float64) / len(found)
    mean = float(share @ found)
    spread = (float(np.square(found - mean).sum()) + EXPECTED**2) / len(found)
    return Gain(mean, spread * float(np.square(share).sum()))
