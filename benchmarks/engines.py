"""The agent's training against PyTorch doing the same: CPU, time, memory, size, accuracy, by engine.

    python -m benchmarks.engines [--windows 2000] [--epochs 5] [--repeats 5] [--json] [--plot FILE]

Both sides train the same adapter of the same frozen backbone (same weights, see task.py) on the same
windows, in the same batches of 32 and the same order, with AdamW, balanced classes and the same number of
threads. Ours runs the agent's own code (its engines, agent.training); the other side is
peers/torch_training.py.

Every measurement is a fresh process; the contestants take turns (A B C A B C ...), and medians are reported.

* CPU seconds are user plus system time of all threads, of the training alone: weights and windows are in
  memory and every import is done before the clock starts, PyTorch's late ones as well. *Cold* is a first
  round: the frozen part once per window, then the epochs; it includes loading the graphs. *Warm* is every
  later round. PyTorch runs its whole network in both; the row "torch, features cached" is what a user can
  do about that by hand, and is reported beside it. With imports and everything: `process_cpu_seconds`, of a
  process that does one cold and one warm training.
* Peak RSS is VmHWM at the end of the second training.
* Cold start is the time from starting the interpreter to the end of the first step of the optimiser.
* Installed size is that of the distributions that the training needs, with their dependencies, bytecode
  included.
* Frozen segments: a package exported with only the head trainable is beside the full one; the difference of
  their steps is what a device pays for a gradient that its policy then ignores.

An engine is an interpreter and a name. `onnxruntime` runs in this environment; the others run in those that
`make test-engines` builds, or in any named with --interpreter; one that is absent is listed with the reason.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import bar_chart, task
from benchmarks.install import closure_bytes
from benchmarks.process import one_thread

ROOT = task.ROOT
CORE = ["numpy", "cryptography", "cbor2", "cwt", "paho-mqtt", "safetensors"]
"""What graftwork itself requires."""
RUNTIMES = {
    "onnxruntime": ["onnxruntime"],
    "onnxruntime-training": ["onnxruntime-training-cpu", "onnxruntime-training"],
    "litert": ["tflite-runtime", "ai-edge-litert"],
}
FIGURES = (
    ("cold_cpu_seconds", "cold CPU s", "{:.3f}"),
    ("warm_cpu_seconds", "warm CPU s", "{:.3f}"),
    ("process_cpu_seconds", "with imports", "{:.2f}"),
    ("epoch_ms", "ms/epoch", "{:.1f}"),
    ("step_ms", "ms/step", "{:.3f}"),
    ("rss_bytes", "peak RSS MB", "{:.1f}"),
    ("cold_start_seconds", "cold start s", "{:.2f}"),
    ("installed_bytes", "installed MB", "{:.0f}"),
    ("accuracy", "accuracy %", "{:.2f}"),
)
SCALES = {"rss_bytes": 1e-6, "installed_bytes": 1e-6, "accuracy": 100.0}


@dataclass(frozen=True)
class Contestant:
    """One way to train."""

    name: str
    interpreter: Path
    command: tuple[str, ...]
    threads: int
    distributions: tuple[str, ...]


def main() -> None:
    """Measure and print a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=task.DATA, default="vibration")
    parser.add_argument("--windows", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", default="1,2", help="counts, comma-separated; ratios are of the first")
    parser.add_argument(
        "--interpreter",
        action="append",
        default=[],
        metavar="ENGINE=PATH",
        help="where an engine is installed",
    )
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the medians")
    options = parser.parse_args()
    prepared = task.prepared(options.data, options.windows, options.seed)
    threads = [int(count) for count in options.threads.split(",")]
    present, absent = contestants(prepared, threads, dict(pair.split("=", 1) for pair in options.interpreter))
    say: Callable[[str], None] = (
        (lambda _text: None) if options.json else lambda text: print(text, flush=True)
    )
    runs = measure(present, options, say)
    rows = {contestant.name: summary(contestant, runs[contestant.name]) for contestant in present}
    for name, row in rows.items():
        say(line(name, row))
    for name, reason in absent.items():
        say(f"{name}: not measured: {reason}")
    if options.plot:
        plot(rows, options.plot)
        say(f"plot: {options.plot}")
    print(json.dumps(report(rows, absent, prepared, options, threads[0])))


def contestants(
    prepared: task.Task, threads: list[int], interpreters: dict[str, str]
) -> tuple[list[Contestant], dict[str, str]]:
    """Who takes part, and who cannot, with the reason."""
    here = Path(sys.executable)
    peer = ("-m", "benchmarks.peers.torch_training", str(prepared.directory))
    torch_needs = ("torch", "numpy")
    found, absent = [], {}
    for count in threads:
        suffix = "" if count == threads[0] else f", {count} threads"
        for engine, runtime in RUNTIMES.items():
            interpreter = Path(interpreters.get(engine, default_interpreter(engine)))
            reason = unfit(engine, interpreter)
            package = None
            if not reason:
                package, reason = task.engine_package(prepared, engine, interpreter)
            if package is None:
                absent[engine] = reason
                continue
            run = ("-m", "benchmarks.training_run", engine, str(package), str(prepared.directory))
            found.append(Contestant(engine + suffix, interpreter, run, count, (*CORE, *runtime)))
        found.append(Contestant(f"torch{suffix}", here, peer, count, torch_needs))
    package = task.unpacked(prepared.head_package)
    head = ("-m", "benchmarks.training_run", "onnxruntime", str(package), str(prepared.directory))
    found += [
        Contestant("torch, features cached", here, (*peer, "--cached"), threads[0], torch_needs),
        Contestant("onnxruntime, head only", here, head, threads[0], (*CORE, "onnxruntime")),
    ]
    return found, absent


def default_interpreter(engine: str) -> Path:
    """Where `make test-engines` installs an engine."""
    if engine == "onnxruntime":
        return Path(sys.executable)
    return ROOT / f".venv-engine-{engine}" / "bin" / "python"


def unfit(engine: str, interpreter: Path) -> str:
    """Why an interpreter cannot run an engine; "" if it can."""
    if not interpreter.exists():
        return f"there is no {interpreter}; `make test-engines` makes it"
    code = f"from agent.engines import CANDIDATES as c; import sys; sys.exit(not c[{engine!r}].installed())"
    if subprocess.run([interpreter, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode:
        return f"{interpreter} has no runtime for it"
    return ""


def measure(
    present: Sequence[Contestant], options: argparse.Namespace, say: Callable[[str], None]
) -> dict[str, list[dict[str, Any]]]:
    """Let all take turns; one dictionary of figures per turn."""
    runs: dict[str, list[dict[str, Any]]] = {contestant.name: [] for contestant in present}
    for turn in range(options.repeats):
        for contestant in present:
            figures = start(contestant, options) | start(contestant, options, "--first-step")
            runs[contestant.name].append(figures)
        say(f"turn {turn + 1} of {options.repeats} done")
    return runs


def start(contestant: Contestant, options: argparse.Namespace, *more: str) -> dict[str, Any]:
    """Run a contestant once in a fresh process.

    Raises:
        SystemExit: it fails.
    """
    arguments = ["--threads", str(contestant.threads), "--epochs", str(options.epochs)]
    arguments += ["--seed", str(options.seed), "--started", repr(time.monotonic()), *more]
    result = subprocess.run(
        [contestant.interpreter, *contestant.command, *arguments],
        cwd=ROOT,
        env={**os.environ, **one_thread(contestant.threads), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        sys.exit(f"{contestant.name} failed:\n{result.stderr}")
    figures: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    if more:
        figures.pop("rss_bytes")
    return figures


def summary(contestant: Contestant, turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of all turns, and what is installed for it."""
    row: dict[str, Any] = {
        name: statistics.median(turn[name] for turn in turns)
        for name, value in turns[0].items()
        if isinstance(value, (int, float))
    }
    sites = subprocess.run(
        [contestant.interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    row["installed_bytes"] = closure_bytes(Path(sites.stdout.strip()), list(contestant.distributions))
    row["runtime"] = turns[0]["runtime"]
    row["turns"] = {name: [turn[name] for turn in turns] for name in ("cold_cpu_seconds", "warm_cpu_seconds")}
    return row


def report(
    rows: dict[str, dict[str, Any]],
    absent: dict[str, str],
    prepared: task.Task,
    options: argparse.Namespace,
    threads: int,
) -> dict[str, Any]:
    """The ratios ours / PyTorch, and all that they were made from."""
    ours, torch, head = rows["onnxruntime"], rows["torch"], rows["onnxruntime, head only"]
    cached = rows["torch, features cached"]

    def ratio(name: str, other: dict[str, Any] = torch) -> float:
        return round(float(ours[name] / other[name]), 4)

    return {
        "cpu_ratio": ratio("cold_cpu_seconds"),
        "cpu_ratio_warm": ratio("warm_cpu_seconds"),
        "rss_ratio": ratio("rss_bytes"),
        "cold_start_ratio": ratio("cold_start_seconds"),
        "cold_start_cpu_ratio": ratio("cold_start_cpu_seconds"),
        "process_cpu_ratio": ratio("process_cpu_seconds"),
        "installed_ratio": ratio("installed_bytes"),
        "cpu_ratio_to_cached_torch": ratio("cold_cpu_seconds", cached),
        "cpu_ratio_warm_to_cached_torch": ratio("warm_cpu_seconds", cached),
        "accuracy_difference_points": round(100 * (ours["accuracy"] - torch["accuracy"]), 3),
        "frozen_segments_step_ratio": round(head["step_ms"] / ours["step_ms"], 4),
        "goals": {"cpu_ratio": 0.2, "cpu_ratio_warm": 0.1, "cold_start_ratio": 0.1, "accuracy_points": 0.5},
        "settings": {
            "epochs": options.epochs, "repeats": options.repeats, "threads": threads, **prepared.facts
        },
        "medians": rows,
        "absent": absent,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
    }  # fmt: skip


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    cells = (
        f"{title} {text.format(row[figure] * SCALES.get(figure, 1.0))}" for figure, title, text in FIGURES
    )
    return f"{name:24} {'  '.join(cells)}"


def plot(rows: dict[str, dict[str, Any]], file: Path) -> None:
    """Draw the medians of the main figures, a panel each."""
    names = [name for name in rows if "threads" not in name and "head" not in name]
    panels = [
        bar_chart.Panel(title, [rows[name][key] * SCALES.get(key, 1.0) for name in names])
        for key, title in (
            ("cold_cpu_seconds", "CPU seconds, first round"),
            ("warm_cpu_seconds", "CPU seconds, later rounds"),
            ("rss_bytes", "peak memory (MB)"),
            ("cold_start_seconds", "start to first step (s)"),
        )
    ]
    others = [name for name in names if name.startswith("torch")]
    bar_chart.draw(file, names, others, panels, 0.9 + 0.45 * len(names))


if __name__ == "__main__":
    main()
