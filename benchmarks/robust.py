"""Accuracy of the honest devices under attack: every rule against every attack, on whole fleets.

    python -m benchmarks.robust [--data DIR] [--quick] [--seeds 0,1] [--shares 0.1,0.2] [--plot FILE] [--json]

For each fleet and seed: pre-trains a backbone (the demo fleet comes with one), then runs a federation for
every rule, attack and share of attackers (attacked_fleet.py, adversaries.py): sign flip, ALIE, IPM, label
flip, noise as long as the server lets pass, and worse variants. Share 0 is the same federation without
attackers. `--quick` is one fleet (the demo, which needs no data), seed 0, the default rule and 10 %.

`points_lost` in the JSON is what the default rule loses under its worst attack with 10 % attackers, on the
worst fleet: accuracy of the release on the same honest devices without attack, under the same rule, minus
that under attack; mean over the seeds. The goal is 2 points at most.

Whether the rules and attacks are what their names say is oracle.py's question.

Measured 2026-11-26 on 2 shared x86-64 cores: see docs/results.md.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adversaries import ATTACKS
from benchmarks.attacked_fleet import AttackedFleet
from benchmarks.laboratory import Laboratory
from benchmarks.rehearsal import data_directory, make_fleet
from server.rules.policy import RULES, AggregationPolicy

DEMO = "demo"
FLEETS = ("sp_sw_har", DEMO)
GOAL_SHARE, GOAL_POINTS = 0.1, 2.0
"""Share of attackers at which the default rule may lose as many points at most."""
NO_ATTACK = "none"
FIGURES = ("release", "personal", "classifier")

Row = dict[str, Any]


def main() -> None:
    """Run and print a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of the data sets (default: $GRAFTWORK_DATA)")
    parser.add_argument(
        "--quick", action="store_true", help="the demo fleet, seed 0, default rule, 10 %%: half a minute"
    )
    parser.add_argument("--fleets", help=f"names, comma-separated (default: {','.join(FLEETS)})")
    parser.add_argument("--rules", help="names, comma-separated (default: all)")
    parser.add_argument("--shares", help="of attackers, each above 0, comma-separated (default: 0.1,0.2)")
    parser.add_argument("--seeds", help="of backbone, labels and training (default: 0,1)")
    parser.add_argument("--labels", type=int, default=15, help="labelled windows per class and device")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--directory", type=Path, help="keeps fleets and backbones for the next time")
    parser.add_argument("--plot", type=Path, help="PNG of points lost by rule and attack")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    options = parser.parse_args()
    quick = options.quick
    fleets = (options.fleets or (DEMO if quick else ",".join(FLEETS))).split(",")
    rules = (options.rules or (AggregationPolicy.rule if quick else ",".join(RULES))).split(",")
    shares = [float(share) for share in (options.shares or ("0.1" if quick else "0.1,0.2")).split(",")]
    seeds = [int(seed) for seed in (options.seeds or ("0" if quick else "0,1")).split(",")]
    unknown = sorted(set(rules) - set(RULES))
    if unknown or not all(0 < share < 1 for share in shares):
        parser.error(f"expected rules of {', '.join(RULES)}, and shares above 0 and below 1")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        kept = options.directory or Path(folder)
        for fleet in fleets:
            print(f"{fleet}: recordings and backbones", file=sys.stderr, flush=True)
            make(kept / fleet, fleet, options.data, seeds)
            found = [
                measure(kept / fleet, seed, rules, shares, labels=options.labels, rounds=options.rounds)
                for seed in seeds
            ]
            rows += [{"fleet": fleet, **row} for row in averaged(found)]
    if not options.json:
        for fleet in fleets:
            print(table([row for row in rows if row["fleet"] == fleet]), flush=True)
    if options.plot:
        plot(options.plot, rows)
    print(json.dumps(summary(rows) | {"seeds": seeds, "rounds": options.rounds, "results": rows}))


def make(directory: Path, fleet: str, data: str | None, seeds: list[int]) -> None:
    """Prepare a fleet and its packages; what is there already is kept."""
    if fleet != DEMO:
        make_fleet(directory, fleet, data_directory(data), seeds)
    elif not (directory / "fleet").exists():
        command = [sys.executable, "-m", "simulation", "generate", str(directory / "fleet")]
        subprocess.run(command, check=True, capture_output=True)


def measure(
    directory: Path, seed: int, rules: Sequence[str], shares: Sequence[float], *, labels: int, rounds: int
) -> list[Row]:
    """Run every rule under every attack with one seed."""
    with contextlib.closing(Laboratory(directory / "fleet", package(directory, seed), seed, labels)) as lab:
        fleet = AttackedFleet(lab)
        rows = []
        for rule in rules:
            policy = AggregationPolicy(rule=rule)
            clean = fleet.run(policy, rounds)
            everyone = fleet.mean(clean, frozenset())
            rows.append(_row(rule, NO_ATTACK, 0.0, everyone, everyone))
            for share in shares:
                hostile = fleet.attackers(share)
                before = fleet.mean(clean, hostile)
                rows.append(_row(rule, NO_ATTACK, share, before, before))
                for number, (name, attack) in enumerate(ATTACKS.items(), 1):
                    found = fleet.run(policy, rounds, attack=attack, attackers=hostile)
                    rows.append(_row(rule, name, share, fleet.mean(found, hostile), before))
                    print(
                        f"{directory.name}: seed {seed}, {rule}, {100 * share:.0f} % attackers, {name} "
                        f"({number} of {len(ATTACKS)}): {rows[-1]['release_lost']:.1f} points lost, of "
                        f"personal adapters {rows[-1]['personal_lost']:.1f}",
                        file=sys.stderr,
                        flush=True,
                    )
    return rows


