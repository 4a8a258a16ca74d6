"""What coarse coding costs in accuracy on the real fleets, against updates and releases without visible loss.

Both sides of a comparison run the same devices, labels, batches and rounds (see rehearsal.py). The reference
codes with steps of 1/64 root mean square: an error of 2e-5 of an update's energy, where float32 has none.
Compared is the mean over the last releases, because single ones go up and down by whole test windows.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rehearsal import FIGURES, FLEETS, Task, make_fleet, rehearse
from protocol.charter import TrainingPolicy
from server.config import ServerConfig

FINE = 1 / 64
LAST = 5
"""Releases that the accuracy is averaged over."""


@dataclass(frozen=True)
class Cost:
    """Accuracy of coded against uncoded updates on a fleet; points, mean over seeds."""

    fleet: str
    body_bits: float
    """Bits per parameter of the coded bodies."""
    message_bits: float
    """The same with envelope and header, without the topic."""
    uncoded: dict[str, float]
    """Accuracy in per cent, by figure."""
    coded: dict[str, float]
    difference: dict[str, float]
    """Coded minus uncoded, in points."""
    standard_error: dict[str, float]
    """Of the difference, from the seeds."""


def costs(directory: Path, data: Path, seeds: list[int], *, labels: int, rounds: int) -> list[Cost]:
    """Run every fleet with and without coding."""
    return [cost(directory / fleet, fleet, data, seeds, labels=labels, rounds=rounds) for fleet in FLEETS]


def cost(directory: Path, fleet: str, data: Path, seeds: list[int], *, labels: int, rounds: int) -> Cost:
    """Run one fleet with and without coding, once per seed."""
    make_fleet(directory, fleet, data, seeds)
    runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    bits = []
    for seed in seeds:
        task = Task(fleet, directory, seed, labels, rounds)
        for coded, found in runs.items():
            print(f"{fleet}: seed {seed}, {'coded' if coded else 'uncoded'}", file=sys.stderr, flush=True)
            outcome = rehearse(task, _server(coded=coded))
            found.append({name: 100 * outcome.mean_accuracy(name, LAST) for name in FIGURES})
            if coded:
                bits.append((outcome.body_bits, outcome.message_bits))
    body_bits, message_bits = np.mean(bits, axis=0)
    pairs = list(zip(runs[False], runs[True], strict=True))
    differences = {name: [coded[name] - uncoded[name] for uncoded, coded in pairs] for name in FIGURES}
    return Cost(
        fleet,
        float(body_bits),
        float(message_bits),
        _means(runs[False]),
        _means(runs[True]),
        {name: float(np.mean(values)) for name, values in differences.items()},
        {name: _standard_error(values) for name, values in differences.items()},
    )


def as_row(found: Cost) -> dict[str, Any]:
    """For JSON, rounded."""
    return {
        name: {key: round(number, 3) for key, number in value.items()}
        if isinstance(value, dict)
        else round(value, 4)
        if isinstance(value, float)
        else value
        for name, value in asdict(found).items()
    }


def _server(*, coded: bool) -> dict[str, Any]:
    if coded:  # as devices and servers do by default
        return {"training": TrainingPolicy(), "release_step_ratio": ServerConfig.release_step_ratio}
    return {"training": TrainingPolicy(step_ratio=FINE), "release_step_ratio": FINE}


def _means(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([run[name] for run in runs])) for name in FIGURES}


def _standard_error(values: list[float]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
