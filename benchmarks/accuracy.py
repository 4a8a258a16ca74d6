"""Accuracy of ways to learn in a fleet, on real recordings: is a device better off for taking part?

    python -m benchmarks.accuracy [--data DIR] [--quick] [--labels 5,15,50] [--seeds 0,1,2] [--jobs 2]

Per fleet and budget of labels: every method of methods.py, on the same devices, labels and backbone. Mean
and worst device's accuracy in per cent, the share of devices that are more than a point worse than with
training alone, and the share for which that is more than luck (exact test of the windows on which both
differ, McNemar 1947, at 0.05); CPU seconds and gradients per device. `--quick`: two fleets, one seed, 5
labels. Devices, labels, training, and for ours the quantiser and the aggregation, are the real ones; messages
are left out (laboratory.py).

All choices were made with these six fleets in view.
"""

import argparse
import concurrent.futures
import contextlib
import json
import math
import multiprocessing
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.laboratory import Laboratory
from benchmarks.methods import METHODS
from benchmarks.rehearsal import data_directory, make_fleet
from protocol.input_schema import NORMALISATIONS

FLEETS = (
    "sp_sw_har",
    "gearbox_vibration",
    "skab_valve",
    "smellnet_gas",
    "fsdd_audio",
    "meter_digits",
)
QUICK = ("sp_sw_har", "skab_valve")
POINT = 0.01
LUCK = 0.05


def main() -> None:
    """Run and print a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of the data sets (default: $GRAFTWORK_DATA)")
    parser.add_argument("--quick", action="store_true", help="two fleets, one seed, 5 labels")
    parser.add_argument("--fleets", help="names, comma-separated")
    parser.add_argument("--labels", help="labelled windows per class and device (default: 5,15,50)")
    parser.add_argument("--seeds", help="of backbone, labels and training (default: 0,1,2)")
    parser.add_argument("--normalisation", default="none", choices=("none", *NORMALISATIONS))
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    parser.add_argument("--directory", type=Path, help="keeps fleets and backbones for the next time")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--plot", type=Path, help="PNG of the gains over training alone")
    options = parser.parse_args()
    data = data_directory(options.data)
    fleets = (options.fleets or ",".join(QUICK if options.quick else FLEETS)).split(",")
    budgets = [int(text) for text in (options.labels or ("5" if options.quick else "5,15,50")).split(",")]
    seeds = [int(text) for text in (options.seeds or ("0" if options.quick else "0,1,2")).split(",")]
    results = []
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ProcessPoolExecutor(
            options.jobs, mp_context=multiprocessing.get_context("spawn")
        ) as pool,
    ):
        kept = options.directory or Path(folder)
        for fleet in fleets:
            print(f"{fleet}: backbones", file=sys.stderr, flush=True)
            make_fleet(kept / fleet, fleet, data, seeds, options.normalisation)
        cells = [(fleet, labels) for fleet in fleets for labels in budgets]
        runs = {
            cell: [pool.submit(run, kept / cell[0], cell[0], cell[1], seed) for seed in seeds]
            for cell in cells
        }
        for (fleet, labels), futures in runs.items():
            row = summed_up(fleet, labels, [future.result() for future in futures])
            results.append(row)
            if not options.json:
                print(as_text(row), flush=True)
    if options.plot:
        plot(options.plot, results)
    found = {"seeds": len(seeds), "fleets": summary(results), "labels_to_match": labels_to_match(results)}
    print(json.dumps({**found, "gains": gains(results), "results": results}))


@dataclass(frozen=True)
class Run:
    """A method on one fleet with one seed."""

    right: list[NDArray[np.bool_]]
    """By device, whether each test window was classified rightly."""
    steps: float
    """Gradients per device."""
    cpu_seconds: float
    """Per device."""

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """By device, 0 to 1, float64 [devices]."""
        return np.array([part.mean() for part in self.right])


def run(directory: Path, fleet: str, labels: int, seed: int) -> dict[str, Run]:
    """Every method on a fleet with a budget of labels."""
    found = {}
    package = (directory / f"package-{seed}.zip").read_bytes()
    with contextlib.closing(Laboratory(directory / "fleet", package, seed, labels)) as lab:
        for name, method in METHODS.items():
            before, began, devices = lab.steps, time.process_time(), len(lab.devices)
            tried = method(lab)
            seconds = time.process_time() - began
            found[name] = Run(lab.right(tried), (lab.steps - before) / devices, seconds / devices)
            print(f"{fleet}: {labels} labels, seed {seed}, {name}", file=sys.stderr, flush=True)
    return found


def summed_up(fleet: str, labels: int, runs: list[dict[str, Run]]) -> dict[str, Any]:
    """Every method on a fleet with a budget of labels, over seeds."""
    alone = [run["local"] for run in runs]
    local = np.concatenate([run.accuracy for run in alone])
    methods = {}
    for name in runs[0]:
        mine = [run[name] for run in runs]
        accuracy = [run.accuracy for run in mine]
        proven = [
            worse_by_more_than_luck(ours, theirs)
            for run, other in zip(mine, alone, strict=True)
            for ours, theirs in zip(run.right, other.right, strict=True)
        ]
        methods[name] = {
            "accuracy": round(100 * float(np.concatenate(accuracy).mean()), 2),
            "worst": round(100 * float(np.mean([part.min() for part in accuracy])), 2),
            "worse_share": round(float(np.mean(np.concatenate(accuracy) < local - POINT)), 4),
            "proven_worse_share": round(float(np.mean(proven)), 4),
            "steps_per_device": round(float(np.mean([run.steps for run in mine]))),
            "cpu_seconds_per_device": round(float(np.mean([run.cpu_seconds for run in mine])), 3),
        }
    return {"fleet": fleet, "labels": labels, "devices": len(alone[0].right), "methods": methods}


def worse_by_more_than_luck(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> bool:
    """Whether `theirs` has windows right that `ours` has wrong, and more of them than a coin would give."""
    lost, won = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
    tossed = lost + won
    chance = sum(math.comb(tossed, count) for count in range(lost, tossed + 1)) / 2**tossed
    return lost > won and chance <= LUCK


def gains(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By budget and method, points more than training alone, mean over the fleets; and devices worse."""
    out: dict[str, dict[str, float]] = {}
    for labels in dict.fromkeys(row["labels"] for row in results):
        rows = [row["methods"] for row in results if row["labels"] == labels]
        out[str(labels)] = {
            **{
                name: round(
                    float(np.mean([row[name]["accuracy"] - row["local"]["accuracy"] for row in rows])), 2
                )
                for name in rows[0]
            },
            "worse_share": round(float(np.mean([row["ours"]["worse_share"] for row in rows])), 4),
            "proven_worse_share": round(
                float(np.mean([row["ours"]["proven_worse_share"] for row in rows])), 4
            ),
        }
    return out


