"""What an adaptive schedule saves: accuracy, gradient steps, CPU seconds and bytes, beside the fixed one.

    python -m benchmarks.schedule [--fleets A,B] [--labels 5,15] [--seeds 0,1,2] [--json] [--quick] [--plot F]

A federation on real recordings in simulated time, a round every two hours for four days (see rehearsal.py),
once with each mode of the charter's schedule; everything else is alike. Figures are given after two days and
after four: the longer a fleet has settled, the more is saved. Accuracy is the mean over devices and over the
last twelve hours, of what devices use and of the release; *mean* is that of what they use since the start.
Steps are gradients, CPU seconds those of the devices' engine: gradients, predictions and the frozen prefix.
The defaults of the schedule were chosen on sp_sw_har and gearbox_vibration, over two days in the laboratory;
the other fleets had no part in that.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.config import AgentConfig
from agent.device import configured_engine
from agent.engine import Engine, Floats
from benchmarks.rehearsal import Task, data_directory, make_fleet, rehearse
from protocol.charter import ADAPTIVE, FIXED, SchedulePolicy
from protocol.package import Manifest
from simulation.in_process import InProcessFederation

HOUR = 3600.0
HOURS, LAST_HOURS = 96, 12
SHOWN = (48, 96)
"""Hours after which figures are given."""
MODES = (FIXED, ADAPTIVE)
FLEETS = ("sp_sw_har", "skab_valve", "smellnet_gas")


@dataclass
class Meter:
    """What the engines of all devices did."""

    steps: int = 0
    cpu_seconds: float = 0.0

    def engine(self, directory: Path, manifest: Manifest, config: AgentConfig) -> Engine:
        """An engine that counts here."""
        return _Metered(configured_engine(directory, manifest, config), self)


class _Metered:
    """An engine whose work is counted."""

    def __init__(self, engine: Engine, meter: Meter) -> None:
        self._engine, self._meter = engine, meter
        self.batch, self.feature_size = engine.batch, engine.feature_size
        self.parameters, self.classes = engine.parameters, engine.classes

    def loss_and_gradient(
        self, adapter: Floats, features: Floats, labels: NDArray[np.int64], weights: Floats
    ) -> tuple[float, Floats]:
        """A gradient."""
        self._meter.steps += 1
        started = time.process_time()
        found = self._engine.loss_and_gradient(adapter, features, labels, weights)
        self._meter.cpu_seconds += time.process_time() - started
        return found

    def predict(self, adapter: Floats, features: Floats) -> Floats:
        """Logits."""
        started = time.process_time()
        found = self._engine.predict(adapter, features)
        self._meter.cpu_seconds += time.process_time() - started
        return found

    def features(self, windows: Floats) -> Floats:
        """Output of the frozen prefix."""
        started = time.process_time()
        found = self._engine.features(windows)
        self._meter.cpu_seconds += time.process_time() - started
        return found


@dataclass
class Run:
    """One federation, per device."""

    hours: list[float] = field(default_factory=list)
    """When every device held each release."""
    kib: list[float] = field(default_factory=list)
    """Sent until then."""
    cpu_seconds: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)
    """Accuracy from then on, %."""
    release: list[float] = field(default_factory=list)

    def figures(self, hours: float) -> dict[str, float]:
        """What the table shows, after so many hours."""
        releases = sum(hour <= hours for hour in self.hours)
        return {
            "releases": releases,
            "used": self._held(self.used, hours - LAST_HOURS, hours),
            "used_mean": self._held(self.used, 0, hours),
            "release": self._held(self.release, hours - LAST_HOURS, hours),
            "steps": self.steps[releases - 1],
            "cpu_seconds": self.cpu_seconds[releases - 1],
            "kib_up": self.kib[releases - 1],
        }

    def _held(self, accuracy: list[float], since: float, until: float) -> float:
        """Mean over time of an accuracy that holds from each release to the next."""
        ends = [*self.hours[1:], float(HOURS)]
        spans = [
            max(0.0, min(end, until) - max(start, since)) for start, end in zip(self.hours, ends, strict=True)
        ]
        return float(np.average(accuracy, weights=spans))


def main() -> None:
    """Run and print a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of the data sets (default: $GRAFTWORK_DATA)")
    parser.add_argument("--directory", type=Path, help="keeps fleets and packages from run to run")
    parser.add_argument("--fleets", default=",".join(FLEETS), help="names, comma-separated")
    parser.add_argument("--labels", default="5,15", help="labelled windows per class and device")
    parser.add_argument("--seeds", default="0,1,2", help="of backbone, labels and training")
    parser.add_argument("--quick", action="store_true", help="one fleet, one seed, 5 labels")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--plot", type=Path, help="PNG of accuracy against bytes and CPU seconds")
    options = parser.parse_args()
    if options.quick:
        options.fleets, options.labels, options.seeds = "skab_valve", "5", "0"
    with tempfile.TemporaryDirectory() as folder:
        results = _compare(options, options.directory or Path(folder))
    if options.plot:
        _plot(options.plot, results)
    rows = [{name: row[name] for name in row if name != "runs"} for row in results]
    print(json.dumps({"seeds": options.seeds, "results": rows}))


