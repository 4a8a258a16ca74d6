"""How well a device's density tells anomalies in test data that it never saw, by labels that it never had.

The first windows of each test recording are the reference, as on the device; they are not counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.anomaly import References, scores
from agent.config import SourceConfig
from agent.engine import Engine, Floats
from agent.features import FeatureCache
from agent.sources import Source
from protocol.charter import TrainingPolicy
from protocol.package import Manifest
from simulation.experiment import Experiment, Participant


@dataclass(frozen=True)
class UnseenWindows:
    """Test windows of a device."""

    features: Floats
    """float32 [n, feature_size], by recording in the order of time."""
    anomalous: NDArray[np.bool_]
    """[n]."""
    recording: NDArray[np.int64]
    """[n]."""


@dataclass(frozen=True)
class AnomalyResult:
    """What a device's heads are worth."""

    windows: int
    """Test windows that were counted."""
    auroc_local: float
    """Area under the receiver's operating characteristic of training alone."""
    auroc_fleet: float
    """Of the head that the device uses."""
    f1_local: float
    """F1 of the anomalies above the device's own threshold, with training alone."""
    f1_fleet: float


def evaluate_anomalies(
    experiment: Experiment,
    participant: Participant,
    engine: Engine,
    manifest: Manifest,
    policy: TrainingPolicy,
    *,
    heads: Mapping[str, Floats] | None,
) -> AnomalyResult | None:
    """Test a device's heads; None where anomaly detection is off, or nothing says what is an anomaly.

    Args:
        experiment: what was run.
        participant: one of its devices.
        engine: computes features.
        manifest: of the package.
        policy: that the device trained by.
        heads: "local" and "fleet", float32 [feature_size * rank] each; None: anomaly detection is off.
    """
    if heads is None or not experiment.fleet.anomalies:
        return None
    references, unseen = windows_of(experiment, participant, engine, manifest, policy)
    return evaluate_heads(heads, references, unseen, policy.reference_windows)


def windows_of(
    experiment: Experiment,
    participant: Participant,
    engine: Engine,
    manifest: Manifest,
    policy: TrainingPolicy,
) -> tuple[References, UnseenWindows]:
    """What a device learned from, and what it is tested on; for the arguments see `evaluate_anomalies`."""
    cache = FeatureCache(participant.state / "features", manifest, limit_bytes=1 << 32)
    source = Source(SourceConfig(str(participant.directory / "spool")), lambda: 0.0)
    first = cache.first_windows(source, engine, policy.reference_windows, 1 << 30)
    windows, labels = experiment.test_set(participant.device.id)
    anomalies = [experiment.fleet.schema.classes.index(name) for name in experiment.fleet.anomalies]
    recording = experiment.test_recordings(participant.device.id)
    unseen = UnseenWindows(engine.features(cache.prepared(windows)), np.isin(labels, anomalies), recording)
    return References.of(first, policy.holdout_fraction), unseen


def evaluate_heads(
    heads: Mapping[str, Floats], references: References, unseen: UnseenWindows, reference_windows: int
) -> AnomalyResult | None:
    """Test a device's heads; None where the test windows are all normal, or all anomalies.

    Args:
        heads: "local" and "fleet", float32 [feature_size * rank] each.
        references: the device's own, for the threshold.
        unseen: what to test on.
        reference_windows: first windows of each recording that are taken as normal.
    """
    figures: dict[str, float] = {}
    counted = 0
    for name, head in heads.items():
        found, truth = score_recordings(head, unseen, reference_windows)
        if truth.all() or not truth.any():
            return None
        counted = len(truth)
        figures[f"auroc_{name}"] = auroc(found, truth)
        figures[f"f1_{name}"] = f1(found > references.threshold(head), truth)
    return AnomalyResult(counted, **figures)


def score_recordings(
    head: Floats, unseen: UnseenWindows, reference_windows: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores float64 [m] and truth bool [m] of the windows after the first ones of each recording."""
    found, truth = [np.zeros(0)], [np.zeros(0, bool)]
    for recording in np.unique(unseen.recording):
        of_this = unseen.recording == recording
        scored = scores(head, unseen.features[of_this], reference_windows)
        if scored is not None:
            found.append(scored[reference_windows:])
            truth.append(unseen.anomalous[of_this][reference_windows:])
    return np.concatenate(found), np.concatenate(truth)


def auroc(found: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Chance that an anomaly scores higher than a normal window; ties count half (Hanley & McNeil 1982)."""
    _, inverse, counts = np.unique(found, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2  # the mean rank of those that are equal, from 1
    anomalies = int(truth.sum())
    above = float(middle[inverse][truth].sum()) - anomalies * (anomalies + 1) / 2
    return above / (anomalies * (len(truth) - anomalies))


def f1(flagged: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Harmonic mean of precision and recall; 0 where no anomaly was flagged."""
    return 2 * int((flagged & truth).sum()) / max(1, int(flagged.sum()) + int(truth.sum()))
