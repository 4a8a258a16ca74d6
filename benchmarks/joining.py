"""A device that joins late: does one round bring it what ten brought the others?

    python -m benchmarks.joining [--data DIR] [--fleets A,B] [--labels 5] [--seeds 0,1,2] [--json]

A quarter of the devices of a fleet joins after 20 rounds, four times with another quarter. Each has learned
nothing until then, and is tested after its first release. Beside it: the same devices alone after as much
training, and as they are where they took part from the start, after as many rounds as the table says.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.laboratory import Laboratory
from benchmarks.our_fleet import OurFleet
from benchmarks.rehearsal import FLEETS, data_directory, make_fleet

JOINED_AT = 20
PARTS = 4
SHOWN = (1, 2, 5, 10)
"""Rounds of those that took part from the start."""


def main() -> None:
    """Run and print a line per fleet, and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of the data sets (default: $GRAFTWORK_DATA)")
    parser.add_argument("--fleets", default=",".join(FLEETS), help="names, comma-separated")
    parser.add_argument("--labels", type=int, default=5, help="labelled windows per class and device")
    parser.add_argument("--seeds", default="0,1,2", help="of backbone, labels and training")
    parser.add_argument("--directory", type=Path, help="keeps fleets and backbones for the next time")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    options = parser.parse_args()
    data = data_directory(options.data)
    seeds = [int(text) for text in options.seeds.split(",")]
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for fleet in options.fleets.split(","):
            directory = (options.directory or Path(folder)) / fleet
            print(f"{fleet}: backbones", file=sys.stderr, flush=True)
            make_fleet(directory, fleet, data, seeds)
            runs = []
            for seed in seeds:
                package = (directory / f"package-{seed}.zip").read_bytes()
                with contextlib.closing(
                    Laboratory(directory / "fleet", package, seed, options.labels)
                ) as lab:
                    print(f"{fleet}: seed {seed}", file=sys.stderr, flush=True)
                    runs.append(measure(lab))
            results[fleet] = {name: round(float(np.mean([run[name] for run in runs])), 2) for name in runs[0]}
            if not options.json:
                print(fleet, "  ".join(f"{name} {value:.1f}" for name, value in results[fleet].items()))
    print(json.dumps({"labels": options.labels, "seeds": len(seeds), "fleets": results}))


def measure(lab: Laboratory) -> dict[str, float]:
    """Mean test accuracy in per cent over all devices, by what they did."""
    names = list(lab.devices)
    found: dict[str, float] = {}
    everyone = OurFleet(lab, names)
    for number in range(1, max(SHOWN) + 1):
        everyone.release()
        if number in SHOWN:
            found[f"from the start, round {number}"] = 100 * float(lab.accuracy(everyone.used).mean())
    joined = {}
    for part in range(PARTS):
        late = names[part::PARTS]
        fleet = OurFleet(lab, [name for name in names if name not in late])
        for _ in range(JOINED_AT):
            fleet.release()
        fleet.join(late)
        fleet.release()
        joined.update({name: fleet.used[name] for name in late})
    alone = {
        name: lab.train(lab.initial, bench.labelled, name, JOINED_AT, "local_full")
        for name, bench in lab.devices.items()
    }
    found["alone, as much training"] = 100 * float(lab.accuracy(alone).mean())
    found["joined late, round 1"] = 100 * float(lab.accuracy(joined).mean())
    return found


if __name__ == "__main__":
    main()
