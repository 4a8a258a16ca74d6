"""Do the windows without labels help? Ways to use them on a device, on real fleets, against not using them.

    python -m benchmarks.unlabelled [--data DIR] [--fleets A,B] [--labels 5,15] [--seeds 0,1,2] [--json]

What a fleet has learned after ten rounds is held; then each device uses its unlabelled windows, and what
comes out is tested. Mean accuracy over devices and seeds, in per cent:

    classifier              the device's discriminant classifier, labels alone: what the others stand beside
      + sure windows        with half of the windows of each class, the surest, as if they were labelled
      + all, thrice         with all of them, three times over (hard expectation maximisation)
      + neighbours          by the votes of the 8 nearest windows (label propagation)
      + centred             on windows less the device's mean, the fleet's likewise
    ensemble                of the adapters
      + student             and an adapter that was trained on its labels for the unlabelled windows
    combined                ensemble and classifier: what devices use without more
      + student             the same, taught by it
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent import discriminant
from agent.dataset import Labelled
from agent.discriminant import Discriminant
from agent.engine import Floats
from agent.ensemble import Ensemble, names_in_use, spreads, together
from benchmarks.accuracy import FLEETS
from benchmarks.laboratory import Laboratory
from benchmarks.methods import ROUNDS
from benchmarks.our_fleet import OurFleet
from benchmarks.rehearsal import data_directory, make_fleet
from protocol.discriminant import Statistics
from protocol.package import DISCRIMINANT

NEIGHBOURS = 8
SURE = 0.5

Labels = NDArray[np.int64]


def main() -> None:
    """Run and print a line per fleet and budget, and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of the data sets (default: $GRAFTWORK_DATA)")
    parser.add_argument("--fleets", default=",".join(FLEETS), help="names, comma-separated")
    parser.add_argument("--labels", default="5,15", help="labelled windows per class and device")
    parser.add_argument("--seeds", default="0,1,2", help="of backbone, labels and training")
    parser.add_argument("--directory", type=Path, help="keeps fleets and backbones for the next time")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    options = parser.parse_args()
    data = data_directory(options.data)
    seeds = [int(text) for text in options.seeds.split(",")]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for fleet in options.fleets.split(","):
            directory = (options.directory or Path(folder)) / fleet
            make_fleet(directory, fleet, data, seeds)
            for labels in map(int, options.labels.split(",")):
                runs = []
                for seed in seeds:
                    print(f"{fleet}: {labels} labels, seed {seed}", file=sys.stderr, flush=True)
                    package = (directory / f"package-{seed}.zip").read_bytes()
                    with contextlib.closing(Laboratory(directory / "fleet", package, seed, labels)) as lab:
                        runs.append(measure(lab))
                means = {name: round(float(np.mean([run[name] for run in runs])), 2) for name in runs[0]}
                results.append({"fleet": fleet, "labels": labels, **means})
                if not options.json:
                    figures = "  ".join(f"{name} {value:.1f}" for name, value in means.items())
                    print(f"{fleet}, {labels} labels: {figures}", flush=True)
    print(json.dumps({"seeds": len(seeds), "results": results}))


def measure(lab: Laboratory) -> dict[str, float]:
    """Mean test accuracy in per cent over the devices, by what they do with their unlabelled windows."""
    fleet = OurFleet(lab, list(lab.devices))
    for _ in range(ROUNDS + 1):
        fleet.release()
    others = {name: lab.unlabelled(name) for name in lab.devices}
    centres = {
        name: np.concatenate(
            [lab.engine.embed(bench.labelled.features), lab.engine.embed(others[name])]
        ).mean(axis=0)
        for name, bench in lab.devices.items()
    }
    centred = _means(lab, centres)
    found: dict[str, list[float]] = {}
    for name, bench in lab.devices.items():
        statistics = Statistics.of(
            fleet.members(name)["global"][lab.manifest.task_slices()[DISCRIMINANT]], lab.engine.embedding_size
        )
        embedded, labels = lab.engine.embed(bench.labelled.features), bench.labelled.labels
        more, test = lab.engine.embed(others[name]), lab.engine.embed(bench.test_features)
        start = discriminant.fit(statistics, embedded, labels)
        moved = replace(statistics, means=centred, shared=0.0)
        logits = {
            "classifier": start.logits(test),
            "classifier + centred": discriminant.fit(moved, embedded - centres[name], labels).logits(
                test - centres[name]
            ),
        }
        for way, pseudo in WAYS.items():
            taught = pseudo(statistics, embedded, labels, more)
            logits[f"classifier + {way}"] = taught.logits(test)
        members = fleet.members(name)
        for choice in ("ensemble", "combined"):
            names = names_in_use(choice)
            scales = spreads(lab.engine, names, members, bench.labelled.features)
            teacher = together(names, members, scales)
            logits[choice] = teacher.logits(lab.engine, bench.test_features)
            student = _student(lab, name, teacher, members["personal_full"], others[name])
            scale = spreads(lab.engine, ("student",), {"student": student}, bench.labelled.features)
            logits[f"{choice} + student"] = (
                logits[choice]
                + lab.engine.predict(student, bench.test_features).astype(np.float64) / scale["student"]
            )
        for way, values in logits.items():
            found.setdefault(way, []).append(float(np.mean(values.argmax(1) == bench.test_labels)))
    return {way: 100 * float(np.mean(values)) for way, values in found.items()}


