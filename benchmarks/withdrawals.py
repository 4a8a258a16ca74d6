"""Does the server's guard withdraw bad releases, and leave good ones alone? On real fleets.

    python -m benchmarks.withdrawals [--data DIR] [--fleets A,B] [--labels 5,15] [--seeds 0,1,2] [--json]

Rounds of FedAvg by the devices' own training. After each one every device compares the release with the one
before on its held-out windows, as an agent does, and the server's guard judges the reports under the default
charter. Beside each clean release stand poisoned ones of the same round, which are judged and then dropped:

    reversed             the release before minus what the round learned
    reversed, at bound   the same, as long as the charter lets an update be: what one device that claims the
                         largest weight makes of a release under the rule "mean"
    noise, at bound      the release before plus noise of that length

Figures: clean releases that were withdrawn (`withdrawn`, of `releases`), poisoned ones that were caught, and
of those that cost five points or more of mean test accuracy (`harmful`) how many were missed.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agent import gate
from agent.objective import comparable_losses
from benchmarks.laboratory import Laboratory
from benchmarks.rehearsal import FLEETS, data_directory, make_fleet
from protocol.charter import WithdrawalPolicy
from server.guard import judge

if TYPE_CHECKING:
    from agent.engine import Floats

ROUNDS = 10
HARM = 0.05
"""Of mean test accuracy."""


@dataclass
class Count:
    """Releases of a kind."""

    releases: int = 0
    withdrawn: int = 0
    harmful: int = 0
    missed: int = 0
    """Harmful ones that were not withdrawn."""


@dataclass
class Tally:
    """What became of a fleet's releases."""

    devices: int = 0
    kinds: dict[str, Count] = field(default_factory=dict)


def main() -> None:
    """Run and print a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of the data sets (default: $GRAFTWORK_DATA)")
    parser.add_argument(
        "--directory", type=Path, help="keeps fleets and backbones (default: a temporary one)"
    )
    parser.add_argument("--fleets", default=",".join(FLEETS), help="names, comma-separated")
    parser.add_argument("--labels", default="5,15", help="labelled windows per class and device")
    parser.add_argument("--seeds", default="0,1,2", help="of backbone, labels and training")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    options = parser.parse_args()
    data, seeds = data_directory(options.data), [int(text) for text in options.seeds.split(",")]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for fleet in options.fleets.split(","):
            directory = (options.directory or Path(folder)) / fleet
            print(f"{fleet}: backbones", file=sys.stderr, flush=True)
            make_fleet(directory, fleet, data, seeds)
            for labels in map(int, options.labels.split(",")):
                print(f"{fleet}: {labels} labels", file=sys.stderr, flush=True)
                tally = Tally()
                for seed in seeds:
                    package = (directory / f"package-{seed}.zip").read_bytes()
                    with contextlib.closing(Laboratory(directory / "fleet", package, seed, labels)) as lab:
                        run(lab, tally)
                row = {
                    "fleet": fleet,
                    "labels": labels,
                    "devices": tally.devices,
                    "kinds": {name: vars(count) for name, count in tally.kinds.items()},
                }
                results.append(row)
                if not options.json:
                    print(as_text(row), flush=True)
    print(json.dumps({"seeds": len(seeds), "rounds": ROUNDS, "results": results}))


def run(lab: Laboratory, tally: Tally) -> None:
    """Rounds of a fleet, with every release judged."""
    tally.devices = len(lab.devices)
    before: Floats = lab.initial
    random = np.random.Generator(np.random.PCG64(lab.seed))
    for number in range(ROUNDS):
        clean = lab.mean(lab.personal(before, number))
        learned = clean - before
        poisons = {
            "reversed": -learned,
            "reversed, at bound": -at_bound(lab, learned),
            "noise, at bound": at_bound(lab, random.normal(size=len(learned)).astype(np.float32)),
        }
        releases = {"clean": clean, **{name: before + poison for name, poison in poisons.items()}}
        accuracy = float(lab.accuracy(before).mean())
        for name, release in releases.items():
            count = tally.kinds.setdefault(name, Count())
            withdrawn = withdrawal(lab, before, release)
            harmful = float(lab.accuracy(release).mean()) <= accuracy - HARM
            count.releases += 1
            count.withdrawn += withdrawn
            count.harmful += harmful
            count.missed += harmful and not withdrawn
        before = clean


def at_bound(lab: Laboratory, vector: "Floats") -> "Floats":
    """A vector as long as an update may be."""
    return np.asarray(vector * (lab.policy.clipping_bound / np.linalg.norm(vector)), np.float32)


def withdrawal(lab: Laboratory, before: "Floats", release: "Floats") -> bool:
    """Whether the devices' reports on a release withdraw it."""
    reports = {}
    for name, bench in lab.devices.items():
        old, new = (comparable_losses(lab.engine, adapter, bench.holdout) for adapter in (before, release))
        reports[name] = {
            "release_gain": gate.mean(gate.gains(old, new)),
            "holdout_windows": len(bench.holdout),
            "compared_with": 0,
        }
    return judge(reports, 1, WithdrawalPolicy()).withdraw


def as_text(row: dict[str, Any]) -> str:
    """A line per kind of release."""
    lines = [f"{row['fleet']}, {row['devices']} devices, {row['labels']} labels per class"]
    lines += [
        f"  {name:20} {count['withdrawn']:3} of {count['releases']} withdrawn; harmful {count['harmful']:3}, "
        f"missed {count['missed']:3}"
        for name, count in row["kinds"].items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
