"""When devices that have little to gain send all the same: together, never later than the longest wait."""

from hypothesis import given
from hypothesis import strategies as st

from agent.sending import IDLE, Situation, reason_to_wait
from protocol.charter import SendingPolicy

HOUR = 3600.0


def waits(now: float, since: float, policy: SendingPolicy) -> str:
    return reason_to_wait(policy, Situation(now, 0, 0, 1.0, (now - since) / HOUR, 0, idle=True))


@given(st.integers(0, 1 << 33), st.integers(1, 24 * 366))
def test_the_wait_is_three_quarters_of_the_longest_at_least_and_the_longest_at_most(
    since: int, hours: int
) -> None:
    policy = SendingPolicy(maximum_wait_hours=float(hours))
    assert waits(since, since, policy) == IDLE
    assert waits(since + 0.74 * hours * HOUR, since, policy) == IDLE
    assert waits(since + hours * HOUR + 1, since, policy) == ""


@given(st.integers(1, 1 << 30))
def test_devices_that_began_minutes_apart_within_a_quarter_end_at_the_same_moment(quarter: int) -> None:
    policy = SendingPolicy(maximum_wait_hours=24.0)
    began = quarter * 6 * HOUR
    first, last = began + 60, began + 1800
    for now, expected in ((began + 24 * HOUR - 1, IDLE), (began + 24 * HOUR, "")):
        assert waits(now, first, policy) == waits(now, last, policy) == expected


def test_without_a_longest_wait_only_labels_or_gain_end_it() -> None:
    assert waits(1e9, 0.0, SendingPolicy(maximum_wait_hours=0)) == IDLE