def sure(statistics: Statistics, embedded: Floats, labels: Labels, others: Floats) -> Discriminant:
    """Half of the windows of each class, those with the largest margin, counted as labelled."""
    return _with(statistics, embedded, labels, others, share=SURE, times=1)


def all_thrice(statistics: Statistics, embedded: Floats, labels: Labels, others: Floats) -> Discriminant:
    """Hard expectation maximisation: every window counts for its likeliest class, three times over."""
    return _with(statistics, embedded, labels, others, share=1.0, times=3)


def neighbours(statistics: Statistics, embedded: Floats, labels: Labels, others: Floats) -> Discriminant:
    """The class of most of a window's nearest, labelled ones twice (Zhou et al. 2004), then as labelled."""
    start = discriminant.fit(statistics, embedded, labels)
    if not len(others):
        return start
    everything = np.concatenate([embedded, others]).astype(np.float64) @ start.whitening
    guesses = np.concatenate([labels, start.logits(others).argmax(1)])
    weights = np.where(np.arange(len(everything)) < len(labels), 1.0, 0.5)
    mine = everything[len(labels) :]
    squares = (mine**2).sum(1)[:, None] + (everything**2).sum(1) - 2 * mine @ everything.T
    np.put_along_axis(squares, (np.arange(len(mine)) + len(labels))[:, None], np.inf, 1)
    nearest = np.argsort(squares, axis=1)[:, :NEIGHBOURS]
    votes = np.zeros((len(mine), len(statistics.means)))
    for column in nearest.T:
        np.add.at(votes, (np.arange(len(mine)), guesses[column]), weights[column])
    return discriminant.fit(
        statistics, np.concatenate([embedded, others]), np.concatenate([labels, votes.argmax(1)])
    )


WAYS: Mapping[str, Callable[[Statistics, Floats, Labels, Floats], Discriminant]] = {
    "sure windows": sure,
    "all, thrice": all_thrice,
    "neighbours": neighbours,
}


def _with(
    statistics: Statistics, embedded: Floats, labels: Labels, others: Floats, *, share: float, times: int
) -> Discriminant:
    found = discriminant.fit(statistics, embedded, labels)
    for _ in range(times if len(others) else 0):
        logits = found.logits(others)
        guesses, ordered = logits.argmax(1), np.sort(logits, axis=1)
        margin, kept = ordered[:, -1] - ordered[:, -2], np.zeros(len(others), bool)
        for label in np.unique(guesses):
            members = np.flatnonzero(guesses == label)
            best = members[np.argsort(-margin[members])]
            kept[best[: max(1, int(share * len(best)))]] = True
        found = discriminant.fit(
            statistics, np.concatenate([embedded, others[kept]]), np.concatenate([labels, guesses[kept]])
        )
    return found


def _student(lab: Laboratory, name: str, teacher: Ensemble, start: Floats, others: Floats) -> Floats:
    """An adapter that was trained on the device's labels and on what a teacher says of the other windows."""
    bench = lab.devices[name]
    guesses = teacher.logits(lab.engine, others).argmax(1)
    nowhere = np.zeros(len(guesses), np.int64)
    taught = Labelled(others, guesses, nowhere, nowhere)
    both = Labelled(
        *(
            np.concatenate([getattr(part, field) for part in (bench.labelled, taught)])
            for field in ("features", "labels", "recording", "start")
        )
    )
    return lab.train(start, both, name, "student")


def _means(lab: Laboratory, centres: Mapping[str, Floats]) -> NDArray[np.float64]:
    """The fleet's mean of each class on windows less their device's mean, float64 [classes, dimension]."""
    sums = np.zeros((lab.engine.classes, lab.engine.embedding_size))
    counts = np.zeros(lab.engine.classes)
    for name, bench in lab.devices.items():
        embedded = lab.engine.embed(bench.labelled.features) - centres[name]
        for label in np.unique(bench.labelled.labels):
            sums[label] += embedded[bench.labelled.labels == label].mean(axis=0)
            counts[label] += 1
    return np.asarray(sums / np.maximum(counts, 1)[:, None])


if __name__ == "__main__":
    main()
