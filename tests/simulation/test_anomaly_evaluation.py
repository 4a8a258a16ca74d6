"""AUROC and F1 of a device's heads, on recordings that it never saw."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.anomaly import References
from models.anomaly_head import initial_head
from simulation.anomaly_evaluation import UnseenWindows, auroc, evaluate_heads, f1, score_recordings

SIZE = 6
HEADS = {"local": initial_head(SIZE, 2), "fleet": initial_head(SIZE, 2)}


def unseen(anomalies: int = 10, recordings: int = 2, shift: float = 20.0) -> UnseenWindows:
    random = np.random.Generator(np.random.PCG64(0))
    features = random.normal(size=(recordings * 30, SIZE)).astype(np.float32)
    recording = np.repeat(np.arange(recordings), 30)
    anomalous = np.zeros(recordings * 30, bool)
    for index in range(recordings):
        features[index * 30 : (index + 1) * 30] += 1000 * index  # each has a level of its own
        anomalous[(index + 1) * 30 - anomalies : (index + 1) * 30] = True
    features[anomalous] += shift
    return UnseenWindows(features, anomalous, recording)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_pairs_in_order(rows: list[tuple[int, bool]]) -> None:
    found = np.array([score for score, _ in rows], np.float64)
    truth = np.array([anomalous for _, anomalous in rows])
    if truth.all() or not truth.any():
        return
    pairs = [(a > b) + (a == b) / 2 for a in found[truth] for b in found[~truth]]
    assert auroc(found, truth) == pytest.approx(np.mean(pairs))


def test_f1_counts_both_kinds_of_errors() -> None:
    truth = np.array([True, True, True, False, False])
    assert f1(np.array([True, True, False, True, False]), truth) == pytest.approx(2 / 3)
    assert f1(np.zeros(5, bool), truth) == 0


def test_every_recording_is_judged_by_its_own_beginning() -> None:
    scores, truth = score_recordings(HEADS["local"], unseen(), 12)
    assert len(scores) == 2 * 18
    assert auroc(scores, truth) == 1.0


def test_a_device_is_measured_with_the_threshold_of_its_own_windows() -> None:
    random = np.random.Generator(np.random.PCG64(1))
    own = [random.normal(size=(24, SIZE)).astype(np.float32) for _ in range(3)]
    result = evaluate_heads(HEADS, References.of(own, 0.3), unseen(), 12)
    assert result is not None
    assert result.windows == 36
    assert result.auroc_fleet == result.auroc_local == 1.0
    assert result.f1_fleet > 0.8
    blind = evaluate_heads(HEADS, References.of([], 0.3), unseen(), 12)
    assert blind is not None
    assert blind.f1_fleet == 0  # without windows of its own it has no threshold


@pytest.mark.parametrize("anomalies", [0, 30])
def test_without_both_kinds_there_is_nothing_to_measure(anomalies: int) -> None:
    assert evaluate_heads(HEADS, References.of([], 0.3), unseen(anomalies), 12) is None


def test_recordings_too_short_to_judge_are_left_out() -> None:
    scores, truth = score_recordings(HEADS["local"], unseen(), 3)
    assert len(scores) == len(truth) == 0
