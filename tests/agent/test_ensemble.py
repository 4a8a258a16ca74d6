"""Adapters that predict together: two outvote one that is bad, and none shouts the others down."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent import ensemble
from agent.dataset import Labelled
from agent.ensemble import MEMBERS, Ensemble, Member
from agent.errors import AgentError
from agent.gate import Decision
from agent.store import Store
from agent.training import train
from agent.verdict import Verdict, judge
from protocol.charter import SendingPolicy, TrainingPolicy
from protocol.messages import CHOICES, DEFAULTS
from tests.agent.test_training import ENGINE, START, data, random
from tests.builders import PARAMETERS

CLASSES = 3


@dataclass
class Says:
    """An engine whose adapter holds the logits of every window: float32 [n * classes]."""

    classes: int = CLASSES

    def predict(self, adapter: NDArray[np.float32], features: NDArray[np.float32]) -> NDArray[np.float32]:
        return adapter.reshape(-1, self.classes)[features[:, 0].astype(int)]


ENGINE_THAT_SAYS: Any = Says()
FIRST, SECOND, THIRD = np.eye(CLASSES, dtype=np.float32) * 2


def said(*members: tuple[Any, float]) -> NDArray[np.float64]:
    made = Ensemble(tuple(Member(np.asarray(a, np.float32).reshape(-1), scale) for a, scale in members))
    windows = np.arange(len(np.asarray(members[0][0]).reshape(-1, CLASSES)), dtype=np.float32)
    return made.logits(ENGINE_THAT_SAYS, windows[:, None])


def test_two_outvote_one_however_loud_it_is() -> None:
    loud = 1000 * SECOND
    assert said((FIRST, 1), (FIRST, 1), (loud, 1)).argmax() == 1
    assert said((FIRST, 1), (FIRST, 1), (loud, 1000)).argmax() == 0


def test_an_adapter_alone_says_what_it_says() -> None:
    adapter = train(ENGINE, START, data(20, 20), TrainingPolicy(learning_rate=0.1), random())
    windows = data(5, 5, seed=1).features
    assert ensemble.single(adapter).logits(ENGINE, windows).tolist() == (
        ENGINE.predict(adapter, windows).astype(np.float64).tolist()
    )


def test_a_single_window_is_predicted_as_among_many() -> None:
    random = np.random.Generator(np.random.PCG64(1))
    members = tuple(
        Member(random.normal(size=PARAMETERS).astype(np.float32), scale) for scale in (0.5, 2.0, 7.0)
    )
    windows = data(9, 8).features
    together = Ensemble(members).logits(ENGINE, windows)
    for index in range(len(windows)):
        alone = Ensemble(members).logits(ENGINE, windows[index : index + 1])
        np.testing.assert_allclose(alone[0], together[index], rtol=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_member_that_breaks_down_on_a_window_has_no_say_there(broken: float) -> None:
    sound, other = np.stack([FIRST, THIRD]), np.stack([SECOND, 5 * SECOND])
    other[0, 1] = broken
    found = said((sound, 1), (other, 1))
    assert found[0].tolist() == FIRST.tolist()
    assert found[1].argmax() == 1
    nobody = np.full_like(other, broken)
    assert np.isnan(said((nobody, 1), (nobody, 1))).all()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_divisor_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale: expected a positive number"):
        Member(START, scale)
    with pytest.raises(ValueError, match="expected at least one"):
        Ensemble(())


@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=3))
def test_how_loud_each_member_is_changes_nothing_once_scales_are_measured(loudness: list[float]) -> None:
    windows = data(8, 8).features
    generator = np.random.Generator(np.random.PCG64(2))
    adapters = {name: generator.normal(size=PARAMETERS).astype(np.float32) for name in "abc"}

    def logits(factors: list[float]) -> NDArray[np.float64]:
        louder = {name: a * np.float32(f) for (name, a), f in zip(adapters.items(), factors, strict=True)}
        scales = ensemble.spreads(ENGINE, "abc", louder, windows)
        return ensemble.together("abc", louder, scales).logits(ENGINE, windows)

    np.testing.assert_allclose(logits(loudness), logits([1.0, 1.0, 1.0]), atol=1e-4)


# The gate on ensembles

POLICY = TrainingPolicy(learning_rate=0.05, epochs=10)
TRAINING, HELD_OUT, LATER = data(8, 8), data(12, 12, seed=1), data(300, 300, seed=2)
NONSENSE = np.array([40, -40, 0, 0, 0, 0], np.float32)
"""A release that takes every window for the other class, and is very sure."""


def learned(release: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    both = Labelled(
        *(
            np.concatenate([getattr(part, field) for part in (TRAINING, HELD_OUT)])
            for field in ("features", "labels", "recording", "start")
        )
    )
    starts = {"local": START, "personal": release}
    return {
        **{name: train(ENGINE, start, TRAINING, POLICY, random()) for name, start in starts.items()},
        **{f"{name}_full": train(ENGINE, start, both, POLICY, random()) for name, start in starts.items()},
        "global": release,
        "initial": START,
    }


def accuracy(verdict: Verdict, adapters: dict[str, NDArray[np.float32]]) -> float:
    logits = verdict.used(adapters).logits(ENGINE, LATER.features)
    return float(np.mean(logits.argmax(1) == LATER.labels))


def test_a_release_that_is_nonsense_makes_the_gate_leave_the_ensemble() -> None:
    adapters = learned(NONSENSE)
    verdict = judge(ENGINE, adapters, TRAINING, HELD_OUT, "ensemble")
    assert verdict.decision.choice == "local"
    assert verdict.gains["ensemble"] < 0
    assert accuracy(verdict, adapters) > 0.9


def test_a_fleet_that_chose_the_ensemble_keeps_a_device_with_few_windows_in_it() -> None:
    adapters = learned(train(ENGINE, START, data(50, 50, seed=7), POLICY, random()))
    few = HELD_OUT.take(np.array([0, 1, -2, -1]))
    assert judge(ENGINE, adapters, TRAINING, few, "ensemble").decision.choice == "ensemble"
    assert judge(ENGINE, adapters, TRAINING, few, "local").decision.choice == "local"


def test_a_default_that_is_wrong_on_too_few_windows_for_proof_is_vetoed_all_the_same() -> None:
    adapters = learned(NONSENSE)
    adapters["personal"] = adapters["personal_full"] = NONSENSE
    few = HELD_OUT.take(np.array([0, 1, -2, -1]))  # four windows can prove nothing
    assert judge(ENGINE, adapters, TRAINING, few, "ensemble").decision == Decision("local", 0.0)


def test_what_is_used_was_trained_on_all_windows_and_what_is_judged_was_not() -> None:
    adapters = learned(train(ENGINE, START, data(50, 50, seed=7), POLICY, random()))
    verdict = judge(ENGINE, adapters, TRAINING, HELD_OUT, "ensemble")
    assert [member.vector.tobytes() for member in verdict.used(adapters).members] == [
        adapters[name].tobytes() for name in ("local_full", "global", "personal_full")
    ]
    changed = {**adapters, "local_full": NONSENSE, "personal_full": NONSENSE}
    again = judge(ENGINE, changed, TRAINING, HELD_OUT, "ensemble")
    assert (again.decision, again.gains) == (verdict.decision, verdict.gains)


@pytest.mark.parametrize("default", ["local", "ensemble"])
def test_without_held_out_windows_the_default_stays_and_its_scales_are_those_of_the_training(
    default: str,
) -> None:
    adapters, nothing = learned(START + 0.5), HELD_OUT.take(np.zeros(0, np.int64))
    verdict = judge(ENGINE, adapters, TRAINING, nothing, default)
    assert (verdict.decision.choice, set(verdict.gains.values())) == (default, {0.0})
    expected = {name: ENGINE.predict(adapters[name], TRAINING.features).std() for name in verdict.scales}
    assert verdict.scales == pytest.approx(expected)
    unlabelled = judge(ENGINE, adapters, nothing, nothing, default)
    assert set(unlabelled.scales.values()) == {1.0}
    assert np.isfinite(unlabelled.used(adapters).logits(ENGINE, LATER.features)).all()


# In the device's store


def store_with(choice: str) -> tuple[Store, dict[str, NDArray[np.float32]], Verdict]:
    adapters = learned(train(ENGINE, START, data(50, 50, seed=7), POLICY, random()))
    verdict = judge(ENGINE, adapters, TRAINING, HELD_OUT.take(np.array([0, -1])), "ensemble")
    store = Store(":memory:")
    store.install(1, b"p" * 32, adapters["initial"], TrainingPolicy(), SendingPolicy())
    kept = {name: adapter for name, adapter in adapters.items() if name != "initial"}
    store.adopt(0, b"b" * 32, kept, choice, ensemble.as_facts(verdict.scales))
    return store, adapters, verdict


def test_the_ensemble_comes_out_of_the_store_as_it_went_in() -> None:
    store, adapters, verdict = store_with("ensemble")
    found = ensemble.in_use(store)
    assert found is not None
    windows = LATER.features
    assert found.logits(ENGINE, windows).tobytes() == verdict.used(adapters).logits(ENGINE, windows).tobytes()
    store.close()


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ("local", "local_full"),
        ("personal", "personal_full"),
        ("global", "global"),
        ("backbone", "initial"),
    ],
)
def test_every_other_choice_is_one_adapter(choice: str, name: str) -> None:
    store, adapters, _ = store_with(choice)
    found = ensemble.in_use(store)
    assert found is not None
    assert [(member.vector.tobytes(), member.scale) for member in found.members] == [
        (adapters[name].tobytes(), 1)
    ]
    store.close()


def test_before_a_package_there_is_nothing_to_use_and_after_it_what_the_package_brought() -> None:
    store = Store(":memory:")
    assert ensemble.in_use(store) is None
    store.install(1, b"p" * 32, START + 3, TrainingPolicy(), SendingPolicy())
    found = ensemble.in_use(store)
    assert found is not None
    assert [member.vector.tolist() for member in found.members] == [(START + 3).tolist()]
    store.adopt(0, b"b" * 32, {}, "ensemble", {})
    with pytest.raises(AgentError, match="the store lost its adapters"):
        ensemble.in_use(store)
    store.close()


def test_every_choice_that_a_report_may_name_has_members() -> None:
    assert set(MEMBERS) == set(CHOICES)
    assert set(DEFAULTS) <= set(CHOICES)
