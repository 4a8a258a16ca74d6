"""Splits and label budgets: nothing of the test part is on the device, and the budget is exact there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.fleet import Split
from protocol.input_schema import InputSchema, WindowSpec
from protocol.recording import Recording
from protocol.windows import cut
from simulation.splits import divide, keep_labels

SCHEMA = InputSchema("timeseries", ("x",), 10.0, ("a", "b", "c"))


def recording(labels: list[int], name: str = "r.csv", first: int = 0) -> Recording:
    """Make a recording whose samples number its rows, so that a row can be recognised anywhere."""
    rows = np.arange(first, first + len(labels), dtype=np.float32)[:, np.newaxis]
    return Recording(name, rows, np.array(labels, np.int64))


def counts(recordings: list[Recording], window: WindowSpec) -> list[int]:
    labels = np.concatenate([cut(part, window).y for part in recordings])
    return [int((labels == label).sum()) for label in range(3)]


def test_by_time_the_last_share_of_each_recording_is_test() -> None:
    division = divide([recording([0] * 10), recording([1] * 5, "s.csv", 100)], Split("time", 0.2))
    assert [part.samples[:, 0].tolist() for part in division.test] == [[8, 9], [104]]
    assert [part.name for part in division.development] == ["r-00000000.csv", "s-00000000.csv"]


def test_by_time_a_class_that_would_be_wholly_in_one_part_divides_every_run() -> None:
    division = divide([recording([0] * 10 + [1] * 10)], Split("time", 0.2))
    assert [part.samples[:, 0].tolist() for part in division.test] == [[8, 9], [18, 19]]
    assert [part.name for part in division.development] == ["r-00000000.csv", "r-00000010.csv"]
    assert [set(part.labels.tolist()) for part in division.development] == [{0}, {1}]


def test_by_recording_every_class_gets_test_data_where_it_can() -> None:
    recordings = [recording([label] * 4, f"{label}-{take}.csv") for label in (0, 1) for take in (1, 2)]
    division = divide([*recordings, recording([2], "only.csv")], Split("recording", 0.2))
    assert [part.name for part in division.test] == ["0-2.csv", "1-2.csv"]
    assert "only.csv" in [part.name for part in division.development]


def test_by_recording_the_last_share_by_name_is_test() -> None:
    recordings = [recording([0, 1], f"{take:02d}.csv") for take in reversed(range(10))]
    division = divide(recordings, Split("recording", 0.2))
    assert [part.name for part in division.test] == ["08.csv", "09.csv"]
    assert len(division.development) == 8


@pytest.mark.parametrize("by", ["time", "recording"])
def test_without_a_test_share_everything_is_development(by: str) -> None:
    recordings = [recording([0, 1]), recording([0, 1], "s.csv")]
    division = divide(recordings, Split(by, 0.0))
    assert list(division.development) == recordings
    assert division.test == ()


labels_of_recordings = st.lists(st.lists(st.integers(-1, 2), min_size=1, max_size=60), min_size=1, max_size=5)


@given(labels_of_recordings, st.sampled_from(["time", "recording"]), st.floats(0.05, 0.9))
def test_no_row_is_in_both_parts_and_none_is_lost(all_labels: list[list[int]], by: str, share: float) -> None:
    recordings = [recording(labels, f"{i}.csv", i * 1000) for i, labels in enumerate(all_labels)]
    division = divide(recordings, Split(by, share))
    rows = [row for part in (*division.development, *division.test) for row in part.samples[:, 0].tolist()]
    assert len(rows) == len(set(rows)) == sum(map(len, all_labels))
    for part in division.development:
        assert np.all(np.diff(part.samples[:, 0]) == 1)


runs = st.lists(st.tuples(st.integers(-1, 2), st.integers(1, 40)), min_size=1, max_size=6)


@given(
    st.lists(runs, min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(1, 15),
    st.integers(0, 12),
    st.integers(0, 3),
)
def test_the_budget_is_exact_on_the_grid_of_the_device(
    all_runs: list[list[tuple[int, int]]], length: int, stride: int, per_class: int, seed: int
) -> None:
    recordings = [
        recording([label for label, rows in parts for _ in range(rows)], f"{i}.csv")
        for i, parts in enumerate(all_runs)
    ]
    window = WindowSpec(length, stride)
    kept = keep_labels(recordings, SCHEMA, window, per_class, seed)
    available = counts(recordings, window)
    assert counts(kept, window) == [min(per_class, number) for number in available]
    for before, after in zip(recordings, kept, strict=True):
        assert after.name == before.name
        assert after.samples is before.samples
        assert np.all((after.labels == before.labels) | (after.labels == -1))


def test_kept_windows_are_spread_over_time() -> None:
    parts = [recording([0] * 1000, "1.csv"), recording([0] * 1000, "2.csv")]
    window = WindowSpec(10, 5)
    kept = keep_labels(parts, SCHEMA, window, 4, seed=1)
    starts = [cut(part, window) for part in kept]
    found = [windows.start[windows.y == 0].tolist() for windows in starts]
    assert [len(part) for part in found] == [2, 2]
    assert all(abs(second - first - 500) <= 10 for first, second in found)


def test_the_same_seed_keeps_the_same_labels_and_another_seed_others() -> None:
    parts = [recording([0] * 500)]
    first, again, other = (
        keep_labels(parts, SCHEMA, WindowSpec(10, 10), 3, seed)[0].labels.tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_without_a_budget_all_labels_stay() -> None:
    parts = [recording([0, 1, 2])]
    assert keep_labels(parts, SCHEMA, WindowSpec(2, 1), None, 0) == parts


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="per_class: expected 0 or more"):
        keep_labels([], SCHEMA, WindowSpec(2, 1), -1, 0)
