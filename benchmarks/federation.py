"""One measured run of a federation, whichever system ran it: same samples, same proxy, same sums."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.process import Sampler
from benchmarks.wire import CountingProxy

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """What both systems are to do."""

    directory: Path
    """For the run's files."""
    fleet: Path
    """Fleet directory with the devices' recordings."""
    package: Path
    weights: Path
    devices: int
    rounds: int
    epochs: int
    learning_rate: float
    seed: int
    idle_seconds: float
    """How long to watch the devices when all rounds are done; 0: not at all."""
    interpreter: Path
    """Of the system under test."""


@dataclass(frozen=True)
class Outcome:
    """What a run took."""

    figures: dict[str, float]
    """Per device, mean over the devices."""
    rounds: list[tuple[float, Floats]]
    """Seconds from the start to the end of each round, and its adapter, float32 [parameters]."""
    facts: dict[str, Any] = field(default_factory=dict)


def outcome(
    sampler: Sampler,
    proxies: dict[str, CountingProxy],
    start: float,
    ends: Sequence[float],
    adapters: Sequence[Floats],
    *,
    idle: tuple[float, float] | None,
    facts: dict[str, Any],
) -> Outcome:
    """Sum up a run.

    Args:
        sampler: watched one process tree per device.
        proxies: one per device.
        start: when the devices were to begin, on the monotonic clock.
        ends: when each round ended, at least two.
        adapters: the global adapter after each round.
        idle: a time in which nothing was to be done.
        facts: to pass on.
    """
    names, later = list(proxies), len(ends) - 1
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    for name in names:
        # The first round has what happens once: connecting, fetching code or model, features.
        note("first_round_cpu_seconds", sampler.cpu_between(name, 0.0, ends[0]))
        note("round_cpu_seconds", sampler.cpu_between(name, ends[0], ends[-1]) / later)
        peak = sampler.peak_between(name, start, ends[-1])
        note("peak_rss_bytes", peak.rss_bytes)
        note("peak_pss_bytes", peak.pss_bytes)
        note("processes_at_peak", peak.processes)
        up, down = proxies[name].between(0.0, ends[0])
        note("first_round_bytes_up", up)
        note("first_round_bytes_down", down)
        up, down = proxies[name].between(ends[0], ends[-1])
        note("round_bytes_up", up / later)
        note("round_bytes_down", down / later)
        if idle is not None:
            minutes = (idle[1] - idle[0]) / 60
            note("idle_bytes_per_minute", sum(proxies[name].between(*idle)) / minutes)
            note("idle_cpu_seconds_per_minute", sampler.cpu_between(name, *idle) / minutes)
    means = {name: statistics.fmean(values) for name, values in figures.items()}
    means["round_bytes"] = means["round_bytes_up"] + means["round_bytes_down"]
    means["round_seconds"] = (ends[-1] - ends[0]) / later
    means["first_round_seconds"] = ends[0] - start
    peaks = {name: sampler.peak_rss[name] for name in names}
    rounds = [(end - start, adapter) for end, adapter in zip(ends, adapters, strict=True)]
    return Outcome(means, rounds, {**facts, "peak_rss_by_process": peaks})
