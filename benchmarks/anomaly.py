"""Anomaly detection without labels: AUROC and F1 of a fleet, of devices alone, and of IsolationForest.

    python -m benchmarks.anomaly --data DIR [--seeds 0,1,2] [--rounds 10] [--json]

For each fleet and seed: pre-trains a backbone, gives its package a head for anomaly detection, and runs a
whole federation in one process: server, agents, recordings and training are the real ones, broker and clock
are simulated. `both` trains classification and anomaly detection, `apart` anomaly detection alone. Then, on
test recordings that no device saw, of every window after the first ones of its recording:

    alone     the density that the device learned without the fleet
    fleet     the one that it uses
    release   the fleet's, as it is
    diagonal  the head that the package brought: deviations from the first windows, and no more

and scikit-learn's IsolationForest (`pip install scikit-learn`; left out where it is not there), on the same
windows and without labels:

    forest_rows     fitted to the rows of the first windows, scores of rows averaged by window
    forest_windows  fitted to mean and deviation of each channel in the first windows
    forest_ours     fitted to our deviations of all the device's first windows

AUROC and F1 are means over the devices. Thresholds of `forest_rows` and `forest_windows` are scikit-learn's
own; that of `forest_ours` is chosen like ours, on held-out first windows. Only skab_valve has anomalies that
begin after a normal start, so the defaults were chosen on it, and there is no second fleet to confirm them.

Measured 2026-11-24 on 2 shared x86-64 cores: see docs/results.md.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from agent import ensemble
from agent.anomaly import QUANTILE, References
from agent.density import Doubles, standardise
from agent.engine import Floats
from agent.installation import Installation
from agent.onnxruntime_engine import OnnxruntimeEngine
from agent.store import Store
from benchmarks.rehearsal import data_directory, make_fleet
from models.anomaly_head import add_anomaly_head
from protocol.charter import TrainingPolicy
from protocol.package import ANOMALY
from protocol.signing import PrivateKey
from server.round import RoundPolicy
from simulation.anomaly_evaluation import UnseenWindows, auroc, f1, score_recordings, windows_of
from simulation.experiment import Experiment, Participant, Settings, prepare
from simulation.in_process import InProcessFederation

try:
    from sklearn.ensemble import IsolationForest
except ImportError:
    IsolationForest = None

FLEETS = ("skab_valve",)
HEADS = {"alone": "local", "fleet": ANOMALY, "release": "global", "diagonal": "initial"}
"""By name, the adapter, or the head alone, in a device's store."""
MODES = {"both": ("classification", "anomaly"), "apart": ("anomaly",)}
Figures = dict[str, float]


