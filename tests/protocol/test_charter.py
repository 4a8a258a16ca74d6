"""The charter: limits that hold together, hours around midnight, and the same weights everywhere."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.charter import MAX_STALENESS, SchedulePolicy, SendingPolicy, StalenessPolicy


@pytest.mark.parametrize(
    ("hours", "quiet", "loud"),
    [
        ("22:00-06:00", ["22:00", "23:59", "00:00", "05:59"], ["06:00", "12:00", "21:59"]),
        ("09:30-10:00", ["09:30", "09:59"], ["09:29", "10:00", "00:00"]),
        ("08:00-08:00", [], ["08:00", "07:59", "00:00"]),
    ],
)
def test_quiet_hours_begin_with_their_start_and_end_before_their_end(
    hours: str, quiet: list[str], loud: list[str]
) -> None:
    policy = SendingPolicy(quiet_hours=(hours,))

    def minute(text: str) -> int:
        return int(text[:2]) * 60 + int(text[3:])

    assert [text for text in quiet + loud if policy.quiet(minute(text))] == quiet


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"quiet_hours": ("24:00-06:00",)}, "quiet_hours: expected \"HH:MM-HH:MM\", got '24:00-06:00'"),
        ({"quiet_hours": ("22-6",)}, "quiet_hours: expected"),
        ({"bytes_per_day": -1}, "bytes_per_day: expected 0 to"),
        ({"carry_over": 1.1}, "carry_over: expected 0 to 1, got 1.1"),
        ({"minimum_relative_norm": float("nan")}, "minimum_relative_norm: expected"),
    ],
)
def test_a_policy_that_makes_no_sense_names_its_entry(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SendingPolicy(**entry)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"mode": "clever"}, "mode: expected fixed or adaptive, got 'clever'"),
        ({"nats_per_kib": float("nan")}, "nats_per_kib: expected 0 to"),
        ({"nats_per_thousand_steps": -1.0}, "nats_per_thousand_steps: expected 0 to"),
        ({"least_effort": 1.1}, "least_effort: expected 0 to 1, got 1.1"),
        ({"fitted": float("inf")}, "fitted: expected 0 to"),
        ({"patience": 0}, "patience: expected 1 to 100, got 0"),
    ],
)
def test_a_schedule_that_makes_no_sense_names_its_entry(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SchedulePolicy(**entry)


limits = st.builds(
    SendingPolicy,
    minimum_relative_norm=st.floats(0, 10),
    bytes_per_day=st.integers(0, 5),
    maximum_outstanding=st.integers(0, 5),
    carry_over=st.floats(0, 1),
    maximum_wait_hours=st.floats(0, 5),
)


@given(limits, limits)
def test_of_two_policies_the_stricter_holds_whoever_made_it(one: SendingPolicy, other: SendingPolicy) -> None:
    both = one.stricter(other)
    assert both == other.stricter(one)
    assert both.stricter(one) == both
    for policy in (one, other):
        assert not policy.bytes_per_day or 0 < both.bytes_per_day <= policy.bytes_per_day
        assert both.minimum_relative_norm >= policy.minimum_relative_norm


@given(
    st.integers(1, 1 << 16),
    st.integers(0, MAX_STALENESS),
    st.integers(0, MAX_STALENESS - 1),
    st.floats(0, 10),
)
def test_a_later_update_never_weighs_more_and_always_something(
    weight: int, staleness: int, further: int, exponent: float
) -> None:
    policy = StalenessPolicy(MAX_STALENESS, exponent)
    assert 1 <= policy.weight(weight, staleness) <= weight
    assert policy.weight(weight, staleness + further) <= policy.weight(weight, staleness)
    assert policy.weight(weight, 0) == weight


def test_weights_that_journals_hold_never_change() -> None:
    """A replay on any machine and with any version gives the weights that were counted."""
    weights = [
        StalenessPolicy(9, exponent).weight(1000, s) for exponent in (0.5, 1.0, 0.3) for s in (1, 2, 9)
    ]
    assert weights == [707, 577, 316, 500, 333, 100, 812, 719, 501]
