"""The updates of one domain, task by task: each task has a rule of its own.

So none is the measure of another's norms, and a device without labels, which has nothing to say on
classification, does not count there.
"""

from dataclasses import dataclass, replace

import numpy as np

from protocol.package import Manifest
from server import rules
from server.rules.policy import AggregationPolicy
from server.rules.rule import Fixed, Rule


class Tasks:
    """Aggregates the updates of a domain."""

    def __init__(self, manifest: Manifest, aggregation: AggregationPolicy, domains: int) -> None:
        """Start with nothing.

        Args:
            manifest: of the package, for the tasks' parts of the adapter.
            aggregation: the rule.
            domains: that share the policy's memory.
        """
        share = replace(aggregation, memory_mib=max(1, aggregation.memory_mib // domains))
        self._tasks = [
            _Task(part, rules.make(share, _length(part))) for part in manifest.task_slices().values()
        ]
        self.updates = 0
        """Updates so far."""

    def add(self, vector: Fixed, weight: int) -> bool:
        """Take an update; whether it says something on the first task, whose losses it reports.

        Args:
            vector: int64 [parameters], units of 2**-30.
            weight: what it counts for.
        """
        self.updates += 1
        for task in self._tasks:
            if len(self._tasks) == 1 or vector[task.part].any():
                task.rule.add(vector[task.part], weight)
                task.updates += 1
        return len(self._tasks) == 1 or bool(vector[self._tasks[0].part].any())

    def mean(self) -> Fixed:
        """The aggregate of each task, side by side, int64 [parameters] in units of 2**-30."""
        return np.concatenate([task.mean() for task in self._tasks])


@dataclass
class _Task:
    part: slice
    rule: Rule
    updates: int = 0

    def mean(self) -> Fixed:
        """The aggregate, zero where nobody trained this task."""
        return self.rule.mean() if self.updates else np.zeros(_length(self.part), np.int64)


def _length(part: slice) -> int:
    return int(part.stop - part.start)
