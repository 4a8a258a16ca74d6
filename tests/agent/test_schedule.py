"""The schedule: cheap where nothing is gained, never out of bounds, and deaf to figures that cannot be."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import schedule
from agent.appraisal import weighed
from agent.measurement import Gain
from agent.schedule import CHAINS, LOOK_AGAIN, Effort, Observation, State
from protocol.charter import ADAPTIVE, SchedulePolicy, TrainingPolicy

POLICY, TRAINING = SchedulePolicy(ADAPTIVE), TrainingPolicy()
SEGMENTS = ("first", "second", "head")
PRICE = 1500 / 1024 * POLICY.nats_per_kib
STEPS, FITTED = dict.fromkeys(CHAINS, 40.0), 1e-4

numbers = st.floats(allow_nan=True, allow_infinity=True)
anything = st.one_of(numbers, st.floats(-1, 1))
gains = st.builds(Gain, anything, anything)
observations = st.builds(
    Observation,
    st.dictionaries(st.sampled_from(CHAINS), gains),
    st.dictionaries(st.sampled_from(CHAINS), anything),
    anything,
    st.none() | gains,
    st.integers(0, 1 << 40),
)
policies = st.builds(
    SchedulePolicy,
    st.just(ADAPTIVE),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.floats(0, 1),
    st.floats(0, 10),
    st.integers(1, 100),
)


def seen(half: float, release: float, variance: float = 0.01) -> Observation:
    """Both chains gained as much."""
    gain = Gain(half, variance)
    return Observation(dict.fromkeys(CHAINS, gain), STEPS, FITTED, Gain(release, 0.0), 1500)


def after(count: int, observation: Observation, state: State | None = None) -> State:
    state = state or State(20)
    for _ in range(count):
        state = schedule.observe(state, observation, POLICY, TRAINING)
    return state


def epochs(state: State, release: int = 0) -> dict[str, int]:
    return dict(schedule.plan(state, POLICY, TRAINING, SEGMENTS, release).epochs)


@given(policies, st.integers(1, 1000), st.lists(observations, max_size=30), st.integers(0, 99))
@settings(max_examples=300)
def test_whatever_is_seen_every_plan_is_within_its_bounds_and_the_same_again(
    policy: SchedulePolicy, most: int, many: list[Observation], release: int
) -> None:
    training = TrainingPolicy(epochs=most)

    def plans() -> list[Any]:
        state, found = State(20), []
        for one in many:
            state = schedule.observe(state, one, policy, training)
            found.append((state, schedule.plan(state, policy, training, SEGMENTS, release)))
            schedule.sends(state, policy)
        return found

    for state, plan in plans():
        assert 0 <= plan.epochs["local"] <= most
        assert max(1, math.floor(policy.least_effort * most)) <= plan.epochs["personal"] <= most
        assert "head" not in plan.frozen
        assert len(plan.frozen) < len(SEGMENTS)
        assert all(map(math.isfinite, (state.local.evidence.mean, state.releases.mean)))
    assert plans() == plans()


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf, 1e300])
def test_a_figure_that_cannot_be_changes_nothing(figure: float) -> None:
    state = after(3, seen(0.1, 0.1))
    hostile = Gain(figure, 0.1), Gain(0.1, figure), Gain(0.1, -1.0)
    for gain in hostile:
        bad = Observation(dict.fromkeys(CHAINS, gain), STEPS, FITTED, gain)
        assert schedule.observe(state, bad, POLICY, TRAINING) == state
    endless = Observation(dict.fromkeys(CHAINS, Gain(0.1, 0.1)), dict.fromkeys(CHAINS, figure), FITTED, None)
    if not 0 <= figure < math.inf:
        assert schedule.observe(state, endless, POLICY, TRAINING) == state


def test_a_fixed_schedule_plans_nothing_learns_nothing_and_sends() -> None:
    fixed, state = SchedulePolicy(), State(20)
    plan = schedule.plan(after(20, seen(0.0, 0.0)), fixed, TRAINING, SEGMENTS, 1)
    assert (plan.epochs, plan.frozen, plan.identity) == ({}, (), b"")
    assert schedule.observe(state, seen(0.0, 0.0), fixed, TRAINING) == state
    assert schedule.sends(after(20, seen(0.0, 0.0)), fixed)


def test_training_alone_comes_to_rest_where_it_gains_nothing_and_looks_again() -> None:
    state, found = State(20), []
    for _ in range(4 + LOOK_AGAIN + 1):
        found.append(epochs(state)["local"])
        state = after(1, seen(0.0, 1.0), state)
    assert found == [20, 20, 10, 10, *[0] * LOOK_AGAIN, 10]


def test_a_training_that_pays_goes_on_at_full_length() -> None:
    assert epochs(after(50, seen(0.5, 1.0))) == {"local": 20, "personal": 20}


@pytest.mark.parametrize("left", [0.5, math.nan, math.inf])
def test_a_training_that_has_not_fitted_its_windows_goes_on_whatever_held_out_ones_say(left: float) -> None:
    state, unfitted = State(20), replace(seen(-0.01, 1.0), alone_left=left)
    assert epochs(after(50, unfitted, state)) == {"local": 20, "personal": 20}


def test_what_is_trained_for_the_fleet_stays_as_long_as_releases_pay() -> None:
    assert epochs(after(30, seen(0.0, 2 * PRICE)))["personal"] == 20
    assert epochs(after(30, seen(0.0, 0.0)))["personal"] < 20


def test_effort_rises_where_the_gain_is_beyond_chance() -> None:
    low = State(20, Effort(2), Effort(1))
    assert epochs(after(1, seen(0.5, 1.0), low)) == {"local": 10, "personal": 20}
    assert epochs(after(1, seen(0.1, 1.0), low)) == {"local": 0, "personal": 10}


def test_gains_that_are_noise_do_not_make_a_device_flap() -> None:
    """Two held-out windows: a few changes down, and then a look at the level above now and then."""
    for seed in range(20):
        noise, state, levels = np.random.default_rng(seed), State(20), []
        for _ in range(60):
            windows = noise.normal(0, 0.3, 2)
            half = weighed(windows, np.ones(2, np.float32))
            state = schedule.observe(
                state, Observation({"local": half}, STEPS, FITTED, Gain(0.1, 0)), POLICY, TRAINING
            )
            levels.append(state.local.level)
        assert np.count_nonzero(np.diff(levels)) <= 3 + 3 * 60 / LOOK_AGAIN
        assert np.mean(levels) > 1.5


def test_segments_come_in_turn_and_then_the_device_waits_as_releases_bring_less() -> None:
    def told(release: float) -> tuple[bool, list[tuple[str, ...]]]:
        state = after(8, seen(0.0, release))
        plans = [schedule.plan(state, POLICY, TRAINING, SEGMENTS, number) for number in range(2)]
        return schedule.sends(state, POLICY), [plan.frozen for plan in plans]

    assert told(2 * PRICE) == (True, [(), ()])
    assert told(0.5 * PRICE) == (True, [("second",), ("first",)])
    assert told(0.0) == (False, [(), ()])
    assert told(-1.0) == (False, [(), ()])


def test_one_release_that_is_praised_beyond_measure_does_not_count_for_ever() -> None:
    state = after(1, seen(0.0, 4.0), after(8, seen(0.0, 0.0)))
    assert not schedule.sends(after(8, seen(0.0, 0.0), state), POLICY)


def test_many_new_labels_begin_anew() -> None:
    state = after(30, seen(0.0, 0.0))
    assert schedule.begin(state, 25) == state
    assert epochs(schedule.begin(state, 26)) == {"local": 20, "personal": 20}
    assert schedule.sends(schedule.begin(state, 26), POLICY)


def test_a_gain_of_a_class_counts_as_much_with_one_window_as_with_many() -> None:
    gain = weighed(np.array([0.0, 0.0, 0.0, 1.0]), np.array([2 / 3, 2 / 3, 2 / 3, 2], np.float32))
    assert gain.mean == pytest.approx(0.5)
    few, many = (weighed(np.full(n, 0.2), np.ones(n, np.float32)) for n in (2, 40))
    assert few.variance > 20 * many.variance
