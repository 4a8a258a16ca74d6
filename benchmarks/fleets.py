"""Accuracy and bytes of whole federations on the imported real data sets.

    python -m benchmarks.fleets --data DIR [--labels 5,15,50] [--seeds 0,1,2] [--json]

For each fleet and label budget: pre-trains a backbone on the source devices (once per fleet and seed), runs
`graftwork-simulate run` with real processes and a real broker, and averages over the seeds. `DIR` holds the
data sets' folders ($GRAFTWORK_DATA by default).

Measured 2026-11-23 and 24 on 2 shared x86-64 cores, 10 rounds: see docs/results.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rehearsal import data_directory, make_fleet

FLEETS = ("gearbox_vibration", "sp_sw_har", "skab_valve", "smellnet_gas", "fsdd_audio")
FIGURES = (
    "accuracy_backbone",
    "accuracy_local",
    "accuracy_fleet",
    "accuracy_release",
    "devices_worse",
    "bits_per_parameter",
    "body_bits_per_parameter",
    "seconds",
)


def main() -> None:
    """Run and print a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of the data sets (default: $GRAFTWORK_DATA)")
    parser.add_argument("--fleets", default=",".join(FLEETS), help="names, comma-separated")
    parser.add_argument("--labels", default="5,15,50", help="labelled windows per class and device")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    options = parser.parse_args()
    data = data_directory(options.data)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for fleet in options.fleets.split(","):
            target = Path(folder) / fleet
            make_fleet(target, fleet, data, [int(seed) for seed in options.seeds.split(",")])
            runs: dict[int, list[dict[str, Any]]] = {int(labels): [] for labels in options.labels.split(",")}
            for seed in options.seeds.split(","):
                package = target / f"package-{seed}.zip"
                for labels, found in runs.items():
                    found.append(_simulate(target, package, labels, seed, options.rounds))
            for labels, found in runs.items():
                row = {"fleet": fleet, "labels_per_class": labels, "devices": found[0]["devices"]}
                row |= {name: round(float(np.mean([run[name] for run in found])), 4) for name in FIGURES}
                results.append(row)
                if not options.json:
                    print(_line(row), flush=True)
    print(json.dumps({"rounds": options.rounds, "seeds": len(options.seeds.split(",")), "results": results}))


def _simulate(target: Path, package: Path, labels: int, seed: str, rounds: int) -> dict[str, Any]:
    out = _run(
        "simulation", "run", "--data", str(target / "fleet"), "--package", str(package), "--seed", seed,
        "--labels-per-class", str(labels), "--rounds", str(rounds), "--directory", str(target / "run"),
    )  # fmt: skip
    summary: dict[str, Any] = json.loads(out.splitlines()[-1])
    return summary


def _run(*arguments: str) -> str:
    result = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{result.stderr}")
    return result.stdout


def _line(row: dict[str, Any]) -> str:
    backbone, alone, fleet = (100 * row[f"accuracy_{name}"] for name in ("backbone", "local", "fleet"))
    return (
        f"{row['fleet']:18} {row['labels_per_class']:3} labels: "
        f"backbone {backbone:5.1f}  alone {alone:5.1f}  "
        f"fleet {fleet:5.1f}  worse {row['devices_worse']:4.1f} of {row['devices']}  "
        f"{row['bits_per_parameter']:.2f} bit"
    )


if __name__ == "__main__":
    main()
