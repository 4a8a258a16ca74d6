"""The same federation in Flower and in Graftwork: what a device pays for a round, in CPU, memory and bytes.

    python -m benchmarks.vs_flower [--devices 2] [--rounds 3] [--windows 1000] [--repeats 3] [--json]

Both train the same adapter of the same frozen backbone from the same initial values, on the same windows of
the same simulated machines, in batches of 32, with AdamW, 5 epochs a round, balanced classes, one thread,
for the same number of rounds. Flower runs in an environment of its own (made on demand in
.venv-peers/flower: flwr, torch, numpy); its app is in peers/flower_app and exchanges only the adapter's
float32 vector. Both talk plain TCP on loopback through one counting proxy per device, which counts the
streams' payload bytes.

Measured per device, over all of its processes (Flower: SuperNode, SuperExec and ClientApp; Graftwork: the
agent):

* CPU seconds of a round, mean over all rounds but the first, user and system. The first, in which processes
  start, code or model travel and the agent computes its features, is reported apart.
* Memory: highest sum of RSS over the processes while rounds run; PSS beside it, which counts shared pages
  once.
* Bytes up and down of a round, mean over all rounds but the first, with whatever is polled meanwhile; and the
  bytes of an idle minute.
* Accuracy of the last global adapter on windows that no device saw; and the seconds until a round's adapter
  is within half a point of what both reach in the end, from the start of the devices' processes (Graftwork)
  or from `flwr run`, with all SuperNodes connected (Flower).
* Cold start: from the start of a process to the end of its first training step. Flower starts a ClientApp for
  every round; a Graftwork agent lives on and pays it once, at boot.

What is in whose favour: a Graftwork device also trains a second adapter alone, evaluates four of them on
held-out windows for its gate, signs, and reports; a Flower device does none of this here. Graftwork clips
and quantises its updates and sends releases as coded differences; Flower sends float32, as it comes.
Flower's clients train exactly on the windows that Graftwork's keep for training.

Runs take turns, each turn with another order of windows; medians are reported, of accuracy the mean.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable  # noqa: TC003 - as everywhere else
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.config import EngineConfig
from agent.engines import open_engine
from benchmarks import bar_chart, graftwork_run, task
from benchmarks.federation import Floats, Outcome, Plan
from benchmarks.peers import flower_run
from benchmarks.peers.environment import FLOWER
from benchmarks.process import one_thread
from protocol.fleet import Device, FleetDescription, Split
from protocol.package import unpack
from protocol.windows import cut
from simulation import vibration
from simulation.experiment import Experiment
from simulation.machines import machines
from simulation.recordings import write_fleet_description, write_recording

LEARNING_RATE = 0.003
WINDOWS_PER_TAKE = 12 * len(vibration.CLASSES)
"""Development windows of one recording of each condition; three more of each are for the test."""
TEST_TAKES_FROM, TEST_TAKES = 1000, 10
"""Further recordings of each condition, only to test on."""
FIGURES = (
    ("first_round_cpu_seconds", "CPU s, first round", 1.0),
    ("round_cpu_seconds", "CPU s per round", 1.0),
    ("peak_rss_bytes", "peak RSS, MB", 1e-6),
    ("peak_pss_bytes", "peak PSS, MB", 1e-6),
    ("processes_at_peak", "processes", 1.0),
    ("round_bytes_up", "KB up per round", 1e-3),
    ("round_bytes_down", "KB down per round", 1e-3),
    ("first_round_bytes_up", "KB up, first round", 1e-3),
    ("first_round_bytes_down", "KB down, first round", 1e-3),
    ("idle_bytes_per_minute", "KB per idle minute", 1e-3),
    ("idle_cpu_seconds_per_minute", "CPU s per idle minute", 1.0),
    ("first_round_seconds", "s, first round", 1.0),
    ("round_seconds", "s per round", 1.0),
    ("seconds_to_accuracy", "s to the same accuracy", 1.0),
    ("cold_start_seconds", "s, cold start", 1.0),
    ("accuracy", "accuracy, %", 100.0),
)


def main() -> None:
    """Run both and print a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=1000, help="labelled windows per device, at least")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="in the first turn; 0: not measured")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the medians")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("expected at least 2 rounds: the first one is reported apart")
    say: Callable[[str], None] = (
        (lambda _text: None) if options.json else lambda text: print(text, flush=True)
    )
    # A bench that is told to end must not leave its federations behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    flower = FLOWER.make()
    prepared = task.prepared("vibration", 2000, options.seed)
    directory = task.KEPT / "vs_flower"
    fleet = write_fleet(directory / "fleet", options.devices, options.windows, options.seed)
    turns: dict[str, list[dict[str, Any]]] = {"graftwork": [], "flower": []}
    for turn in range(options.repeats):
        idle = options.idle_seconds if turn == 0 else 0.0

        seed = 1000 * options.seed + turn

        def plan(system: str, interpreter: Path, idle: float = idle, seed: int = seed) -> Plan:
            return Plan(
                directory / system, fleet, prepared.package, prepared.weights, options.devices,
                options.rounds, options.epochs, LEARNING_RATE, seed, idle, interpreter,
            )  # fmt: skip

        ours = graftwork_run.run(plan("graftwork", Path(sys.executable)))
        layout = graftwork_run.experiment(plan("layout", Path(sys.executable)))
        partitions = [
            graftwork_run.training_windows(plan("layout", Path(sys.executable)), layout, participant)
            for participant in layout.participants
        ]
        initial = unpack(prepared.package.read_bytes(), None).adapter
        theirs = flower_run.run(plan("flower", flower), partitions, initial)
        rows = compare(prepared, ours, theirs, test_windows(layout, options.devices, options.seed))
        rows["graftwork"]["cold_start_seconds"] = cold_start(prepared)
        for system, row in rows.items():
            turns[system].append(row)
        say(f"turn {turn + 1} of {options.repeats} done")
    medians = {system: summary(rows) for system, rows in turns.items()}
    for figure, title, scale in FIGURES:
        cells = [f"{system} {row[figure] * scale:10.3f}" for system, row in medians.items() if figure in row]
        say(f"{title:26} {'  '.join(cells)}")
    if options.plot:
        plot(medians, options.plot)
        say(f"plot: {options.plot}")
    print(json.dumps(report(medians, options)))


