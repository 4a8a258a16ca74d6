"""Our aggregation rules and attacks against ByzFL's on the same updates: do both compute the same?

    python -m benchmarks.oracle [--data DIR] [--fleets demo,sp_sw_har] [--directory DIR] [--json]

Updates: random ones with heavy tails, and the first round of real fleets. Of each, 20 % are replaced by
ByzFL's attacks (SignFlipping, InnerProductManipulation, ALittleIsEnough) or by noise at the server's bound.
They pass the server's norm bound; then both sides aggregate them, ours in integers of 2**-30, with equal
weights. counterparts.py says what corresponds to what, and how large a difference rounding explains. ByzFL
runs in an environment of its own (.venv-peers/byzfl), made on demand: ByzFL, torch and scipy.

Printed is the largest relative difference |ours - theirs| / |theirs| of each rule on each set of updates, and
in brackets the same as a part of what rounding explains. Ends with status 1 if any is more than all of it.

Measured 2026-11-26 on 2 shared x86-64 cores: see docs/results.md.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.update import clip
from benchmarks import robust
from benchmarks.adversaries import Vectors
from benchmarks.counterparts import (
    ATTACK_COUNTERPARTS,
    COUNTERPARTS,
    NO_COUNTERPART,
    Counterpart,
    Steps,
    Vector,
    our_attack,
)
from benchmarks.laboratory import Laboratory
from benchmarks.peers.environment import BYZFL
from protocol.charter import TrainingPolicy
from protocol.quantisation import FRACTION_BITS, MAX_VALUE, to_float
from server import rules
from server.aggregation import bound_norm
from server.intake import largest_norm

PROGRAM = Path(__file__).resolve().parent / "peers" / "byzfl_oracle.py"
SHARE = 0.2
LABELS = 15
HEAVY = "heavy tails"
BOUND = largest_norm(TrainingPolicy())
ATTACKS: Mapping[str, Steps] = {
    "sign flip": [("SignFlipping", {})],
    "ALIE 1.5": [("ALittleIsEnough", {"tau": 1.5})],
    "IPM 0.5": [("InnerProductManipulation", {"tau": 0.5})],
    "IPM 10": [("InnerProductManipulation", {"tau": 10.0})],
}
"""ByzFL's own, with which updates are replaced."""
Call = tuple[str, str, Steps]
"""Name of the result, name of the table, what is applied to it."""


def main() -> None:
    """Compare, print a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of the data sets (default: $GRAFTWORK_DATA)")
    parser.add_argument("--fleets", default=",".join(robust.FLEETS), help="names, comma-separated, or none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="keeps fleets and backbones for the next time")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    options = parser.parse_args()
    interpreter = BYZFL.make()
    sets = {HEAVY: heavy_tails(options.seed)}
    with tempfile.TemporaryDirectory() as folder:
        for fleet in options.fleets.split(",") if options.fleets else ():
            print(f"{fleet}: a round of updates", file=sys.stderr, flush=True)
            directory = (options.directory or Path(folder)) / fleet
            robust.make(directory, fleet, options.data, [options.seed])
            sets[fleet] = first_round(directory, options.seed)
    rows = [row for name, honest in sets.items() for row in compared(interpreter, name, honest)]
    attacks = {name: attack_differences(interpreter, honest) for name, honest in sets.items()}
    if not options.json:
        print(table(rows, list(sets)))
    beyond = sorted({row["rule"] for row in rows if row["part"] > 1})
    print(
        json.dumps(
            {
                "beyond_rounding": beyond,
                "largest_relative_difference": {
                    rule: _largest(rows, rule, "relative") for rule in COUNTERPARTS
                },
                "attacks_relative_difference": attacks,
                "multi_krum_as_in_the_paper": _largest(rows, "multi_krum", "as_in_the_paper"),
                "no_counterpart": NO_COUNTERPART,
                "byzfl": BYZFL.alone[0],
                "results": rows,
            }
        )
    )
    sys.exit(1 if beyond else 0)


def heavy_tails(seed: int, updates: int = 20, parameters: int = 2000) -> Vectors:
    """Student's t with 3 degrees of freedom around a common direction, devices of unlike lengths."""
    random = np.random.default_rng(seed)
    drawn = 0.02 * random.standard_t(3, (updates, parameters)) + 0.02 * random.standard_normal(parameters)
    return np.asarray(drawn * random.lognormal(0, 0.5, (updates, 1)))


def first_round(directory: Path, seed: int) -> Vectors:
    """What the devices of a fleet would send in a first round, float64 [devices, parameters]."""
    package = robust.package(directory, seed)
    with contextlib.closing(Laboratory(directory / "fleet", package, seed, LABELS)) as lab:
        trained = [lab.train(lab.initial, bench.training, name) for name, bench in lab.devices.items()]
        return np.array([clip(one - lab.initial, lab.policy.clipping_bound) for one in trained], np.float64)


