"""What the accuracy benchmark makes of its runs: means, luck, and labels saved."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.accuracy import Run, gains, labels_to_match, summed_up, worse_by_more_than_luck


def windows(*right: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.array(right, bool)


@pytest.mark.parametrize(
    ("lost", "won", "worse"),
    [(0, 0, False), (1, 0, False), (4, 0, False), (5, 0, True), (5, 3, False), (12, 3, True), (0, 9, False)],
)
def test_a_device_is_worse_only_by_more_windows_than_a_coin_would_give(
    lost: int, won: int, worse: bool
) -> None:
    ours = windows(*[0] * lost, *[1] * won, *[1] * 20)
    theirs = windows(*[1] * lost, *[0] * won, *[1] * 20)
    assert worse_by_more_than_luck(ours, theirs) is worse


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_never_are_both_worse_than_the_other(rows: list[tuple[bool, bool]]) -> None:
    ours, theirs = (np.array(part) for part in zip(*rows, strict=True))
    assert not (worse_by_more_than_luck(ours, theirs) and worse_by_more_than_luck(theirs, ours))
    assert not worse_by_more_than_luck(ours, ours)


def test_seeds_and_devices_are_averaged_and_compared_with_training_alone() -> None:
    alone = Run([windows(1, 1, 1, 1), windows(1, 1, 0, 0)], 10.0, 0.5)
    ours = Run([windows(1, 1, 1, 0), windows(1, 1, 1, 1)], 40.0, 2.0)
    row = summed_up("plant", 5, [{"local": alone, "ours": ours}, {"local": alone, "ours": alone}])
    assert (row["fleet"], row["labels"], row["devices"]) == ("plant", 5, 2)
    assert row["methods"]["local"]["accuracy"] == 75.0
    assert row["methods"]["ours"] == {
        "accuracy": 81.25,
        "worst": 62.5,
        "worse_share": 0.25,
        "proven_worse_share": 0.0,
        "steps_per_device": 25,
        "cpu_seconds_per_device": 1.25,
    }


def rows(*figures: tuple[int, float, float]) -> list[dict[str, Any]]:
    """Of (labels, alone, ours)."""
    shares = {"worse_share": 0.1, "proven_worse_share": 0.0}
    return [
        {
            "fleet": "plant",
            "labels": labels,
            "methods": {"local": {"accuracy": alone, **shares}, "ours": {"accuracy": ours, **shares}},
        }
        for labels, alone, ours in figures
    ]


def test_labels_saved_are_read_between_budgets_by_their_logarithm() -> None:
    halfway = rows((5, 70.0, 80.0), (20, 90.0, 92.0))
    assert labels_to_match(halfway) == {"plant": 2.0}
    at_a_budget = rows((5, 70.0, 90.0), (20, 90.0, 92.0), (80, 95.0, 95.0))
    assert labels_to_match(at_a_budget) == {"plant": 4.0}


def test_where_no_budget_is_enough_or_the_first_one_is_the_factor_is_the_bound() -> None:
    assert labels_to_match(rows((5, 70.0, 99.0), (50, 90.0, 99.0))) == {"plant": 10.0}
    assert labels_to_match(rows((5, 70.0, 65.0), (50, 90.0, 99.0))) == {"plant": 1.0}
    # Where more labels made training alone worse, what it had before counts.
    assert labels_to_match(rows((5, 80.0, 85.0), (15, 78.0, 86.0), (45, 90.0, 91.0))) == {"plant": 5.2}


def test_gains_are_means_over_the_fleets() -> None:
    found = gains([*rows((5, 70.0, 80.0)), *rows((5, 60.0, 64.0)), *rows((15, 80.0, 79.0))])
    assert (found["5"]["ours"], found["15"]["ours"], found["5"]["local"]) == (7.0, -1.0, 0.0)
    assert found["5"]["worse_share"] == 0.1