def _compare(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    results, seeds = [], [int(seed) for seed in options.seeds.split(",")]
    for fleet in options.fleets.split(","):
        make_fleet(folder / fleet, fleet, data_directory(options.data), seeds)
        for labels in map(int, options.labels.split(",")):
            runs: dict[str, list[Run]] = {mode: [] for mode in MODES}
            for seed in seeds:
                for mode in MODES:
                    print(f"{fleet}: {labels} labels, seed {seed}, {mode}", file=sys.stderr, flush=True)
                    runs[mode].append(run(Task(fleet, folder / fleet, seed, labels, 0), mode))
            for hours in SHOWN:
                rows = [_row(fleet, labels, hours, mode, runs[mode]) for mode in MODES]
                for name in ("steps", "cpu_seconds", "kib_up"):
                    rows[1][f"{name}_ratio"] = round(rows[1][name] / rows[0][name], 2)
                for row in rows if not options.json else ():
                    print("  ".join(f"{name} {row[name]}" for name in row if name != "runs"), flush=True)
                results += rows
    return results


def run(task: Task, mode: str) -> Run:
    """One federation under a mode of the schedule."""
    meter, found, started = Meter(), Run(), []

    def after_release(federation: InProcessFederation) -> None:
        started.append(federation.clock())
        devices = len(federation.agent_stores)
        sent = sum(federation.traffic[device][0] for device in federation.agent_stores)
        found.hours.append((started[-1] - started[0]) / HOUR)
        found.kib.append(sent / devices / 1024)
        found.cpu_seconds.append(meter.cpu_seconds / devices)
        found.steps.append(meter.steps / devices)

    outcome = rehearse(
        task,
        {"schedule": SchedulePolicy(mode)},
        pause_seconds=2 * HOUR,
        step_seconds=HOUR / 6,
        duration_seconds=HOUR * HOURS,
        make_engine=meter.engine,
        after_release=after_release,
    )
    found.used = [100 * accuracy for accuracy in outcome.accuracy["fleet"]]
    found.release = [100 * accuracy for accuracy in outcome.accuracy["release"]]
    return found


def _row(fleet: str, labels: int, hours: int, mode: str, runs: list[Run]) -> dict[str, Any]:
    figures = [run.figures(hours) for run in runs]
    means = {name: round(float(np.mean([one[name] for one in figures])), 2) for name in figures[0]}
    return {"fleet": fleet, "labels": labels, "hours": hours, "mode": mode, **means, "runs": runs}


def _plot(path: Path, results: list[dict[str, Any]]) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, and only needed at the end

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    tasks = list(dict.fromkeys((row["fleet"], row["labels"]) for row in results))
    size = (9, 3.2 * len(tasks))
    figure, axes = plt.subplots(len(tasks), 2, figsize=size, layout="constrained", squeeze=False)
    for (fleet, labels), pair in zip(tasks, axes, strict=True):
        shown = (fleet, labels, HOURS)
        for row in (row for row in results if (row["fleet"], row["labels"], row["hours"]) == shown):
            for index, one in enumerate(row["runs"]):
                style = {"color": f"C{MODES.index(row['mode'])}", "label": None if index else row["mode"]}
                pair[0].step(one.kib, one.used, where="post", **style)
                pair[1].step(one.cpu_seconds, one.used, where="post", **style)
        pair[0].set_ylabel(f"{fleet}, {labels} labels\naccuracy in use, %")
        pair[0].set_xlabel("KiB sent per device")
        pair[1].set_xlabel("CPU seconds of the engine per device")
        pair[1].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
