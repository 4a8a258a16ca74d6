"""A learning in progress: the trainings that a release asks for, one after another, step by step.

It can be written down after any step and gone on with after a power cut; what was written belongs to exactly
this release, these windows and this policy, or it is not used.
"""

import io
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from agent.training import Arrays, Training

if TYPE_CHECKING:
    from agent.engine import Floats

log = logging.getLogger(__name__)

MakeTraining = Callable[[Mapping[str, int]], Training]
"""Begins a training, given the epochs that those before it took, by name."""


class Learning:
    """Trainings by name, in order; `step` until `finished`."""

    def __init__(self, identity: bytes, trainings: Mapping[str, MakeTraining]) -> None:
        """Begin.

        Args:
            identity: names what all results depend on.
            trainings: how to begin each; only one is in memory at a time.
        """
        self._identity = identity
        self._makers = dict(trainings)
        self.adapters: dict[str, Floats] = {}
        """What was learned, float32 [parameters] each."""
        self.halfway: dict[str, Floats] = {}
        """The same as it was halfway, where that was asked for."""
        self.steps: dict[str, int] = {}
        """Gradients that each took."""
        self._epochs: dict[str, int] = {}
        self._current: Training | None = None
        self._advance()

    @property
    def finished(self) -> bool:
        """Whether all trainings are through."""
        return self._current is None

    @property
    def progress(self) -> float:
        """Share of the work that is done, 0 to 1."""
        current = self._current.progress if self._current else 0.0
        return (len(self.adapters) + current) / max(1, len(self._makers))

    def step(self) -> None:
        """Train on one batch."""
        if self._current is not None:
            self._current.step()
            self._advance()

    def checkpoint(self) -> bytes:
        """What `restore` needs to go on from here."""
        arrays: Arrays = {f"learned.{name}": adapter for name, adapter in self.adapters.items()}
        arrays |= {f"halfway.{name}": adapter for name, adapter in self.halfway.items()}
        arrays |= {f"steps.{name}": np.array(count) for name, count in self.steps.items()}
        if self._current is not None:
            arrays |= {f"current.{name}": value for name, value in self._current.state().items()}
        out = io.BytesIO()
        identity, epochs = np.frombuffer(self._identity, np.uint8), np.array(list(self._epochs.values()), int)
        np.savez(out, identity=identity, epochs=epochs, **arrays)  # type: ignore[arg-type]
        return out.getvalue()

    def restore(self, data: bytes) -> bool:
        """Go on from a checkpoint; False, and nothing changes, when it belongs to another learning."""
        try:
            with np.load(io.BytesIO(data)) as file:
                arrays = {name: file[name] for name in file.files}
            if arrays["identity"].tobytes() != self._identity:
                return False
            learned = {name[8:]: arrays[name] for name in arrays if name.startswith("learned.")}
            done = list(self._makers)[: len(learned)]
            if set(done) != set(learned):
                raise ValueError(  # noqa: TRY301 - handled like any other damage
                    f"expected the trainings {done}, got {sorted(learned)}"
                )
            halfway = {name[8:]: arrays[name] for name in arrays if name.startswith("halfway.")}
            steps = {name[6:]: int(arrays[name]) for name in arrays if name.startswith("steps.")}
            rest = list(self._makers)[len(learned) :]
            epochs = {name: int(count) for name, count in zip(done, arrays["epochs"], strict=True)}
            current = self._makers[rest[0]](epochs) if rest else None
            if current is not None:
                current.restore({name[8:]: arrays[name] for name in arrays if name.startswith("current.")})
        except Exception as error:  # noqa: BLE001 - a torn or foreign file: zip, numpy and json raise all kinds
            log.warning("the training's checkpoint is of no use, so it starts anew: %s", error)
            return False
        self.adapters = {name: np.array(learned[name], np.float32) for name in done}
        self.halfway, self.steps = halfway, steps
        self._epochs, self._current = epochs, current
        return True

    def _advance(self) -> None:
        """Go on to the next training that has work to do."""
        while self._current is None or self._current.finished:
            names = list(self._makers)
            if self._current is not None:
                name = names[len(self.adapters)]
                self.adapters[name], self._epochs[name] = self._current.adapter, self._current.epochs
                self.steps[name] = self._current.steps
                if self._current.halfway is not None:
                    self.halfway[name] = self._current.halfway
                self._current = None
            if len(self.adapters) == len(names):
                return
            self._current = self._makers[names[len(self.adapters)]](self._epochs)
