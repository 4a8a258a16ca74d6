"""Local training of the adapter on cached features, one batch at a time.

A training can be left after any batch, written down and gone on with: what comes out is the same, to the bit,
as without the break. When to work and when to rest is decided elsewhere.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent import batches, optimizers
from agent.dataset import Labelled
from agent.engine import Engine, Floats
from agent.objective import mean_loss
from protocol.charter import TrainingPolicy

log = logging.getLogger(__name__)

Arrays = dict[str, NDArray[np.generic]]


class Training:
    """One adapter on its way; `step` until `finished`, then `adapter` is what was learned."""

    def __init__(
        self,
        engine: Engine,
        start: Floats,
        data: Labelled,
        policy: TrainingPolicy,
        random: np.random.Generator,
        *,
        replay: Labelled | None = None,
        holdout: Labelled | None = None,
        segments: Mapping[str, slice] | None = None,
        epochs: int = 0,
        halfway: int = 0,
    ) -> None:
        """Begin.

        Args:
            engine: computes loss and gradient.
            start: where to start, float32 [parameters].
            data: labelled windows; without any the adapter stays as it is.
            policy: optimiser, rates, epochs, balance, early stopping.
            random: order of the windows; used by nobody else.
            replay: windows of recordings that are gone.
            holdout: decides when to stop, where the policy asks for that.
            segments: where each named segment stands in the vector, for rates of their own.
            epochs: how many; 0: as many as the policy says.
            halfway: epochs after which the adapter is kept as it is then, to see what the rest brings.
        """
        self._engine = engine
        self._policy = policy
        self._random = random
        self._holdout = holdout if policy.early_stopping and holdout is not None and len(holdout) else None
        self._pool = batches.Pool.of(data, replay, balance=policy.balance_classes)
        factors = learning_rate_factors(policy, segments or {}, len(start))
        rate = policy.learning_rate if factors is None else policy.learning_rate * factors
        self._optimizer = optimizers.make(policy, rate)
        self._start, self._adapter = start, start
        self._best, self._best_loss, self._best_epoch, self._stale = start, np.inf, 0, 0
        self._sum, self._total, self._summed = np.zeros_like(start), 0.0, 0
        self._epoch, self._position = 0, 0
        self._middle, self._steps = halfway, 0
        self.halfway: Floats | None = None
        """The adapter as it was halfway; None: not there yet, or not asked for."""
        self._epochs = (epochs or policy.epochs) if len(data) else 0
        self._begin_epoch()

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self._epoch >= self._epochs

    @property
    def progress(self) -> float:
        """Share of the work that is done, 0 to 1; early stopping may cut it short."""
        if self.finished:
            return 1.0
        return (self._epoch + self._position / len(self._plan.rows)) / self._epochs

    @property
    def adapter(self) -> Floats:
        """What was learned so far, float32 [parameters]."""
        return self._best if self._stops_early else self._adapter

    @property
    def epochs(self) -> int:
        """Epochs that `adapter` was trained for."""
        return self._best_epoch if self._stops_early else self._epoch

    @property
    def steps(self) -> int:
        """Gradients that were computed."""
        return self._steps

    def step(self) -> None:
        """Train on one batch."""
        self._steps += 1
        rows, weights = self._plan.rows[self._position], self._plan.weights[self._position]
        _, gradient = self._engine.loss_and_gradient(
            self._adapter, self._pool.features[rows], self._pool.labels[rows], weights
        )
        if self._policy.proximal:
            # Gradient of mu / 2 * |adapter - start|**2: the proximal term of FedProx.
            gradient = gradient + np.float32(self._policy.proximal) * (self._adapter - self._start)
        self._position += 1
        last = self._position == len(self._plan.rows)
        if self._policy.accumulation == 1:
            self._adapter = self._optimizer.step(self._adapter, gradient)
        else:
            self._accumulate(gradient, float(weights.sum()), last=last)
        if last:
            self._end_epoch()

    def state(self) -> Arrays:
        """What `restore` needs to go on from here."""
        state: Arrays = {f"optimizer.{name}": value for name, value in self._optimizer.state().items()}
        state |= {
            "adapter": self._adapter,
            "best": self._best,
            "sum": self._sum.copy(),
            "steps": np.array(self._steps),
            "numbers": np.array([self._epoch, self._position, self._stale, self._summed, self._best_epoch]),
            "figures": np.array([self._best_loss, self._total]),
            "random": np.frombuffer(json.dumps(self._random_at_start).encode(), np.uint8),
        }
        if self.halfway is not None:
            state["halfway"] = self.halfway
        return state

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a state of the same training: same start, windows, policy and seed.

        Raises:
            KeyError, ValueError: it is not such a state; nothing of this training may be used then.
        """
        adapter, best, total = (np.array(state[name], np.float32) for name in ("adapter", "best", "sum"))
        if not adapter.shape == best.shape == total.shape == self._start.shape:
            raise ValueError(f"expected adapters {list(self._start.shape)}, got {list(adapter.shape)}")
        self._adapter, self._best, self._sum = adapter, best, total
        self.halfway = np.array(state["halfway"], np.float32) if "halfway" in state else None
        self._steps = int(state.get("steps", 0))  # an earlier version did not count them
        self._epoch, self._position, self._stale, self._summed, self._best_epoch = (
            int(n) for n in state["numbers"]
        )
        self._best_loss, self._total = (float(n) for n in state["figures"])
        self._optimizer.restore({name[10:]: v for name, v in state.items() if name.startswith("optimizer.")})
        self._random.bit_generator.state = json.loads(np.asarray(state["random"], np.uint8).tobytes())
        position = self._position
        self._begin_epoch()
        self._position = position

    @property
    def _stops_early(self) -> bool:
        """Whether the held-out windows have chosen an epoch."""
        return self._holdout is not None and bool(np.isfinite(self._best_loss))

    def _begin_epoch(self) -> None:
        self._random_at_start: Any = self._random.bit_generator.state
        self._position = 0
        if not self.finished:
            self._plan = batches.draw(self._pool, self._engine.batch, self._policy.replay_share, self._random)

    def _accumulate(self, gradient: Floats, weight: float, *, last: bool) -> None:
        """Step once per `accumulation` batches, by the gradient that one large batch would have had."""
        self._sum += gradient * np.float32(weight)
        self._total += weight
        self._summed += 1
        if self._summed == self._policy.accumulation or last:
            mean = self._sum / np.float32(self._total)
            self._adapter = self._optimizer.step(self._adapter, mean)
            self._sum[:] = 0
            self._total, self._summed = 0.0, 0

    def _end_epoch(self) -> None:
        self._epoch += 1
        if self._epoch == self._middle:
            self.halfway = self._adapter
        if not np.isfinite(self._adapter).all():
            log.warning("training diverged (learning rate %g); the adapter stays", self._policy.learning_rate)
            self._adapter = self._best = self._start
            self._epoch, self._best_epoch = self._epochs, 0
        elif self._holdout is not None:
            self._watch(mean_loss(self._engine, self._adapter, self._holdout))
        self._begin_epoch()

    def _watch(self, loss: float) -> None:
        """Keep the best epoch, and stop when none was better for a while."""
        if loss < self._best_loss:
            self._best, self._best_loss, self._stale = self._adapter, loss, 0
            self._best_epoch = self._epoch
            return
        self._stale += 1
        if self._stale >= self._policy.early_stopping:
            self._epoch = self._epochs


def train(
    engine: Engine,
    adapter: Floats,
    data: Labelled,
    policy: TrainingPolicy,
    random: np.random.Generator,
    **options: Any,
) -> Floats:
    """Train to the end and return the new adapter, float32 [parameters]; see `Training` for the arguments."""
    training = Training(engine, adapter, data, policy, random, **options)
    while not training.finished:
        training.step()
    return training.adapter


def learning_rate_factors(
    policy: TrainingPolicy, segments: Mapping[str, slice], parameters: int
) -> Floats | None:
    """Factor of each parameter's learning rate, float32 [parameters]; None: all alike."""
    if not policy.learning_rate_factors:
        return None
    factors = np.ones(parameters, np.float32)
    for name, factor in policy.learning_rate_factors.items():
        if name in segments:
            factors[segments[name]] = factor
        else:
            log.warning("the policy names a segment %r; there are %s", name, ", ".join(segments))
    return factors
