"""The waits of a fleet whose broker is gone: bounded, few, and never in step."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.backoff import (
    FIRST_CEILING_SECONDS,
    LAST_CEILING_SECONDS,
    SHORTEST_SECONDS,
    STEADY_SECONDS,
    Backoff,
)

FLEET = 2_000
HOUR = 3600.0


def waits(seed: int) -> Backoff:
    return Backoff(random.Random(seed))  # noqa: S311 - jitter


def attempts(seed: int, seconds: float) -> list[float]:
    """When a device tries to connect within `seconds` of losing the broker, and once after."""
    backoff, times = waits(seed), [0.0]
    while times[-1] < seconds:
        times.append(times[-1] + backoff.delay(0.0))
    return times[1:]


def most_within(times: list[float], seconds: float) -> int:
    """The most arrivals in any window."""
    times, most, first = sorted(times), 0, 0
    for last, time in enumerate(times):
        while time - times[first] > seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


@given(st.integers(), st.lists(st.floats(0, 1e9), max_size=60))
def test_no_wait_is_longer_than_the_last_ceiling_or_busy(seed: int, held: list[float]) -> None:
    backoff = waits(seed)
    for seconds in held:
        assert SHORTEST_SECONDS <= backoff.delay(seconds) <= LAST_CEILING_SECONDS


@given(st.integers(), st.integers())
def test_two_devices_that_lost_the_broker_together_do_not_come_back_together(one: int, other: int) -> None:
    same = attempts(one, HOUR)[:20] == attempts(other, HOUR)[:20]
    assert same == (abs(one) == abs(other))  # as random.Random takes its seeds


def test_a_fleet_comes_back_spread_over_the_whole_wait_when_the_broker_only_restarts() -> None:
    first = [attempts(seed, 0.01)[0] for seed in range(FLEET)]
    spread = FIRST_CEILING_SECONDS - SHORTEST_SECONDS
    assert most_within(first, spread / 10) < FLEET * 0.15
    assert max(first) - min(first) > 0.95 * spread


def test_a_fleet_comes_back_one_by_one_after_an_hour() -> None:
    back = [attempts(seed, HOUR)[-1] for seed in range(FLEET)]
    assert most_within(back, 1.0) < FLEET * 0.06
    assert max(back) <= HOUR + LAST_CEILING_SECONDS  # nobody is forgotten


@given(st.integers())
def test_an_hour_away_costs_few_attempts(seed: int) -> None:
    # Two a minute once the ceiling is reached; the chance of more than three a minute is below 1e-9.
    assert len(attempts(seed, HOUR)) < 6 + 3 * 60


@pytest.mark.parametrize("held", [0.0, 1.0, STEADY_SECONDS - 1])
def test_a_broker_that_drops_its_clients_at_once_is_spared(held: float) -> None:
    backoff = waits(0)
    for _ in range(6):
        backoff.delay(held)
    assert max(backoff.delay(held) for _ in range(50)) > 10 * FIRST_CEILING_SECONDS


def test_after_a_steady_connection_the_waits_begin_anew() -> None:
    backoff = waits(0)
    for _ in range(50):
        backoff.delay(0.0)
    for _ in range(50):
        assert backoff.delay(STEADY_SECONDS) <= FIRST_CEILING_SECONDS