def write_fleet(directory: Path, devices: int, windows: int, seed: int) -> Path:
    """Write a fleet of the demo's edge machines, each with at least `windows` development windows."""
    edge = [machine for machine in machines(seed) if machine.role == "edge"][:devices]
    if len(edge) < devices:
        sys.exit(f"--devices: expected at most {len(edge)}, the simulated plant has no more machines")
    fleet = FleetDescription(
        vibration.SCHEMA,
        vibration.WINDOW,
        tuple(Device(machine.id, machine.domain, "edge") for machine in edge),
        Split("time"),
        "benchmark",
        vibration.DESCRIPTION,
        simulated=True,
    )
    write_fleet_description(directory, fleet)
    for index, machine in enumerate(edge):
        folder = directory / machine.id
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        takes = -(-windows // WINDOWS_PER_TAKE)
        for recording in task.vibration_recordings(machine, index, seed, takes):
            write_recording(folder / recording.name, recording, vibration.SCHEMA)
    return directory


def test_windows(layout: Experiment, devices: int, seed: int) -> tuple[Floats, NDArray[np.int64]]:
    """Windows and labels that no device ever saw: of the devices' recordings, and of further ones."""
    edge = [machine for machine in machines(seed) if machine.role == "edge"][:devices]
    further = [
        cut(recording, vibration.WINDOW)
        for index, machine in enumerate(edge)
        for recording in task.vibration_recordings(machine, index, seed, TEST_TAKES, first=TEST_TAKES_FROM)
    ]
    parts = [layout.test_set(participant.device.id) for participant in layout.participants]
    x = [windows for windows, _ in parts] + [windows.x for windows in further]
    y = [labels for _, labels in parts] + [windows.y for windows in further]
    return np.concatenate(x), np.concatenate(y)


def compare(
    prepared: task.Task, ours: Outcome, theirs: Outcome, test: tuple[Floats, NDArray[np.int64]]
) -> dict[str, dict[str, Any]]:
    """Figures of both systems, with the accuracy of every round's adapter."""
    engine = open_engine(
        task.unpacked(prepared.package),
        unpack(prepared.package.read_bytes(), None).manifest,
        EngineConfig("onnxruntime"),
        threads=1,
    )
    features, labels = engine.features(test[0]), test[1]

    def accuracy(adapter: Floats) -> float:
        return float(np.mean(engine.predict(adapter, features).argmax(1) == labels))

    curves = {
        system: [(seconds, accuracy(adapter)) for seconds, adapter in outcome.rounds]
        for system, outcome in (("graftwork", ours), ("flower", theirs))
    }
    target = min(curve[-1][1] for curve in curves.values()) - 0.005
    rows: dict[str, dict[str, Any]] = {}
    for system, outcome in (("graftwork", ours), ("flower", theirs)):
        rows[system] = {
            **outcome.figures,
            **outcome.facts,
            "accuracy": curves[system][-1][1],
            "accuracy_by_round": curves[system],
            "seconds_to_accuracy": next(s for s, reached in curves[system] if reached >= target),
            "test_windows": len(labels),
        }
    return rows


def cold_start(prepared: task.Task) -> float:
    """Seconds from the start of a process to the agent's first training step, its package on disk."""
    package, started = task.unpacked(prepared.package), time.monotonic()
    command = [sys.executable, "-m", "benchmarks.training_run", "onnxruntime", str(package)]
    command += [str(prepared.directory), "--started", repr(started), "--first-step"]
    environment = {**os.environ, **one_thread()}
    result = subprocess.run(
        command, cwd=task.ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return float(json.loads(result.stdout.splitlines()[-1])["cold_start_seconds"])


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the turns of all that is a number, of accuracy the mean; facts are those of the first."""
    first = rows[0]
    numbers = {
        name: statistics.median(row[name] for row in rows if name in row)
        for name, value in first.items()
        if isinstance(value, (int, float))
    }
    return {**first, **numbers, "accuracy": statistics.fmean(row["accuracy"] for row in rows)}


def report(medians: dict[str, dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """The ratios Graftwork / Flower, and all that they were made from."""
    ours, theirs = medians["graftwork"], medians["flower"]

    def ratio(name: str) -> float | None:
        return round(float(ours[name] / theirs[name]), 5) if name in ours and theirs.get(name) else None

    return {
        "cpu_ratio": ratio("round_cpu_seconds"),
        "cpu_ratio_first_round": ratio("first_round_cpu_seconds"),
        "rss_ratio": ratio("peak_rss_bytes"),
        "pss_ratio": ratio("peak_pss_bytes"),
        "bytes_ratio": ratio("round_bytes"),
        "idle_bytes_ratio": ratio("idle_bytes_per_minute"),
        "cold_start_ratio": ratio("cold_start_seconds"),
        "seconds_ratio": ratio("seconds_to_accuracy"),
        "accuracy_difference_points": round(100 * (ours["accuracy"] - theirs["accuracy"]), 3),
        "goals": {"rss_ratio": 0.2, "bytes_ratio": 0.05, "agent_peak_rss_bytes": 80_000_000},
        "settings": {
            name: getattr(options, name)
            for name in ("devices", "rounds", "windows", "epochs", "repeats", "seed")
        },
        "medians": medians,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
    }  # fmt: skip


def plot(medians: dict[str, dict[str, Any]], file: Path) -> None:
    """Draw the main figures, a panel each."""
    panels = [
        bar_chart.Panel(title, [row[key] * scale for row in medians.values()])
        for key, title, scale in (
            ("round_cpu_seconds", "CPU seconds per round", 1.0),
            ("peak_rss_bytes", "peak memory (MB)", 1e-6),
            ("round_bytes", "KB per client-round, both ways", 1e-3),
            ("seconds_to_accuracy", "seconds to the same accuracy", 1.0),
        )
    ]
    bar_chart.draw(file, list(medians), ["flower"], panels, 1.8)


if __name__ == "__main__":
    main()