def labels_to_match(results: list[dict[str, Any]]) -> dict[str, float]:
    """By fleet, how many times as many labels training alone needs to be as good as ours at the least budget.

    Between budgets accuracy is taken to grow with the logarithm of the labels; where no budget is enough, the
    largest one counts: the factor is then at least that.
    """
    out = {}
    for fleet in dict.fromkeys(row["fleet"] for row in results):
        rows = sorted((row for row in results if row["fleet"] == fleet), key=lambda row: row["labels"])
        budgets = [row["labels"] for row in rows]
        wanted = rows[0]["methods"]["ours"]["accuracy"]
        alone = np.maximum.accumulate([row["methods"]["local"]["accuracy"] for row in rows])
        reached = np.flatnonzero(alone >= wanted)
        if not len(reached) or not reached[0]:
            out[fleet] = round(budgets[-1 if not len(reached) else 0] / budgets[0], 1)
            continue
        before, after = int(reached[0]) - 1, int(reached[0])
        part = (wanted - alone[before]) / (alone[after] - alone[before])
        needed = float(np.exp(np.interp(part, [0, 1], np.log(budgets[before : after + 1]))))
        out[fleet] = round(needed / budgets[0], 1)
    return out


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Per fleet, at its smallest budget: what matters most."""
    out: dict[str, Any] = {}
    for row in results:
        if row["fleet"] not in out:
            accuracy = {name: figures["accuracy"] for name, figures in row["methods"].items()}
            chosen = {name: accuracy[name] for name in ("local", "fedavg", "ours", "pooled")}
            worse = row["methods"]["ours"]["worse_share"]
            out[row["fleet"]] = {"labels": row["labels"], **chosen, "worse_share": worse}
    return out


def as_text(row: dict[str, Any]) -> str:
    """A line per method."""
    lines = [f"{row['fleet']}, {row['devices']} devices, {row['labels']} labels per class"]
    for name, figures in row["methods"].items():
        worse, proven = (100 * figures[share] for share in ("worse_share", "proven_worse_share"))
        lines.append(
            f"  {name:18} {figures['accuracy']:6.1f}  worst {figures['worst']:5.1f}  worse than alone "
            f"{worse:4.0f} %, proven {proven:3.0f} %  {figures['cpu_seconds_per_device']:6.2f} CPU s"
        )
    return "\n".join(lines)


def plot(path: Path, results: list[dict[str, Any]]) -> None:
    """Draw each method's gain over training alone, by fleet and budget."""
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, and only needed at the end

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    names = [name for name in METHODS if name not in ("backbone", "local", "local_held_out")]
    fleets = list(dict.fromkeys(row["fleet"] for row in results))
    budgets = list(dict.fromkeys(row["labels"] for row in results))
    figure, axes = plt.subplots(
        len(fleets),
        len(budgets),
        figsize=(4.2 * len(budgets), 2.4 * len(fleets) + 0.6),
        layout="constrained",
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    for row in results:
        axis = axes[fleets.index(row["fleet"])][budgets.index(row["labels"])]
        alone = row["methods"]["local"]["accuracy"]
        gains = [row["methods"][name]["accuracy"] - alone for name in names]
        colours = ["#1f6f54" if name == "ours" else "#9aa0a6" for name in names]
        axis.barh(names[::-1], gains[::-1], color=colours[::-1])
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"{row['fleet']}, {row['labels']} labels: alone {alone:.1f} %", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    figure.supxlabel("points more than training alone")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
