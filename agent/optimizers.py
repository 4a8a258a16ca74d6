"""Optimisers of one flat vector, in numpy, that can be stopped and gone on with.

AdamW after Loshchilov & Hutter 2019 (arXiv:1711.05101); SGD with Polyak momentum. A rate is one number or
one per parameter, so that segments learn at rates of their own; where it is 0 nothing moves. The arithmetic
reuses its buffers: on small adapters most of the time would go into making arrays.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agent.engine import Floats
from protocol.charter import TrainingPolicy

Rate = float | Floats
"""One learning rate, or float32 [parameters]."""


class Optimizer(Protocol):
    """Turns gradients into steps; keeps its own state."""

    def step(self, vector: Floats, gradient: Floats) -> Floats:
        """Return the vector after a step down `gradient`; both float32 [parameters]."""

    def state(self) -> dict[str, NDArray[np.generic]]:
        """What `restore` needs to go on from here; copies."""

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a state."""


@dataclass
class AdamW:
    """Adam with decoupled weight decay."""

    learning_rate: Rate
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    _steps: int = 0
    _mean: Floats = field(default_factory=lambda: np.zeros(0, np.float32), repr=False)
    _square: Floats = field(default_factory=lambda: np.zeros(0, np.float32), repr=False)
    _scratch: Floats = field(default_factory=lambda: np.zeros(0, np.float32), repr=False)

    def step(self, vector: Floats, gradient: Floats) -> Floats:
        """Return the vector after a step down `gradient`; both float32 [parameters]."""
        if len(self._scratch) != len(vector):
            self._scratch = np.empty_like(vector)
        if not self._steps:
            self._mean, self._square = np.zeros_like(vector), np.zeros_like(vector)
        self._steps += 1
        mean, square, scratch = self._mean, self._square, self._scratch
        mean *= self.beta1
        mean += np.multiply(gradient, 1 - self.beta1, out=scratch)
        square *= self.beta2
        np.multiply(gradient, gradient, out=scratch)
        scratch *= 1 - self.beta2
        square += scratch
        np.sqrt(square, out=scratch)
        # Both corrections of the start in one factor each: mean / (1 - beta1^n), root / sqrt(1 - beta2^n).
        scratch *= (1 - self.beta2**self._steps) ** -0.5
        scratch += self.epsilon
        np.divide(mean, scratch, out=scratch)
        scratch *= self.learning_rate / (1 - self.beta1**self._steps)
        if self.weight_decay:
            scratch += vector * (self.learning_rate * self.weight_decay)
        return vector - scratch

    def state(self) -> dict[str, NDArray[np.generic]]:
        """What `restore` needs to go on from here; copies."""
        return {
            "steps": np.array(self._steps),
            "mean": self._mean.copy(),
            "square": self._square.copy(),
        }

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a state."""
        self._steps = int(state["steps"])
        self._mean, self._square = (np.array(state[name], np.float32) for name in ("mean", "square"))


@dataclass
class SGD:
    """Stochastic gradient descent with momentum."""

    learning_rate: Rate
    momentum: float = 0.0
    weight_decay: float = 0.0
    _velocity: Floats = field(default_factory=lambda: np.zeros(0, np.float32), repr=False)

    def step(self, vector: Floats, gradient: Floats) -> Floats:
        """Return the vector after a step down `gradient`; both float32 [parameters]."""
        if len(self._velocity) != len(vector):
            self._velocity = np.zeros_like(vector)
        self._velocity *= self.momentum
        self._velocity += gradient
        if self.weight_decay:
            self._velocity += self.weight_decay * vector
        return vector - self.learning_rate * self._velocity

    def state(self) -> dict[str, NDArray[np.generic]]:
        """What `restore` needs to go on from here; copies."""
        return {"velocity": self._velocity.copy()}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a state."""
        self._velocity = np.array(state["velocity"], np.float32)


def make(policy: TrainingPolicy, learning_rate: Rate | None = None) -> Optimizer:
    """The optimiser that a federation's policy names.

    Args:
        policy: names it.
        learning_rate: instead of the policy's.
    """
    rate: Rate = policy.learning_rate if learning_rate is None else learning_rate
    if policy.optimizer == "adamw":
        return AdamW(rate, policy.weight_decay)
    return SGD(rate, policy.momentum, policy.weight_decay)
