"""Optimisers of one flat vector, in numpy.

AdamW after Loshchilov & Hutter 2019 (arXiv:1711.05101); SGD with Polyak momentum.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from agent.engine import Floats
from protocol.messages import TrainingPolicy


class Optimizer(Protocol):
    """Turns gradients into steps; keeps its own state."""

    def step(self, vector: Floats, gradient: Floats) -> Floats:
        """Return the vector after a step down `gradient`; both float32 [parameters]."""


@dataclass
class AdamW:
    """Adam with decoupled weight decay."""

    learning_rate: float
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    _steps: int = 0
    _mean: Floats | None = field(default=None, repr=False)
    _square: Floats | None = field(default=None, repr=False)

    def step(self, vector: Floats, gradient: Floats) -> Floats:
        """Return the vector after a step down `gradient`; both float32 [parameters]."""
        if self._mean is None or self._square is None:
            self._mean, self._square = np.zeros_like(vector), np.zeros_like(vector)
        self._steps += 1
        self._mean = self.beta1 * self._mean + (1 - self.beta1) * gradient
        self._square = self.beta2 * self._square + (1 - self.beta2) * gradient * gradient
        mean = self._mean / (1 - self.beta1**self._steps)
        root = np.sqrt(self._square / (1 - self.beta2**self._steps)) + self.epsilon
        decayed = vector * (1 - self.learning_rate * self.weight_decay)
        return np.asarray(decayed - self.learning_rate * mean / root, np.float32)


@dataclass
class SGD:
    """Stochastic gradient descent with momentum."""

    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    _velocity: Floats | None = field(default=None, repr=False)

    def step(self, vector: Floats, gradient: Floats) -> Floats:
        """Return the vector after a step down `gradient`; both float32 [parameters]."""
        if self._velocity is None:
            self._velocity = np.zeros_like(vector)
        self._velocity = self.momentum * self._velocity + gradient + self.weight_decay * vector
        return np.asarray(vector - self.learning_rate * self._velocity, np.float32)


def make(policy: TrainingPolicy) -> Optimizer:
    """The optimiser that a federation's policy names."""
    if policy.optimizer == "adamw":
        return AdamW(policy.learning_rate, policy.weight_decay)
    return SGD(policy.learning_rate, policy.momentum, policy.weight_decay)
