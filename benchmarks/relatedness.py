"""Which estimate of relatedness says from whom a device should learn? Against the true transfer.

    python -m benchmarks.relatedness [--data DIR] [--fleets A,B] [--labels 5,15] [--seeds 0,1,2] [--json]

On real fleets. True transfer: how well the adapter that device i learned alone does on the test windows of
device j, for every two devices. Each estimator must put the sources of a device into that order without the
test windows:

    update_cosine     the server's, from the updates of a few rounds of FedAvg (server/relatedness)
    head_loss, leep   i's adapter on j's labelled windows, those that j trains and holds out
    unsureness        i's adapter on j's windows without their labels
    mmd, frechet      distance of i's and j's features, all windows without labels; `frechet_diagonal` from
                      means and variances alone

Figures: `rank_correlation`, Spearman over the sources of a device, mean over devices; `points_lost`, test
accuracy of the best source minus that of the one that the estimator puts first. `random` knows nothing. Every
estimator has its place: the first needs updates, the next two labels, the others neither.

Beside it the groups that `graftwork-server relatedness` would suggest, once per seed, and the adjusted Rand
index (Hubert & Arabie 1985) of these groups with the domains that the fleet's description names: 1 the same,
0 luck.
"""

import argparse
import contextlib
import itertools
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent import gate
from agent.dataset import Labelled
from agent.objective import comparable_losses
from agent.transferability import (
    frechet,
    gaussian,
    head_loss,
    leep,
    maximum_mean_discrepancy,
    unsureness,
)
from benchmarks.laboratory import Adapters, Laboratory
from benchmarks.rehearsal import FLEETS, data_directory, make_fleet
from protocol import fleet as fleets
from server.relatedness.directions import Directions, Relatedness
from server.relatedness.groups import suggest

if TYPE_CHECKING:
    from agent.engine import Floats

Matrix = NDArray[np.float64]
"""float64 [sources, targets]; of an estimate: the larger, the more related."""

ROUNDS = 5
"""Of training alone for the true transfer, and of FedAvg for the updates."""
WINDOWS = 200
"""Most windows of a device for a distance of features, spread over its time."""
EVERY_LABEL = 1_000_000


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
                row = measure(directory, fleet, labels, seeds)
                results.append(row)
                if not options.json:
                    print(as_text(row), flush=True)
    print(json.dumps({"seeds": len(seeds), "rounds": ROUNDS, "results": results}))


def measure(directory: Path, fleet: str, labels: int, seeds: list[int]) -> dict[str, Any]:
    """Every estimator on a fleet with a budget of labels, over seeds."""
    found: dict[str, list[tuple[float, float]]] = {}
    description = fleets.parse((directory / "fleet" / "fleet.toml").read_text("utf-8"))
    domains = {device.id: device.domain for device in description.devices}
    groups, agreement, devices = [], [], 0
    for seed in seeds:
        package = (directory / f"package-{seed}.zip").read_bytes()
        with (
            contextlib.closing(Laboratory(directory / "fleet", package, seed, labels)) as lab,
            contextlib.closing(Laboratory(directory / "fleet", package, seed, EVERY_LABEL)) as unlabelled,
        ):
            devices = len(lab.devices)
            related = relatedness(lab)
            suggested = suggest(related)
            groups.append(suggested.count)
            agreement.append(adjusted_rand(suggested.labels, [domains[name] for name in related.devices]))
            learned = alone(lab)
            losses, accuracies = transfer(lab, learned)
            place = [related.devices.index(name) for name in lab.devices]
            update_cosine = related.cosine[np.ix_(place, place)]
            others = estimates(lab, learned, windows_of(unlabelled))
            for name, estimate in {"update_cosine": update_cosine, **others}.items():
                scores = (rank_correlation(estimate, -losses), points_lost(estimate, accuracies))
                found.setdefault(name, []).append(scores)
    return {
        "fleet": fleet,
        "labels": labels,
        "devices": devices,
        "groups": groups,
        "adjusted_rand": round(float(np.mean(agreement)), 3),
        "estimators": {
            name: {
                "rank_correlation": round(float(np.mean([score[0] for score in scores])), 3),
                "points_lost": round(100 * float(np.mean([score[1] for score in scores])), 2),
            }
            for name, scores in found.items()
        },
    }


def alone(lab: Laboratory) -> Adapters:
    """What each device learns from its own training windows."""
    adapters: Adapters = dict.fromkeys(lab.devices, lab.initial)
    for number in range(ROUNDS):
        adapters = {
            name: lab.train(adapters[name], bench.training, name, number, "alone")
            for name, bench in lab.devices.items()
        }
    return adapters


def transfer(lab: Laboratory, adapters: Adapters) -> tuple[Matrix, Matrix]:
    """Mean capped loss, and accuracy from 0 to 1, of each source's adapter on each target's test windows."""
    losses, accuracies = [], []
    for adapter in adapters.values():
        row = []
        for bench in lab.devices.values():
            nothing = np.zeros(len(bench.test_labels), np.int64)
            test = Labelled(bench.test_features, bench.test_labels, nothing, nothing)
            found = comparable_losses(lab.engine, adapter, test)
            row.append(-gate.mean(gate.gains(np.zeros_like(found), found)))
        losses.append(row)
        accuracies.append(lab.accuracy(adapter))
    return np.array(losses), np.array(accuracies)


