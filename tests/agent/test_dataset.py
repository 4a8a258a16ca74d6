"""The split by time: the latest windows of every class are held out, and training sees none of their rows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.dataset import MINIMUM_PER_CLASS, Labelled, split

LENGTH = 8
windows = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 15)),
    max_size=40,
    unique_by=lambda w: w[1:],
)


def labelled(rows: list[tuple[int, int, int]]) -> Labelled:
    """Windows of (label, recording, start); the feature is the row's own number."""
    table = np.array(sorted(rows, key=lambda row: row[1:]), np.int64).reshape(-1, 3)
    features = np.arange(len(table), dtype=np.float32)[:, None]
    return Labelled(features, table[:, 0], table[:, 1], table[:, 2] * 4)


def identities(data: Labelled) -> set[tuple[int, int]]:
    return set(zip(data.recording.tolist(), data.start.tolist(), strict=True))


def test_the_latest_windows_of_each_class_are_held_out() -> None:
    data = labelled([(0, 0, 2 * index) for index in range(10)] + [(1, 1, 2 * index) for index in range(5)])
    training, held = split(data, 0.3, LENGTH)
    assert identities(held) == {(0, 56), (0, 64), (0, 72), (1, 32)}
    assert len(training) == 11


def test_a_later_recording_is_later_than_a_later_start() -> None:
    data = labelled([(0, 0, 9), (0, 0, 12), (0, 0, 15), (0, 1, 0)])
    _, held = split(data, 0.3, LENGTH)
    assert identities(held) == {(1, 0)}


def test_training_windows_that_share_rows_with_held_out_ones_are_left_out() -> None:
    data = labelled([(0, 0, index) for index in range(10)])  # every 4 rows, 8 rows long
    training, held = split(data, 0.3, LENGTH)
    assert identities(held) == {(0, 28), (0, 32), (0, 36)}
    assert identities(training) == {(0, 4 * index) for index in range(6)}


def test_overlap_counts_across_classes_but_not_across_recordings() -> None:
    data = labelled([(0, 0, 0), (0, 0, 4), (0, 0, 8), (1, 0, 9), (2, 1, 8)])
    training, held = split(data, 0.3, LENGTH)
    assert identities(held) == {(0, 32)}
    assert identities(training) == {(0, 0), (0, 16), (1, 32)}


def test_rare_classes_are_all_trained_on() -> None:
    data = labelled([(0, 0, 0), (0, 0, 4)])
    training, held = split(data, 0.9, LENGTH)
    assert (len(training), len(held)) == (2, 0)


def test_without_windows_both_parts_are_empty() -> None:
    training, held = split(labelled([]), 0.3, LENGTH)
    assert (len(training), len(held)) == (0, 0)
    assert training.features.shape == (0, 1)


@given(windows, st.sampled_from([0.0, 0.1, 0.3, 0.9]))
def test_every_window_is_trained_on_held_out_or_overlaps(
    rows: list[tuple[int, int, int]], fraction: float
) -> None:
    data = labelled(rows)
    training, held = split(data, fraction, LENGTH)
    assert identities(training).isdisjoint(identities(held))
    near = {
        (recording, start)
        for recording, start in identities(data)
        for other, held_start in identities(held)
        if recording == other and abs(start - held_start) < LENGTH
    }
    assert identities(training) == identities(data) - near
    assert near >= identities(held)
    for part in (training, held):
        for index in range(len(part)):
            original = int(part.features[index, 0])
            assert part.labels[index] == data.labels[original]
            assert part.start[index] == data.start[original]


@given(windows, st.sampled_from([0.1, 0.3, 0.9]))
def test_nothing_held_out_is_older_than_what_is_trained_on(
    rows: list[tuple[int, int, int]], fraction: float
) -> None:
    data = labelled(rows)
    training, held = split(data, fraction, LENGTH)
    for label in set(data.labels.tolist()):
        count = int((data.labels == label).sum())
        expected = 0 if count < MINIMUM_PER_CLASS else max(1, int(fraction * count))
        mine = held.labels == label
        assert int(mine.sum()) == expected
        old = [w for w, y in zip(identities_in_order(training), training.labels, strict=True) if y == label]
        new = [w for w, y in zip(identities_in_order(held), held.labels, strict=True) if y == label]
        assert not old or not new or max(old) < min(new)


def identities_in_order(data: Labelled) -> list[tuple[int, int]]:
    return list(zip(data.recording.tolist(), data.start.tolist(), strict=True))
