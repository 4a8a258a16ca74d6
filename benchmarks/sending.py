"""What waiting costs and saves: accuracy and bytes of fleets whose devices send less often.

    python -m benchmarks.sending [--data DIR] [--fleets sp_sw_har,...] [--seeds 0,1,2] [--json] [--plot FILE]

A federation on real recordings in simulated time, a round every two hours for two days (see rehearsal.py),
under several sending policies of the charter: none, quiet hours, a budget of bytes per day (that of the
first day is used up by the model package), and updates withheld until they are large enough, with and
without carrying over what was not sent. Accuracy is the mean over the last releases: of the adapters that
devices use, of those that they trained from the release, and of the release itself.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rehearsal import FLEETS, Outcome, Task, data_directory, make_fleet, rehearse
from protocol.charter import SendingPolicy

HOUR = 3600.0
DAYS = 2
LAST = 6
"""Releases that the accuracy is averaged over."""
QUIET = ("22:00-06:00",)
POLICIES: dict[str, SendingPolicy] = {
    "always": SendingPolicy(),
    "quiet hours, 22 to 6": SendingPolicy(quiet_hours=QUIET),
    "48 KiB a day": SendingPolicy(bytes_per_day=48 * 1024),
    "relative norm 0.06": SendingPolicy(minimum_relative_norm=0.06),
    "relative norm 0.06, nothing carried over": SendingPolicy(minimum_relative_norm=0.06, carry_over=0.0),
    "relative norm 0.12": SendingPolicy(minimum_relative_norm=0.12),
    "relative norm 0.12, nothing carried over": SendingPolicy(minimum_relative_norm=0.12, carry_over=0.0),
}


def main() -> None:
    """Run and print a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of the data sets (default: $GRAFTWORK_DATA)")
    parser.add_argument("--fleets", default=",".join(FLEETS), help="names, comma-separated")
    parser.add_argument("--seeds", default="0", help="of backbone, labels and training")
    parser.add_argument("--labels", type=int, default=15, help="labelled windows per class and device")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--plot", type=Path, help="PNG of accuracy against bytes")
    options = parser.parse_args()
    data, seeds = data_directory(options.data), [int(seed) for seed in options.seeds.split(",")]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for fleet in options.fleets.split(","):
            directory = Path(folder) / fleet
            make_fleet(directory, fleet, data, seeds)
            for name, policy in POLICIES.items():
                print(f"{fleet}: {name}", file=sys.stderr, flush=True)
                tasks = [Task(fleet, directory, seed, options.labels, 0) for seed in seeds]
                row = {"fleet": fleet, "policy": name, **_measure(tasks, policy)}
                results.append(row)
                if not options.json:
                    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if options.plot:
        _plot(options.plot, results)
    print(json.dumps({"days": DAYS, "seeds": len(seeds), "results": results}))


def _measure(tasks: list[Task], policy: SendingPolicy) -> dict[str, Any]:
    """The mean over tasks that differ in their seed."""
    found = [
        rehearse(
            task,
            {"sending": policy},
            pause_seconds=2 * HOUR,
            step_seconds=HOUR / 6,
            duration_seconds=24 * HOUR * DAYS,
        )
        for task in tasks
    ]
    return {
        "releases": round(float(np.mean([len(outcome.accuracy["fleet"]) for outcome in found])), 1),
        "updates": round(float(np.mean([outcome.updates for outcome in found])), 1),
        "kib_up": round(float(np.mean([outcome.bytes_up for outcome in found])) / 1024, 1),
        "accuracy_fleet": _accuracy(found, "fleet"),
        "accuracy_personal": _accuracy(found, "personal"),
        "accuracy_release": _accuracy(found, "release"),
    }


def _accuracy(found: list[Outcome], name: str) -> float:
    return round(100 * float(np.mean([outcome.mean_accuracy(name, LAST) for outcome in found])), 2)


def _plot(path: Path, results: list[dict[str, Any]]) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, and only needed at the end

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    fleets = list(dict.fromkeys(row["fleet"] for row in results))
    figure, axes = plt.subplots(
        1, len(fleets), figsize=(5 * len(fleets), 4.5), layout="constrained", squeeze=False
    )
    for axis, fleet in zip(axes[0], fleets, strict=True):
        for index, row in enumerate(row for row in results if row["fleet"] == fleet):
            axis.scatter(row["kib_up"], row["accuracy_release"], color=f"C{index}", label=row["policy"], s=50)
        axis.set_title(fleet)
        axis.set_xlabel(f"KiB up per device in {DAYS} days")
        axis.set_ylabel("accuracy of the release, %")
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=7, loc="best")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
