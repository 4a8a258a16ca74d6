"""The round machine: rounds open and close by rule, whatever comes in whatever order."""

import math
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from server.round import (
    RETURN_SECONDS,
    CloseRound,
    ExtendRound,
    Open,
    OpenRound,
    RoundPolicy,
    State,
    Waiting,
    count,
    tick,
)

NOBODY: frozenset[str] = frozenset()
ABC = frozenset("abc")
POLICY = RoundPolicy(minimum_devices=2, deadline_seconds=100.0, gather_seconds=30.0)


def opened(policy: RoundPolicy = POLICY, devices: frozenset[str] = ABC, now: float = 0.0) -> Open:
    state, _ = tick(Waiting(1), policy, now, devices, NOBODY)
    assert isinstance(state, Open)
    return state


def test_a_round_opens_at_once_when_everyone_is_ready() -> None:
    state, actions = tick(Waiting(5), POLICY, 10.0, ABC, NOBODY)
    assert actions == [OpenRound(5, ("a", "b", "c"), 110.0)]
    assert state == Open(5, ABC, NOBODY, 110.0, 0)


def test_below_the_minimum_nothing_opens() -> None:
    assert tick(Waiting(1), POLICY, 1e9, frozenset("a"), NOBODY) == (Waiting(1), [])


def test_others_are_waited_for_but_not_for_ever() -> None:
    state: State = Waiting(1)
    for now in (0.0, 29.9):
        state, actions = tick(state, POLICY, now, ABC, frozenset("d"))
        assert actions == []
    state, actions = tick(state, POLICY, 30.0, ABC, frozenset("d"))
    assert actions == [OpenRound(1, ("a", "b", "c"), 130.0)]


def test_the_wait_begins_anew_when_the_minimum_is_lost() -> None:
    state, _ = tick(Waiting(1), POLICY, 0.0, ABC, frozenset("d"))
    state, _ = tick(state, POLICY, 20.0, frozenset("a"), frozenset("d"))
    state, actions = tick(state, POLICY, 31.0, ABC, frozenset("d"))
    assert actions == []
    assert isinstance(state, Waiting)
    assert state.minimum_since == 31.0


def test_a_device_that_is_ready_is_not_waited_for() -> None:
    _, actions = tick(Waiting(1), POLICY, 0.0, ABC, frozenset("abc"))
    assert actions == [OpenRound(1, ("a", "b", "c"), 100.0)]


def test_a_round_closes_with_the_last_update() -> None:
    state: State = opened()
    for device in "ab":
        assert isinstance(state, Open)
        state, actions = count(state, POLICY, 1.0, device)
        assert actions == []
    assert isinstance(state, Open)
    state, actions = count(state, POLICY, 1.0, "c")
    assert actions == [CloseRound(1)]
    assert state == Waiting(2, 1, 1.0)


def test_counting_a_device_twice_counts_it_once() -> None:
    state, _ = count(opened(), POLICY, 1.0, "a")
    assert isinstance(state, Open)
    assert count(state, POLICY, 2.0, "a") == (state, [])


def test_a_quorum_is_enough_at_the_deadline_and_not_before() -> None:
    state: State = opened()
    for device in "ab":
        assert isinstance(state, Open)
        state, _ = count(state, POLICY, 1.0, device)
    assert tick(state, POLICY, 99.9, NOBODY, NOBODY) == (state, [])
    _, actions = tick(state, POLICY, 100.0, NOBODY, NOBODY)
    assert actions == [CloseRound(1)]


def test_a_deadline_without_quorum_moves_on_and_keeps_what_was_counted() -> None:
    state, _ = count(opened(), POLICY, 1.0, "a")
    state, actions = tick(state, POLICY, 250.0, NOBODY, NOBODY)
    assert actions == [ExtendRound(1, 350.0)]
    assert isinstance(state, Open)
    assert state.counted == {"a"}
    state, _ = count(state, POLICY, 260.0, "b")
    _, actions = tick(state, POLICY, 350.0, NOBODY, NOBODY)
    assert actions == [CloseRound(1)]


def test_no_deadline_passes_while_the_broker_is_away_nor_before_devices_are_back() -> None:
    state, _ = count(opened(), POLICY, 1.0, "a")
    state, _ = count(state, POLICY, 1.0, "b")
    assert tick(state, POLICY, 3600.0, NOBODY, NOBODY, reachable_since=None) == (state, [])
    back = 3600.0
    early = back + RETURN_SECONDS - 0.1
    assert tick(state, POLICY, early, NOBODY, NOBODY, reachable_since=back) == (state, [])
    _, actions = tick(state, POLICY, back + RETURN_SECONDS, NOBODY, NOBODY, reachable_since=back)
    assert actions == [CloseRound(1)]
    _, actions = count(state, POLICY, early, "c")
    assert actions == [CloseRound(1)]  # everyone is counted: nothing to wait for


def test_a_short_deadline_is_not_stretched_further_than_by_itself() -> None:
    policy = RoundPolicy(minimum_devices=2, quorum=0.5, deadline_seconds=8.0)
    state: State = opened(policy)
    for device in "ab":
        assert isinstance(state, Open)
        state, _ = count(state, policy, 1.0, device)
    _, actions = tick(state, policy, 108.0, NOBODY, NOBODY, reachable_since=100.0)
    assert actions == [CloseRound(1)]


def test_no_round_opens_that_nobody_would_hear_of() -> None:
    assert tick(Waiting(1), POLICY, 0.0, ABC, NOBODY, reachable_since=None) == (Waiting(1), [])