def windows_of(lab: Laboratory) -> dict[str, Matrix]:
    """Features of each device's windows, at most WINDOWS of them, float64 [n, feature_size]."""
    found = {}
    for name, bench in lab.devices.items():
        features = bench.labelled.features
        chosen = np.linspace(0, len(features) - 1, min(WINDOWS, len(features))).astype(int)
        found[name] = features[chosen].astype(np.float64)
    return found


def estimates(lab: Laboratory, adapters: Adapters, windows: dict[str, Matrix]) -> dict[str, Matrix]:
    """What every other estimator says of every two devices.

    Args:
        lab: the fleet.
        adapters: what each device learned alone.
        windows: features without labels, by device.
    """
    names, benches = list(lab.devices), list(lab.devices.values())
    learned = list(adapters.values())

    def by_head(score: Callable[[Matrix, NDArray[np.int64]], float]) -> Matrix:
        def one(adapter: "Floats", target: int) -> float:
            labelled = benches[target].labelled
            logits = lab.engine.predict(adapter, labelled.features).astype(np.float64)
            return score(logits, labelled.labels)

        return np.array([[one(adapter, target) for target in range(len(names))] for adapter in learned])

    def by_distance(distance: Callable[[Any, Any], float], parts: list[Any]) -> Matrix:
        found = np.zeros((len(parts), len(parts)))
        for source, target in itertools.combinations(range(len(parts)), 2):
            found[source, target] = found[target, source] = -distance(parts[source], parts[target])
        return found

    features = [windows[name] for name in names]
    unsure = [
        [
            unsureness(lab.engine.predict(adapter, part.astype(np.float32)).astype(np.float64))
            for part in features
        ]
        for adapter in learned
    ]
    return {
        "head_loss": -by_head(head_loss),
        "leep": by_head(leep),
        "unsureness": -np.array(unsure),
        "mmd": by_distance(maximum_mean_discrepancy, features),
        "frechet": by_distance(frechet, [gaussian(part) for part in features]),
        "frechet_diagonal": by_distance(frechet, [gaussian(part, diagonal=True) for part in features]),
        "random": np.random.Generator(np.random.PCG64(lab.seed)).random((len(names), len(names))),
    }


def relatedness(lab: Laboratory) -> Relatedness:
    """What the server sees in rounds of FedAvg."""
    directions, release = Directions(lab.manifest.parameters), lab.initial
    names = list(lab.devices)
    for number in range(ROUNDS):
        trained = lab.personal(release, number)
        updates = [(trained[name] - release).astype(np.float64) for name in names]
        directions.add_round(number, names, updates, lab.weights.tolist())
        release = lab.mean(trained)
    return directions.relatedness()


def adjusted_rand(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """Agreement of two ways to group the same things, 1 at best, 0 on the mean by luck."""

    def pairs(counts: Iterable[int]) -> float:
        return float(sum(count * (count - 1) / 2 for count in counts))

    both = pairs(Counter(zip(one, other, strict=True)).values())
    first, second, every = pairs(Counter(one).values()), pairs(Counter(other).values()), pairs([len(one)])
    luck, most = first * second / every, (first + second) / 2
    return (both - luck) / (most - luck) if most != luck else 1.0


def rank_correlation(estimate: Matrix, truth: Matrix) -> float:
    """Spearman's, over the other devices as sources of each target; mean over targets."""
    others = ~np.eye(len(estimate), dtype=bool)
    found = []
    for target in range(len(estimate)):
        sources = others[:, target]
        one, other = ranks(estimate[sources, target]), ranks(truth[sources, target])
        if one.std() and other.std():
            found.append(float(np.corrcoef(one, other)[0, 1]))
    return float(np.mean(found)) if found else 0.0


def points_lost(estimate: Matrix, accuracy: Matrix) -> float:
    """Accuracy of each target's best source minus that of the one put first; mean over targets, 0 to 1."""
    own = np.eye(len(estimate), dtype=bool)
    first = np.where(own, -np.inf, estimate).argmax(0)
    best = np.where(own, -np.inf, accuracy).max(0)
    return float(np.mean(best - accuracy[first, np.arange(len(estimate))]))


def ranks(values: Matrix) -> Matrix:
    """Rank of each value from 0, equal values with the mean of theirs, float64 [n]."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return np.asarray((last - (counts - 1) / 2)[inverse], np.float64)


def as_text(row: dict[str, Any]) -> str:
    """A line per estimator."""
    lines = [f"{row['fleet']}, {row['devices']} devices, {row['labels']} labels per class"]
    lines += [
        f"  {name:18} rank correlation {figures['rank_correlation']:6.2f}   "
        f"points lost {figures['points_lost']:5.1f}"
        for name, figures in row["estimators"].items()
    ]
    groups = ", ".join(map(str, row["groups"]))
    return "\n".join([*lines, f"  groups {groups}; agreement with the domains {row['adjusted_rand']:.2f}"])


if __name__ == "__main__":
    main()