def main() -> None:
    """Run and print a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of the data sets (default: $GRAFTWORK_DATA)")
    parser.add_argument("--fleets", default=",".join(FLEETS), help="names, comma-separated")
    parser.add_argument("--seeds", default="0,1,2", help="of backbone, labels and training")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--labels", type=int, default=15, help="labelled windows per class, for both (15)")
    parser.add_argument("--rank", type=int, default=8, help="directions of the head")
    parser.add_argument("--reference-windows", type=int, default=TrainingPolicy.reference_windows)
    parser.add_argument("--directory", type=Path, help="keeps fleets and backbones for the next time")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        kept = options.directory or Path(folder)
        for fleet in options.fleets.split(","):
            make_fleet(kept / fleet, fleet, data_directory(options.data), seeds)
            for seed in seeds:
                found = _measure(kept / fleet, seed, options)
                results.append({"fleet": fleet, "seed": seed, **found})
                print(results[-1], file=sys.stderr, flush=True)
    figures = [{name: row for name, row in result.items() if isinstance(row, dict)} for result in results]
    means = averaged(figures)
    if not options.json:
        for name, row in means.items():
            print(f"{name:16} " + "  ".join(f"{figure} {value:.3f}" for figure, value in row.items()))
    print(json.dumps({"seeds": len(seeds), "rounds": options.rounds, "mean": means, "results": results}))


def _measure(directory: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    package = add_anomaly_head(
        (directory / f"package-{seed}.zip").read_bytes(), options.rank, PrivateKey.generate()
    )
    found: dict[str, Any] = {}
    for mode, tasks in MODES.items():
        with tempfile.TemporaryDirectory() as run:
            policy = TrainingPolicy(tasks=tasks, reference_windows=options.reference_windows)
            settings = Settings(options.rounds, options.labels, seed, training=policy)
            experiment = prepare(Path(run), directory / "fleet", settings)
            found |= _federate(experiment, package, mode)
    return found


def _federate(experiment: Experiment, package: bytes, mode: str) -> dict[str, Figures]:
    """Run a federation, and test what every device ends with; means over the devices."""
    settings, programs = experiment.settings, experiment.directory / "programs"
    spools = {device.device.id: device.directory / "spool" for device in experiment.participants}
    policy = RoundPolicy(minimum_devices=2, gather_seconds=10.0, pause_seconds=1.0, rounds=settings.rounds)
    with InProcessFederation(
        programs, package, spools, policy, training=settings.training, training_seed=settings.seed
    ) as federation:
        federation.run()
        rows = [
            _test(experiment, device, federation.agent_stores[device.device.id], mode)
            for device in experiment.participants
        ]
    return {
        name: {kind: _mean([row[name][kind] for row in rows]) for kind in rows[0][name]} for name in rows[0]
    }


def _test(experiment: Experiment, participant: Participant, store: Store, mode: str) -> dict[str, Figures]:
    device, training = participant.device.id, experiment.settings.training
    installation = Installation(experiment.directory / "programs" / device / "packages", ())
    package = store.state().package
    manifest = installation.manifest(package)
    engine = OnnxruntimeEngine(installation.path(package), manifest)
    references, unseen = windows_of(experiment, participant, engine, manifest, training)
    count, part = training.reference_windows, manifest.task_slices()[ANOMALY]
    found: dict[str, Figures] = {}
    for name, kept in HEADS.items():
        adapter = store.adapter(kept)
        if adapter is None:
            sys.exit(f"{device}: no adapter {kept!r} in its store")
        head = adapter if kept == ANOMALY else adapter[part]
        score, truth = score_recordings(head, unseen, count)
        flagged = score > references.threshold(head)
        found[f"{mode}_{name}"] = {"auroc": auroc(score, truth), "f1": f1(flagged, truth)}
        windows, labels = experiment.test_set(device)
        if mode == "both":
            tried = ensemble.in_use(store) if kept == ANOMALY else ensemble.single(adapter)
            if tried is None:
                sys.exit(f"{device}: nothing is in use")
            right = tried.logits(engine, engine.features(windows)).argmax(1) == labels
            found[f"{mode}_{name}"]["accuracy"] = float(right.mean())
    if mode == "both" and IsolationForest is not None:
        found |= _forests(experiment.test_set(device)[0], references, unseen, count, experiment.settings.seed)
    return found


def _forests(
    windows: Floats, references: References, unseen: UnseenWindows, count: int, seed: int
) -> dict[str, Figures]:
    """IsolationForest on the same windows."""
    statistics = np.concatenate([windows.mean(axis=2), windows.std(axis=2)], axis=1)
    ours = IsolationForest(random_state=seed).fit(np.concatenate(references.training))
    threshold = np.quantile(-ours.score_samples(np.concatenate(references.held_out)), QUANTILE)
    scored: dict[str, list[Doubles]] = {"forest_rows": [], "forest_windows": [], "forest_ours": []}
    truth = []
    for recording in np.unique(unseen.recording):
        of_this = np.flatnonzero(unseen.recording == recording)
        first, rest = of_this[:count], of_this[count:]
        truth.append(unseen.anomalous[rest])
        rows = IsolationForest(random_state=seed).fit(_rows(windows[first]))
        by_window = -rows.decision_function(_rows(windows[rest])).reshape(len(rest), -1).mean(axis=1)
        scored["forest_rows"].append(by_window)
        forest = IsolationForest(random_state=seed).fit(statistics[first])
        scored["forest_windows"].append(-forest.decision_function(statistics[rest]))
        deviations = standardise(unseen.features[rest], unseen.features[first])
        scored["forest_ours"].append(-ours.score_samples(deviations) - threshold)
    known = np.concatenate(truth)
    joined = {name: np.concatenate(parts) for name, parts in scored.items()}
    return {
        name: {"auroc": auroc(score, known), "f1": f1(score > 0, known)} for name, score in joined.items()
    }


def averaged(rows: list[dict[str, Figures]]) -> dict[str, Figures]:
    """Means of each figure."""
    kinds = {name: list(row) for name, row in rows[0].items()}
    return {name: {kind: _mean([row[name][kind] for row in rows]) for kind in kinds[name]} for name in kinds}


def _rows(windows: Floats) -> Floats:
    """All rows of windows float32 [n, channels, length], float32 [n * length, channels]."""
    return windows.transpose(0, 2, 1).reshape(-1, windows.shape[1])


def _mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 4)


if __name__ == "__main__":
    main()
