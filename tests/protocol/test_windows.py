"""Windows: which windows a recording gives, and which label each carries."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.input_schema import ONE_PICTURE, WindowSpec
from protocol.recording import Recording
from protocol.windows import concatenate, cut


def recording(labels: list[int]) -> Recording:
    rows = np.arange(len(labels) * 2, dtype=np.float32).reshape(-1, 2)
    return Recording("r", rows, np.array(labels, np.int64))


def test_windows_are_channels_first_at_every_stride() -> None:
    windows = cut(recording([0] * 7), WindowSpec(3, 2))
    assert windows.x.shape == (3, 2, 3)
    assert windows.x.flags.c_contiguous
    assert windows.x[1].tolist() == [[4, 6, 8], [5, 7, 9]]
    assert windows.start.tolist() == [0, 2, 4]


def test_a_window_across_two_labels_is_dropped_and_a_partly_unlabelled_one_is_unlabelled() -> None:
    windows = cut(recording([0, 0, 1, 1, -1, -1, 1, -1, 0]), WindowSpec(2, 1))
    assert windows.start.tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert windows.y.tolist() == [0, 1, -1, -1, -1, -1, -1]


def test_two_labels_with_a_gap_between_them_are_still_two_labels() -> None:
    assert len(cut(recording([0, -1, 1]), WindowSpec(3, 1))) == 0


def test_a_recording_shorter_than_a_window_gives_none() -> None:
    windows = cut(recording([0, 0]), WindowSpec(3, 1))
    assert windows.x.shape == (0, 2, 3)
    assert len(windows) == 0


def test_every_picture_is_a_window() -> None:
    pixels = np.random.default_rng(0).random((3, 1, 4, 5), np.float32)
    windows = cut(Recording("p", pixels, np.array([1, -1, 0])), ONE_PICTURE)
    assert np.array_equal(windows.x, pixels)
    assert (windows.y.tolist(), windows.start.tolist()) == ([1, -1, 0], [0, 1, 2])


def test_joined_windows_know_their_recording_even_after_one_without_windows() -> None:
    window = WindowSpec(2, 2)
    parts = [cut(recording(labels), window) for labels in ([0, 0], [0], [1, 1, 1, 1])]
    joined = concatenate(parts)
    assert joined.recording.tolist() == [0, 2, 2]
    assert joined.y.tolist() == [0, 1, 1]
    assert joined.start.tolist() == [0, 0, 2]


def test_joining_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one recording"):
        concatenate([])


@given(st.lists(st.integers(-1, 2), min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 12))
def test_cutting_follows_the_rule_row_by_row(labels: list[int], length: int, stride: int) -> None:
    source = recording(labels)
    windows = cut(source, WindowSpec(length, stride))
    expected = []
    for start in range(0, len(labels) - length + 1, stride):
        present = set(labels[start : start + length])
        if len(present - {-1}) < 2:
            expected.append((start, -1 if -1 in present else present.pop()))
    assert list(zip(windows.start.tolist(), windows.y.tolist(), strict=True)) == expected
    for x, start in zip(windows.x, windows.start, strict=True):
        assert x.T.tobytes() == source.samples[start : start + length].tobytes()
