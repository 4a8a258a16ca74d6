"""The training in progress: done in slices, paused when the board needs it, kept safe from power cuts.

What was begun is finished first, then the newest that came meanwhile: a slow device that dropped its
work for every new release would get nowhere. What to train, and what follows from it, is decided elsewhere.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.engine import Floats
from agent.errors import AgentError
from agent.learning import Learning
from agent.resources import Resources
from agent.store import Store

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 30.0
"""Work that a power cut may cost, at most."""


@dataclass(frozen=True)
class Job:
    """Something to train."""

    name: str
    """What it is for: two jobs of one name are the same."""
    begin: Callable[[], Learning]
    finish: Callable[[Mapping[str, Floats]], None]
    """Takes the adapters that were learned."""


class Work:
    """At most one job in progress, and one that waits."""

    def __init__(self, store: Store, resources: Resources, now: Callable[[], float]) -> None:
        """Start without work.

        Args:
            store: keeps the checkpoint.
            resources: say when to work.
            now: seconds, to space checkpoints.
        """
        self._store = store
        self._resources = resources
        self._now = now
        self._job: Job | None = None
        self._learning: Learning | None = None
        self._waiting: Job | None = None
        self._written_at = 0.0
        self._paused = ""

    @property
    def idle(self) -> bool:
        """Whether nothing is in progress."""
        return self._job is None

    def holds(self, name: str) -> bool:
        """Whether a job of this name is in progress or waits."""
        return any(job is not None and job.name == name for job in (self._job, self._waiting))

    def take(self, job: Job) -> None:
        """Begin a job, or let it wait instead of an older one; one that is in progress already goes on."""
        if self._job is None:
            self._job = job
        elif self._job.name != job.name:
            self._waiting = job

    def drop(self) -> None:
        """Forget all jobs: they belong to a package that is gone."""
        self._job = self._learning = self._waiting = None

    def go_on(self) -> float | None:
        """Work for a slice.

        Returns:
            Seconds until the next slice is due; None when there is nothing to do now.
        """
        job = self._job
        if job is None or self._must_rest():
            return None
        try:
            learning = self._learning or self._begin(job)
            rest = self._resources.work(learning.step, lambda: learning.finished)
            if not learning.finished:
                self._write(learning)
                return rest
            self._job = self._learning = None
            job.finish(learning.adapters)
        except (AgentError, MemoryError) as error:
            log.error("training from the release failed; the next one is tried again: %s", error)
            self._job = self._learning = None
        if self._store.checkpoint() is not None:
            self._store.note_training(None, 0.0)
        if self._job is None:
            self._job, self._waiting = self._waiting, None
        return None if self._job is None else 0.0

    def _begin(self, job: Job) -> Learning:
        learning = job.begin()
        checkpoint = self._store.checkpoint()
        if checkpoint is not None and learning.restore(checkpoint):
            log.info("training goes on at %.0f %%", 100 * learning.progress)
        self._learning = learning
        self._written_at = self._now()
        return learning

    def _must_rest(self) -> bool:
        reason = self._resources.pause_reason()
        if bool(reason) != bool(self._paused):
            if reason:
                log.warning("training is paused: %s", reason)
                if self._learning is not None:
                    self._write(self._learning, at_once=True)
            else:
                log.info("training goes on")
            self._store.note_pause(reason)
        self._paused = reason
        return bool(reason)

    def _write(self, learning: Learning, *, at_once: bool = False) -> None:
        # A clock that jumps must not keep the next checkpoint from being due.
        if at_once or not 0 <= self._now() - self._written_at < CHECKPOINT_SECONDS:
            self._written_at = self._now()
            self._store.note_training(learning.checkpoint(), learning.progress)