def test_a_resumed_round_with_everyone_counted_closes() -> None:
    _, actions = tick(Open(4, ABC, ABC, 1e9), POLICY, 0.0, NOBODY, NOBODY)
    assert actions == [CloseRound(4)]


def test_the_pause_lies_between_two_rounds() -> None:
    policy = RoundPolicy(minimum_devices=1, pause_seconds=10.0)
    state, _ = count(opened(policy, frozenset("a")), policy, 5.0, "a")
    state, actions = tick(state, policy, 14.9, frozenset("a"), NOBODY)
    assert actions == []
    _, actions = tick(state, policy, 15.0, frozenset("a"), NOBODY)
    assert actions == [OpenRound(2, ("a",), 615.0)]


def test_after_the_last_round_of_a_package_none_opens() -> None:
    policy = RoundPolicy(rounds=3)
    assert tick(Waiting(9, rounds_done=3), policy, 1e9, ABC, NOBODY) == (Waiting(9, rounds_done=3), [])
    _, actions = tick(Waiting(9, rounds_done=2), policy, 1e9, ABC, NOBODY)
    assert len(actions) == 1


def test_of_too_many_devices_a_part_is_taken_that_changes_by_round() -> None:
    policy = RoundPolicy(maximum_devices=5)
    devices = frozenset(f"device-{index:02}" for index in range(40))
    cohorts = []
    for number in range(1, 20):
        state, [action] = tick(Waiting(number), policy, 0.0, devices, NOBODY)
        assert tick(Waiting(number), policy, 0.0, devices, NOBODY) == (state, [action])
        assert isinstance(action, OpenRound)
        assert len(set(action.cohort)) == 5
        cohorts.append(action.cohort)
    assert len(set(cohorts)) > 15
    assert len(set().union(*cohorts)) > 30


@pytest.mark.parametrize(
    "change",
    [
        {"minimum_devices": 0},
        {"minimum_devices": 3, "maximum_devices": 2},
        {"quorum": 0.0},
        {"quorum": 1.5},
        {"quorum": float("nan")},
        {"deadline_seconds": 0.0},
        {"gather_seconds": -1.0},
        {"pause_seconds": -1.0},
        {"rounds": -1},
    ],
)
def test_a_policy_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        RoundPolicy(**change)


class RoundMachine(RuleBasedStateMachine):
    """Devices come and go, updates come or not, time passes: no rule of round.py is ever broken."""

    devices = st.frozensets(st.sampled_from("abcdef"))

    @initialize(
        minimum=st.integers(1, 3),
        spare=st.integers(0, 3),
        quorum=st.sampled_from([0.2, 0.5, 0.67, 1.0]),
        rounds=st.integers(0, 3),
        pause=st.sampled_from([0.0, 40.0]),
    )
    def start(self, minimum: int, spare: int, quorum: float, rounds: int, pause: float) -> None:
        self.policy = RoundPolicy(minimum, minimum + spare, quorum, 100.0, 30.0, pause, rounds)
        self.state: State = Waiting(1)
        self.now = 0.0
        self.closed = 0
        self.closed_at = -math.inf

    @rule(seconds=st.sampled_from([0.0, 5.0, 50.0, 500.0]), ready=devices, expected=devices)
    def time_passes(self, seconds: float, ready: frozenset[str], expected: frozenset[str]) -> None:
        self.now += seconds
        before = self.state
        again = tick(before, self.policy, self.now, ready, expected)
        self.state, actions = tick(before, self.policy, self.now, ready, expected)
        assert (self.state, actions) == again
        assert len(actions) <= 1
        for action in actions:
            if isinstance(action, OpenRound):
                assert isinstance(before, Waiting)
                assert set(action.cohort) <= ready
                assert len(ready) >= self.policy.minimum_devices
                assert self.policy.minimum_devices <= len(action.cohort) <= self.policy.maximum_devices
                assert self.now >= self.closed_at + self.policy.pause_seconds
                assert not self.policy.rounds or self.closed < self.policy.rounds
            elif isinstance(action, ExtendRound):
                assert isinstance(before, Open)
                assert isinstance(self.state, Open)
                assert before.deadline <= self.now < action.deadline
                assert self.state.counted == before.counted
                assert len(before.counted) < self.policy.quorum * len(before.cohort)
            else:
                assert isinstance(before, Open)
                assert self.now >= before.deadline
                assert len(before.counted) >= max(1, self.policy.quorum * len(before.cohort))
                self.note_close(before, action)

    @rule(index=st.integers(0, 9))
    def an_update_is_counted(self, index: int) -> None:
        if isinstance(self.state, Open):
            before = self.state
            device = sorted(before.cohort)[index % len(before.cohort)]
            self.state, actions = count(before, self.policy, self.now, device)
            everyone = before.counted | {device} == before.cohort
            assert actions == ([CloseRound(before.number)] if everyone else [])
            if everyone:
                self.note_close(before, actions[0])

    def note_close(self, before: Open, action: Any) -> None:
        assert action == CloseRound(before.number)
        self.closed += 1
        self.closed_at = self.now
        assert isinstance(self.state, Waiting)
        assert self.state.next_number == before.number + 1

    @invariant()
    def numbers_grow_by_one(self) -> None:
        number = self.state.number if isinstance(self.state, Open) else self.state.next_number
        assert number == self.closed + 1
        assert self.state.rounds_done == self.closed


RoundMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestRoundMachine = RoundMachine.TestCase
