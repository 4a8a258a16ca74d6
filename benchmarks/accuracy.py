"""Accuracy of ways to learn in a fleet, on real recordings: is a device better off for taking part?

    python -m benchmarks.accuracy [--data DIR] [--quick] [--labels 5,15,50] [--seeds 0,1,2] [--json]

Per fleet and budget of labels: every method of methods.py, on the same devices, labels and backbone. Mean
and worst device's accuracy in per cent, and the share of devices that are more than a point worse than with
training alone. `--quick`: two fleets, one seed, 5 labels. Devices, labels and training are the real ones;
messages and coding are left out (laboratory.py), so that all of it takes minutes.

Methods were chosen and tuned on sp_sw_har and gearbox_vibration; skab_valve and others were only measured.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.laboratory import Laboratory
from benchmarks.methods import METHODS
from benchmarks.rehearsal import FLEETS, data_directory, make_fleet
from protocol.input_schema import NORMALISATIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUICK = ("sp_sw_har", "skab_valve")
POINT = 0.01


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
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--plot", type=Path, help="PNG of the gains over training alone")
    options = parser.parse_args()
    data = data_directory(options.data)
    fleets = (options.fleets or ",".join(QUICK if options.quick else FLEETS)).split(",")
    budgets = [int(text) for text in (options.labels or ("5" if options.quick else "5,15,50")).split(",")]
    seeds = [int(text) for text in (options.seeds or ("0" if options.quick else "0,1,2")).split(",")]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for fleet in fleets:
            directory = Path(folder) / fleet
            print(f"{fleet}: backbones", file=sys.stderr, flush=True)
            make_fleet(directory, fleet, data, seeds, options.normalisation)
            for labels in budgets:
                row = measure(directory, fleet, labels, seeds)
                results.append(row)
                if not options.json:
                    print(as_text(row), flush=True)
    if options.plot:
        plot(options.plot, results)
    print(json.dumps({"seeds": len(seeds), "fleets": summary(results), "results": results}))


def measure(directory: Path, fleet: str, labels: int, seeds: list[int]) -> dict[str, Any]:
    """Every method on a fleet with a budget of labels, over seeds."""
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in METHODS}
    steps: dict[str, list[float]] = {name: [] for name in METHODS}
    for seed in seeds:
        package = (directory / f"package-{seed}.zip").read_bytes()
        with contextlib.closing(Laboratory(directory / "fleet", package, seed, labels)) as lab:
            for name, method in METHODS.items():
                print(f"{fleet}: {labels} labels, seed {seed}, {name}", file=sys.stderr, flush=True)
                before = lab.steps
                found[name].append(lab.accuracy(method(lab)))
                steps[name].append((lab.steps - before) / len(lab.devices))
    alone = np.concatenate(found["local"])
    return {
        "fleet": fleet,
        "labels": labels,
        "devices": len(found["local"][0]),
        "methods": {
            name: {
                "accuracy": round(100 * float(np.concatenate(runs).mean()), 2),
                "worst": round(100 * float(np.mean([run.min() for run in runs])), 2),
                "worse_share": round(float(np.mean(np.concatenate(runs) < alone - POINT)), 4),
                "steps_per_device": round(float(np.mean(steps[name]))),
            }
            for name, runs in found.items()
        },
    }


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
    lines += [
        f"  {name:18} {figures['accuracy']:6.1f}  worst {figures['worst']:5.1f}  "
        f"worse than alone {100 * figures['worse_share']:4.0f} %"
        for name, figures in row["methods"].items()
    ]
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