def averaged(runs: list[list[Row]]) -> list[Row]:
    """The mean over runs that differ in their seed, and what the release loses with each of them."""
    return [
        {
            name: round(float(np.mean([row[name] for row in same])), 2) if isinstance(value, float) else value
            for name, value in same[0].items()
            if name != "share"
        }
        | {
            "share": same[0]["share"],
            "release_lost_by_seed": [round(row["release_lost"], 2) for row in same],
        }
        for same in zip(*runs, strict=True)
    ]


def summary(rows: list[Row]) -> Row:
    """What the default rule loses in the worst case with as many attackers as the goal speaks of."""
    default = AggregationPolicy.rule
    counted = [row for row in rows if row["rule"] == default and row["share"] == GOAL_SHARE]
    if not counted:
        return {"default_rule": default}
    worst = max(counted, key=lambda row: row["release_lost"])
    return {
        "default_rule": default,
        "points_lost": worst["release_lost"],
        "worst_attack": worst["attack"],
        "worst_fleet": worst["fleet"],
        "personal_points_lost": max(row["personal_lost"] for row in counted),
        "classifier_points_lost": max(row["classifier_lost"] for row in counted),
        "goals": {"points_lost": GOAL_POINTS},
    }


def table(rows: list[Row]) -> str:
    """Markdown: accuracy without attack, and points lost, "release / personal / classifier"."""
    attacks = list(ATTACKS)
    clean = [row for row in rows if row["share"] == 0.0]
    lines = [
        f"\n{rows[0]['fleet']}, no attackers: release / personal / classifier, %\n",
        "| " + " | ".join(row["rule"] for row in clean) + " |",
        "|---" * len(clean) + "|",
        "| " + " | ".join(_cell(row, "") for row in clean) + " |",
    ]
    for share in sorted({row["share"] for row in rows} - {0.0}):
        lines += [
            f"\n{rows[0]['fleet']}, {100 * share:.0f} % attackers\n",
            "| rule | no attack | " + " | ".join(attacks) + " |",
            "|---" * (len(attacks) + 2) + "|",
        ]
        for rule in dict.fromkeys(row["rule"] for row in rows):
            mine = {row["attack"]: row for row in rows if row["rule"] == rule and row["share"] == share}
            cells = [_cell(mine[NO_ATTACK], ""), *(_cell(mine[attack], "_lost") for attack in attacks)]
            lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(target: Path, rows: list[Row]) -> None:
    """Draw points lost by rule and attack at the smallest share of attackers, a panel for each fleet."""
    import matplotlib as mpl  # noqa: PLC0415 - only for the plot

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    fleets = list(dict.fromkeys(row["fleet"] for row in rows))
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    share = min(row["share"] for row in rows if row["share"])
    figure, axes = plt.subplots(1, len(fleets), figsize=(7 * len(fleets), 4.5), squeeze=False)
    for axis, fleet in zip(axes[0], fleets, strict=True):
        chosen = {
            (row["rule"], row["attack"]): row["release_lost"]
            for row in rows
            if row["fleet"] == fleet and row["share"] == share
        }
        values = np.array([[chosen[rule, attack] for attack in ATTACKS] for rule in rules])
        axis.imshow(values, cmap="Reds", vmin=0, vmax=10, aspect="auto")
        for (y, x), value in np.ndenumerate(values):
            axis.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=8)
        axis.set_xticks(range(len(ATTACKS)), list(ATTACKS), rotation=35, ha="right", fontsize=8)
        axis.set_yticks(range(len(rules)), rules, fontsize=8)
        axis.set_title(f"{fleet}: points that the release loses, {100 * share:.0f} % attackers", fontsize=9)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def package(directory: Path, seed: int) -> bytes:
    """The model package of a prepared fleet."""
    if directory.name == DEMO:
        return (resources.files("simulation") / "demo" / "vibration.zip").read_bytes()
    return (directory / f"package-{seed}.zip").read_bytes()


def _cell(row: Row, suffix: str) -> str:
    """The figures of a row side by side; the classifier's only where the package has a head."""
    shown = FIGURES if row["with_classifier"] else FIGURES[:2]
    return " / ".join(f"{row[name + suffix]:.1f}" for name in shown)


def _row(rule: str, attack: str, share: float, found: Any, before: Any) -> Row:
    return {
        "rule": rule,
        "attack": attack,
        "share": share,
        "release": found.release,
        "release_lost": before.release - found.release,
        "personal": found.personal,
        "personal_lost": before.personal - found.personal,
        "with_classifier": before.classifier > 0,
        "classifier": found.classifier,
        "classifier_lost": before.classifier - found.classifier,
    }


if __name__ == "__main__":
    main()
