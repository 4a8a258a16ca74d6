"""The gate: an adapter is adopted on evidence, never on luck, and never when there is too little to see."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.gate import LOSS_CAP, SIGNIFICANCE, Decision, chance, decide


def around(level: float, count: int = 20, seed: int = 0) -> NDArray[np.float64]:
    return level + np.random.Generator(np.random.PCG64(seed)).normal(0, 0.02, count)


@pytest.mark.parametrize("count", range(6))
def test_too_few_windows_decide_nothing(count: int) -> None:
    assert decide({"local": np.full(count, 3.0), "personal": np.zeros(count)}) == Decision("local", 0.0)


def test_a_consistent_win_is_adopted() -> None:
    decision = decide({"local": around(0.8), "personal": around(0.5, seed=1)})
    assert decision.choice == "personal"
    assert decision.gain == pytest.approx(0.3, abs=0.02)


def test_six_windows_that_agree_are_enough() -> None:
    assert decide({"local": np.full(6, 0.8), "personal": np.full(6, 0.5)}).choice == "personal"


@pytest.mark.parametrize("count", [6, 9, 12, 13, 100])
@pytest.mark.parametrize("gain", [0.1, 3.9])
def test_one_lucky_window_wins_nothing(count: int, gain: float) -> None:
    local = np.zeros(count)
    local[0] = gain
    assert decide({"local": local, "personal": np.zeros(count)}) == Decision("local", 0.0)


def test_chances_by_hand() -> None:
    assert chance(np.array([1.0, 2.0])) == 0.25
    assert chance(np.array([1.0, -2.0])) == 0.75
    assert chance(np.zeros(3)) == 1.0
    assert chance(np.array([5.0, 1.0, 1.0, 1.0])) == 1 / 16


def test_of_adapters_that_are_no_better_few_are_adopted() -> None:
    random = np.random.Generator(np.random.PCG64(3))
    trials = 400
    lucky = sum(chance(random.standard_t(2, 20)) <= SIGNIFICANCE for _ in range(trials))
    assert lucky <= trials * SIGNIFICANCE + 4 * np.sqrt(trials * SIGNIFICANCE)


def test_the_best_of_several_wins() -> None:
    losses = {"local": around(0.8), "personal": around(0.6), "global": around(0.3), "backbone": around(0.9)}
    assert decide(losses).choice == "global"


def test_the_backbone_may_win() -> None:
    losses = {"local": around(0.8), "personal": around(0.9), "global": around(1.2), "backbone": around(0.1)}
    assert decide(losses).choice == "backbone"


def test_a_loss_that_scatters_more_than_it_gains_wins_nothing() -> None:
    personal = np.tile([0.0, 1.5], 10)
    assert decide({"local": np.full(20, 0.8), "personal": personal}) == Decision("local", 0.0)


def test_one_window_that_is_confidently_wrong_does_not_outweigh_the_others() -> None:
    local = around(0.8)
    local[3] = 1e6
    worse = around(0.9)
    assert decide({"local": local, "global": worse}).choice == "local"
    better = around(0.4, 60)
    better[3] = 1e6
    assert decide({"local": around(0.8, 60), "global": better}).choice == "global"


@pytest.mark.parametrize("count", [6, 9, 30])
def test_one_lucky_window_that_the_rest_pays_for_wins_nothing(count: int) -> None:
    local, personal = np.full(count, 0.5), np.full(count, 0.51)
    local[0], personal[0] = 3.0, 0.0
    assert decide({"local": local, "personal": personal}).choice == "local"


losses = st.lists(st.tuples(*[st.floats(0, 10)] * 3), max_size=30)


@given(losses)
def test_what_is_chosen_is_never_worse_on_the_mean(rows: list[tuple[float, float, float]]) -> None:
    table = np.array(rows, np.float64).reshape(-1, 3)
    candidates = {"local": table[:, 0], "personal": table[:, 1], "global": table[:, 2]}
    decision = decide(candidates)
    assert decision.gain >= 0
    if decision.choice != "local":
        capped = {name: np.minimum(values, LOSS_CAP).mean() for name, values in candidates.items()}
        assert capped[decision.choice] < capped["local"]
        assert decision.gain == pytest.approx(capped["local"] - capped[decision.choice], abs=1e-9)


@given(losses)
def test_the_order_of_windows_does_not_matter(rows: list[tuple[float, float, float]]) -> None:
    table = np.round(np.array(rows, np.float64).reshape(-1, 3) * 1024) / 1024  # sums are exact
    one = decide({"local": table[:, 0], "personal": table[:, 1]})
    other = decide({"local": table[::-1, 0], "personal": table[::-1, 1]})
    assert one.gain == other.gain or {one.choice, other.choice} == {"local", "personal"}
