"""What one device may cost the server: buckets, the window of misbehaviour, and how much memory they take."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.download import WINDOW
from agent.outbox import RESEND_SECONDS
from protocol.artifacts import CHUNK_BYTES
from protocol.records import from_named
from server import limits
from server.config import ServerConfig
from server.limits import (
    BYTES,
    HOUR,
    MESSAGES,
    MIB,
    REASONS,
    UNKNOWN,
    LimitsPolicy,
    Misbehaviour,
    RateLimiter,
)

POLICY = LimitsPolicy()
SMALL = LimitsPolicy(
    messages_per_minute=6,
    messages_burst=3,
    bytes_per_hour=32 * MIB,
    chunk_bytes_per_hour=32 * MIB,
    invalid_before_quarantine=3,
    invalid_window_hours=1.0,
)
START = 1_800_000_000.0


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"messages_per_minute": 0}, "messages_per_minute: expected 1 to"),
        ({"messages_burst": 0}, "messages_burst: expected 1 to"),
        ({"bytes_per_hour": 16 * MIB}, "bytes_per_hour: expected 33554432 to"),
        ({"chunk_bytes_per_hour": -1}, "chunk_bytes_per_hour: expected 33554432 to"),
        ({"invalid_before_quarantine": -1}, "invalid_before_quarantine: expected 0 to"),
        ({"invalid_before_quarantine": 1001}, "invalid_before_quarantine: expected 0 to"),
        ({"invalid_window_hours": 0.0}, "invalid_window_hours: expected 0.01 to"),
        ({"invalid_window_hours": float("nan")}, "invalid_window_hours: expected 0.01 to"),
    ],
)
def test_a_limit_out_of_range_is_refused_with_its_name(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        LimitsPolicy(**values)


def test_the_policy_is_a_table_and_its_reasons_are_keys_of_it() -> None:
    assert from_named(LimitsPolicy, {"messages_burst": 5}) == LimitsPolicy(messages_burst=5)
    assert set(REASONS) <= {field.name for field in fields(LimitsPolicy)}


# Honest devices


def test_a_device_that_was_cut_off_resends_a_full_outbox_again_and_again_without_meeting_a_limit() -> None:
    limiter = RateLimiter(POLICY)
    for repetition in range(8):  # 256 small updates without any receipt, for as long as three minutes
        now = START + repetition * RESEND_SECONDS
        assert {limiter.take("device", 60_000, now) for _ in range(256)} == {""}


def test_a_full_outbox_of_the_largest_updates_goes_through_at_once() -> None:
    largest = ServerConfig("plant", "data").maximum_update_bytes + 1024
    limiter = RateLimiter(POLICY)
    assert {limiter.take("device", largest, START) for _ in range(256)} == {""}


def test_a_device_that_reconnects_every_second_for_an_hour_meets_no_limit() -> None:
    limiter = RateLimiter(POLICY)
    for second in range(3600):
        # greeting, last will, report, and an update whose receipt got lost
        assert {limiter.take("device", 20_000, START + second) for _ in range(4)} == {""}


def test_a_package_of_200_megabytes_is_pulled_on_a_fast_network_without_meeting_a_limit() -> None:
    limiter = RateLimiter(POLICY)
    chunks = -(-200 * 10**6 // CHUNK_BYTES)
    now = START
    for request in range(chunks):  # at worst, every chunk that comes is answered by a request for one
        now = START + request / 400  # 24 MB per second
        assert limiter.take("device", 200, now) == ""
        assert limiter.take_chunks("device", CHUNK_BYTES, now) == ""
    for lost in range(chunks // WINDOW):  # the link breaks, and much of it is asked for once more
        assert limiter.take("device", 200, now + lost) == ""
        assert limiter.take_chunks("device", WINDOW * CHUNK_BYTES, now + lost) == ""


# Hostile devices


def test_a_flood_is_cut_to_the_rate_and_says_which_limit_it_met() -> None:
    limiter = RateLimiter(POLICY)
    answers = [limiter.take("device", 100, START + index / 1000) for index in range(60_000)]
    assert answers.count("") == POLICY.messages_burst + POLICY.messages_per_minute - 1
    assert set(answers) == {"", MESSAGES}
    assert limiter.take("other", 100, START + 60) == ""


def test_large_messages_meet_the_limit_in_bytes() -> None:
    limiter = RateLimiter(SMALL)
    assert limiter.take("device", 30 * MIB, START) == ""
    assert limiter.take("device", 3 * MIB, START) == BYTES
    assert limiter.take("device", 2 * MIB, START) == ""
    assert limiter.take("device", 1, START) == BYTES
    assert limiter.take("device", 32 * MIB, START + HOUR) == ""


def test_small_requests_for_many_chunks_meet_the_limit_of_what_is_sent() -> None:
    limiter = RateLimiter(POLICY)
    answer = 16 * CHUNK_BYTES
    sent = sum(answer for _ in range(5000) if not limiter.take_chunks("device", answer, START))
    assert POLICY.chunk_bytes_per_hour - answer < sent <= POLICY.chunk_bytes_per_hour
    assert limiter.take_chunks("device", answer, START) == limits.CHUNK_BYTES
    assert limiter.take("device", 100, START) == ""  # what it sends is another matter


def test_invented_names_share_one_bucket_and_take_no_memory() -> None:
    limiter = RateLimiter(SMALL)
    assert [limiter.take(UNKNOWN, 10, START) for _ in range(5)] == ["", "", "", MESSAGES, MESSAGES]
    assert len(limiter) == 1
    assert limiter.take("device", 10, START) == ""


def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    limiter = RateLimiter(SMALL)
    assert [limiter.take("device", 1, START) for _ in range(4)] == ["", "", "", MESSAGES]
    assert limiter.take("device", 1, START - 1e6) == MESSAGES
    assert limiter.take("device", 1, START - 1e6 + 5) == MESSAGES
    assert limiter.take("device", 1, START - 1e6 + 10) == ""  # 6 per minute: one in 10 seconds


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.integers(0, 20 * MIB),
        st.floats(0, 5000),
        st.booleans(),
    ),
    max_size=60,
)


@given(STEPS)
def test_forgetting_full_buckets_changes_no_answer(steps: list[tuple[str, int, float, bool]]) -> None:
    forgetful, faithful = RateLimiter(SMALL), RateLimiter(SMALL)
    faithful._sweep = lambda _: None  # type: ignore[method-assign]
    now = START
    for device, size, passed, pulls in steps:
        now += passed
        answers = {
            limiter.take_chunks(device, size, now) if pulls else limiter.take(device, size, now)
            for limiter in (forgetful, faithful)
        }
        assert len(answers) == 1


@given(st.lists(st.tuples(st.integers(0, 20 * MIB), st.floats(0, 3000)), max_size=60))
def test_no_hour_takes_more_than_a_full_bucket_and_what_comes_back(steps: list[tuple[int, float]]) -> None:
    limiter = RateLimiter(replace(SMALL, messages_burst=1000, messages_per_minute=1000))
    now, taken = START, []
    for size, passed in steps:
        now += passed
        if not limiter.take("device", size, now):
            taken.append((now, size))
        in_an_hour = sum(size for at, size in taken if at > now - HOUR)
        assert in_an_hour <= 2 * SMALL.bytes_per_hour + 1


def test_devices_that_are_quiet_for_an_hour_are_forgotten() -> None:
    limiter = RateLimiter(POLICY)
    for index in range(1000):
        limiter.take(f"device-{index}", 1000, START)
        limiter.take_chunks(f"device-{index}", 100 * MIB, START)
    assert len(limiter) == 1000
    limiter.take("other", 0, START + HOUR)
    assert len(limiter) == 1


# Misbehaviour


def test_the_third_invalid_message_within_an_hour_quarantines_and_the_count_begins_anew() -> None:
    noted = Misbehaviour(SMALL)
    times = [START, START + 3590, START + 3601, START + 3602, START + 3603, START + 3604]
    # The first is out of the window when the third comes.
    assert [noted.note("device", at) for at in times] == [False, False, False, True, False, False]
    assert not noted.note("other", START + 3604)


def test_no_number_of_invalid_messages_quarantines_where_the_limit_is_0() -> None:
    noted = Misbehaviour(replace(SMALL, invalid_before_quarantine=0))
    assert not any(noted.note("device", START) for _ in range(1000))
    assert len(noted) == 0


def test_a_limit_of_1_quarantines_at_once() -> None:
    assert Misbehaviour(replace(SMALL, invalid_before_quarantine=1)).note("device", START)


def test_devices_that_behave_again_are_forgotten() -> None:
    noted = Misbehaviour(SMALL)
    for index in range(1000):
        noted.note(f"device-{index}", START)
    assert len(noted) == 1000
    noted.note("other", START + HOUR)
    assert len(noted) == 1


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.floats(0, 4000)), max_size=80))
def test_the_window_counts_what_a_plain_list_counts(steps: list[tuple[str, float]]) -> None:
    noted = Misbehaviour(SMALL)
    plain: dict[str, list[float]] = {"a": [], "b": []}
    now = START
    for device, passed in steps:
        now += passed
        times = [at for at in plain[device] if now - at < HOUR] + [now]
        expected = len(times) >= 3
        plain[device] = [] if expected else times
        assert noted.note(device, now) == expected


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.floats(-4000, 4000)), max_size=80))
def test_with_a_clock_that_jumps_it_still_takes_three_and_three_at_once_are_enough(
    steps: list[tuple[str, float]],
) -> None:
    noted = Misbehaviour(SMALL)
    since = {"a": 0, "b": 0}
    now = START
    for device, passed in steps:
        now += passed
        since[device] += 1
        if noted.note(device, now):
            assert since[device] >= 3
            since[device] = 0
        assert len(noted) <= 2
    for device in since:
        assert any(noted.note(device, now) for _ in range(3))