def answers(interpreter: Path, tables: Mapping[str, Vectors], calls: Sequence[Call]) -> dict[str, Vectors]:
    """What ByzFL gives for each call, by the result's name."""
    text = json.dumps([{"result": result, "vectors": name, "steps": steps} for result, name, steps in calls])
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "calls.npz", Path(folder) / "results.npz"
        arrays: dict[str, Any] = {"calls": np.array(text), **tables}
        np.savez(asked, **arrays)
        # Isolated: no folder of ours is on its path.
        subprocess.run([str(interpreter), "-I", str(PROGRAM), str(asked), str(answered)], check=True)
        with np.load(answered) as results:
            return {name: results[name] for name in results.files}


def attacked(interpreter: Path, honest: Vectors, seed: int = 0) -> dict[str, Vectors]:
    """The updates of a round by attack, as the rules get them: multiples of 2**-30 within the norm bound."""
    hostile = max(1, round(SHARE * len(honest)))
    others = honest[hostile:]
    sent = answers(
        interpreter, {"others": others}, [(name, "others", steps) for name, steps in ATTACKS.items()]
    )
    noise = np.random.default_rng(seed).standard_normal((hostile, honest.shape[1]))
    rounds = {name: np.concatenate([np.tile(one, (hostile, 1)), others]) for name, one in sent.items()}
    rounds["none"] = honest
    rounds["noise"] = np.concatenate([noise * BOUND / np.linalg.norm(noise, axis=1, keepdims=True), others])
    return {name: on_grid(updates) for name, updates in rounds.items()}


def on_grid(updates: Vectors) -> Vectors:
    """What comes out of the server's intake, without the quantiser."""
    fixed = np.rint(np.ldexp(np.clip(updates, -MAX_VALUE, MAX_VALUE), FRACTION_BITS)).astype(np.int64)
    return np.array([to_float(bound_norm(update, BOUND)) for update in fixed])


def compared(interpreter: Path, name: str, honest: Vectors) -> list[dict[str, Any]]:
    """Every rule on every attack on one set of updates."""
    rounds = attacked(interpreter, honest)
    tables, calls = {}, []
    for attack, updates in rounds.items():
        for rule, counterpart in COUNTERPARTS.items():
            key = f"{attack}, {rule}"
            tables[key] = updates - counterpart.shift(updates)
            calls.append((key, key, counterpart.steps(updates, counterpart.policy(updates))))
    theirs = answers(interpreter, tables, calls)
    rows = []
    for attack, updates in rounds.items():
        for rule, counterpart in COUNTERPARTS.items():
            aggregate = theirs[f"{attack}, {rule}"] + counterpart.shift(updates)
            rows.append(
                {
                    "updates": name,
                    "attack": attack,
                    "rule": rule,
                    **differences(counterpart, updates, aggregate),
                }
            )
    return rows


def differences(counterpart: Counterpart, updates: Vectors, theirs: Vector) -> dict[str, float]:
    """How far our aggregate is from ByzFL's: relative to theirs, and as a part of what rounding explains."""
    policy = counterpart.policy(updates)
    found = float(np.linalg.norm(counterpart.ours(updates) - theirs))
    length = float(np.linalg.norm(theirs))
    row = {
        "relative": _short(found / length),
        "part": _short(found / counterpart.bound(updates, theirs, policy)),
    }
    if counterpart.rule == "multi_krum":
        paper = rules.make(policy, updates.shape[1])
        for update in np.rint(np.ldexp(updates, FRACTION_BITS)).astype(np.int64):
            paper.add(update, 1)
        row["as_in_the_paper"] = _short(float(np.linalg.norm(to_float(paper.mean()) - theirs)) / length)
    return row


def attack_differences(interpreter: Path, honest: Vectors) -> dict[str, float]:
    """Relative difference of our attacks from ByzFL's, by name."""
    random = np.random.default_rng(0)
    calls = [(name, "honest", attack.steps(honest)) for name, attack in ATTACK_COUNTERPARTS.items()]
    theirs = answers(interpreter, {"honest": honest}, calls)
    found = {}
    for name, attack in ATTACK_COUNTERPARTS.items():
        expected = attack.factor * theirs[name]
        difference = np.linalg.norm(our_attack(name, honest, BOUND, random) - expected)
        found[name] = _short(float(difference / np.linalg.norm(expected)))
    return found


def table(rows: Sequence[Mapping[str, Any]], sets: Sequence[str]) -> str:
    """Markdown: the largest difference over the attacks."""
    lines = ["| rule | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
    for rule in COUNTERPARTS:
        cells = []
        for name in sets:
            mine = [row for row in rows if row["updates"] == name]
            cells.append(f"{_largest(mine, rule, 'relative'):.1e} ({_largest(mine, rule, 'part'):.2f})")
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _largest(rows: Sequence[Mapping[str, Any]], rule: str, figure: str) -> float:
    return max(float(row[figure]) for row in rows if row["rule"] == rule)


if __name__ == "__main__":
    main()
