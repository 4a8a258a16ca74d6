"""Anomaly detection on a device: it needs no label, and a head has to prove itself on held-out windows."""

import numpy as np
from numpy.typing import NDArray

from agent.anomaly import NO_REFERENCES, References, scores, with_head
from agent.density import advance
from models.anomaly_head import initial_head

SIZE, RANK = 12, 2
HEAD = initial_head(SIZE, RANK)
DIRECTIONS = np.linalg.qr(np.random.Generator(np.random.PCG64(1)).normal(size=(SIZE, RANK)))[0]


def recording(seed: int, normal: int = 40, anomalies: int = 0) -> NDArray[np.float32]:
    """Windows that vary along two directions; anomalies leave them."""
    random = np.random.Generator(np.random.PCG64(seed))
    windows = random.normal(size=(normal + anomalies, RANK)) * 5 @ DIRECTIONS.T
    windows += random.normal(size=windows.shape) * 0.3
    windows[normal:] += 2.0 * np.sign(random.normal(size=SIZE))
    return (10 + windows * np.linspace(0.5, 3, SIZE)).astype(np.float32)


def of_fleet(devices: int = 8) -> NDArray[np.float32]:
    head = HEAD
    for _ in range(10):
        steps = [References.of([recording(100 + seed)], 0.3).advance(head) for seed in range(devices)]
        head = np.mean(steps, axis=0).astype(np.float32)
    return head


def test_anomalies_score_above_the_threshold_and_normal_windows_below() -> None:
    references = References.of([recording(seed)[:24] for seed in range(3)], 0.3)
    head = HEAD
    for _ in range(10):
        head = references.advance(head)
    found = scores(head, recording(9, 60, 30), 24)
    assert found is not None
    threshold = references.threshold(head)
    assert np.mean(found[60:] > threshold) > 0.9
    assert np.mean(found[24:60] > threshold) < 0.3


def test_a_device_with_one_short_recording_takes_the_head_of_the_fleet() -> None:
    references = References.of([recording(0)[:24]], 0.5)
    alone = References.of([recording(0)[:6]], 0.3).advance(HEAD)
    heads = {"local": alone, "global": of_fleet(), "backbone": HEAD}
    assert references.choose(heads, "local") == "global"


def test_a_head_of_unlike_machines_is_not_taken() -> None:
    references = References.of([recording(seed)[:24] for seed in range(3)], 0.3)
    random = np.random.Generator(np.random.PCG64(5))
    foreign = advance(HEAD, [random.normal(size=(50, 1)) * random.normal(size=SIZE)])
    local = references.advance(references.advance(HEAD))
    assert references.choose({"local": local, "global": foreign}, "local") == "local"


def test_without_recordings_nothing_is_learned_chosen_or_flagged() -> None:
    assert np.array_equal(NO_REFERENCES.advance(HEAD), HEAD)
    assert NO_REFERENCES.choose({"local": HEAD, "global": of_fleet(2)}, "local") == "local"
    assert NO_REFERENCES.threshold(HEAD) == np.inf
    assert len(NO_REFERENCES) == 0


def test_a_recording_too_short_to_tell_is_left_out() -> None:
    assert len(References.of([recording(0)[:3]], 0.3)) == 0
    assert scores(HEAD, recording(0)[:3], 24) is None


def test_the_held_out_windows_are_the_latest_and_not_trained_on() -> None:
    windows = recording(0)[:20]
    references = References.of([windows], 0.3)
    changed = windows.copy()
    changed[14:] += 100
    other = References.of([changed], 0.3)
    assert len(references) == 14
    assert np.array_equal(references.advance(HEAD), other.advance(HEAD))
    assert other.threshold(HEAD) > references.threshold(HEAD)


def test_a_head_is_put_in_its_place_and_the_classifier_stays() -> None:
    adapter = np.arange(6, dtype=np.float32)
    changed = with_head(adapter, slice(4, 6), np.zeros(2, np.float32))
    assert changed.tolist() == [0, 1, 2, 3, 0, 0]
    assert adapter.tolist() == [0, 1, 2, 3, 4, 5]
