"""The replay buffer: bounded, fair to every class and every time, and whole after a power cut."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.batches import Pool, draw
from agent.dataset import Labelled, newest
from agent.replay import ReplayBuffer


def windows(labels: list[int], first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features that are (number of the window, its label)."""
    array = np.array(labels, np.int64)
    return np.stack([first + np.arange(len(array)), array], axis=1).astype(np.float32), array


def labelled(labels: list[int], first: int = 0) -> Labelled:
    features, array = windows(labels, first)
    return Labelled(features, array, np.zeros(len(array), np.int64), np.arange(len(array)))


def open_buffer(path: Path, per_class: int = 4) -> ReplayBuffer:
    return ReplayBuffer(path / "replay.npz", 2, per_class=per_class, seed=3)


def test_a_rare_class_outlives_a_flood_of_another(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path)
    buffer.offer(*windows([1, 1, 0]))
    buffer.offer(*windows([0] * 1000, first=3))
    assert np.bincount(buffer.labels).tolist() == [4, 2]
    assert buffer.features[buffer.labels == 1][:, 0].tolist() == [0, 1]


def test_unlabelled_windows_are_passed_over(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path)
    buffer.offer(*windows([-1, 0, -1]))
    assert buffer.features.tolist() == [[1, 0]]


def test_early_and_late_windows_are_kept_alike(tmp_path: Path) -> None:
    kept = []
    for seed in range(200):
        buffer = ReplayBuffer(tmp_path / f"{seed}.npz", 2, per_class=5, seed=seed)
        for part in range(4):
            buffer.offer(*windows([0] * 10, first=10 * part))
        kept += buffer.features[:, 0].astype(int).tolist()
    # 1,000 kept windows over 4 parts: 250 each, with a standard deviation of 14.
    assert np.bincount(np.array(kept) // 10, minlength=4) == pytest.approx(250, abs=60)


def test_a_buffer_that_is_opened_again_goes_on_as_if_never_closed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = open_buffer(tmp_path / "a")
    for part in range(5):
        one.offer(*windows([0, 1, 2] * 5, first=15 * part))
        other = open_buffer(tmp_path / "b")
        other.offer(*windows([0, 1, 2] * 5, first=15 * part))
    again = open_buffer(tmp_path / "b")
    assert again.features.tolist() == one.features.tolist()
    assert again.labels.tolist() == one.labels.tolist()


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 torn", b"x" * 100])
def test_a_damaged_file_is_started_anew(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "replay.npz").write_bytes(damage)
    buffer = open_buffer(tmp_path)
    assert len(buffer) == 0
    buffer.offer(*windows([0]))
    assert len(open_buffer(tmp_path)) == 1


def test_features_of_another_width_are_not_taken_over(tmp_path: Path) -> None:
    open_buffer(tmp_path).offer(*windows([0]))
    assert len(ReplayBuffer(tmp_path / "replay.npz", 5, per_class=4, seed=3)) == 0


def test_without_room_nothing_is_kept_or_written(tmp_path: Path) -> None:
    open_buffer(tmp_path, per_class=0).offer(*windows([0, 1]))
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=70),
    st.lists(st.integers(0, 3), max_size=20),
    st.integers(2, 16),
    st.sampled_from([0.0, 0.25, 0.5, 0.9]),
)
def test_an_epoch_has_every_current_window_once(
    current: list[int], past: list[int], batch: int, share: float
) -> None:
    pool = Pool.of(labelled(current), labelled(past, 1000), balance=True)
    epoch = draw(pool, batch, share, np.random.Generator(np.random.PCG64(1)))
    assert epoch.rows.shape == epoch.weights.shape == (len(epoch.rows), batch)
    counted = epoch.rows[epoch.weights > 0]
    assert sorted(counted[counted < len(current)].tolist()) == list(range(len(current)))
    replayed = (epoch.rows >= len(current)).sum(axis=1)
    assert set(replayed.tolist()) == {min(batch - 1, int(batch * share)) if past else 0}


def test_replay_draws_a_rare_class_as_often_as_a_common_one() -> None:
    pool = Pool.of(labelled([0] * 300), labelled([1] * 97 + [2] * 3, 1000), balance=True)
    epoch = draw(pool, 10, 0.5, np.random.Generator(np.random.PCG64(1)))
    drawn = pool.labels[epoch.rows[:, 5:]]
    assert drawn.shape == (60, 5)
    assert (drawn == 2).mean() == pytest.approx(0.5, abs=0.1)


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(0, 40))
def test_the_newest_windows_of_every_class_are_held(labels: list[int], maximum: int) -> None:
    array = np.array(labels, np.int64)
    chosen = newest(array, maximum)
    assert len(chosen) == min(maximum, len(labels))
    assert sorted(chosen.tolist()) == chosen.tolist()
    left = sorted(set(range(len(labels))) - set(chosen.tolist()))
    for label in set(labels):
        kept = [index for index in chosen if array[index] == label]
        dropped = [index for index in left if array[index] == label]
        assert not kept or not dropped or max(dropped) < min(kept)
        # A class loses windows only when it has at least as many as any other kept.
        if dropped:
            most = max((array[chosen] == other).sum() for other in set(labels))
            assert len(kept) >= most - 1
