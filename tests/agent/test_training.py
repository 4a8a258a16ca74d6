"""Local training with a model in numpy: the loss falls, rare classes count, without data nothing happens."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dataset import Labelled
from agent.training import class_weights, losses, mean_loss, train
from protocol.messages import TrainingPolicy
from tests.builders import PARAMETERS, LogisticEngine

ENGINE = LogisticEngine()
START = np.zeros(PARAMETERS, np.float32)
POLICY = TrainingPolicy(learning_rate=0.1, epochs=20)


def data(low: int, high: int, seed: int = 0) -> Labelled:
    random = np.random.Generator(np.random.PCG64(seed))
    labels = np.array([0] * low + [1] * high, np.int64)
    features = np.stack(
        [labels * 2.0 - 1.0 + random.normal(0, 0.5, len(labels)), np.ones(len(labels))], axis=1
    )
    place = np.arange(len(labels))
    return Labelled(features.astype(np.float32), labels, np.zeros(len(labels), np.int64), place)


def random() -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(7))


@pytest.mark.parametrize("policy", [POLICY, replace(POLICY, optimizer="sgd", learning_rate=0.05)])
def test_the_loss_falls(policy: TrainingPolicy) -> None:
    windows = data(20, 20)
    after = train(ENGINE, START, windows, policy, random())
    assert mean_loss(ENGINE, START, windows) == pytest.approx(np.log(2))
    assert mean_loss(ENGINE, after, windows) < 0.3
    assert (ENGINE.predict(after, windows.features).argmax(axis=1) == windows.labels).mean() > 0.9


def test_the_same_seed_gives_the_same_adapter() -> None:
    windows = data(15, 6)
    first, second = (train(ENGINE, START, windows, POLICY, random()) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    other = train(ENGINE, START, windows, POLICY, np.random.Generator(np.random.PCG64(8)))
    assert other.tobytes() != first.tobytes()


def test_without_windows_the_adapter_stays() -> None:
    adapter = np.arange(PARAMETERS, dtype=np.float32)
    assert train(ENGINE, adapter, data(0, 0), POLICY, random()).tobytes() == adapter.tobytes()
    assert mean_loss(ENGINE, adapter, data(0, 0)) == 0.0
    assert class_weights(np.zeros(0, np.int64)).shape == (0,)


def test_the_start_is_not_changed() -> None:
    train(ENGINE, START, data(5, 5), POLICY, random())
    assert not START.any()


def test_a_rare_class_is_learned_when_classes_are_balanced() -> None:
    windows = data(200, 4)
    rare = windows.labels == 1
    policy = replace(POLICY, epochs=3, learning_rate=0.02)
    found = {}
    for balance in (True, False):
        adapter = train(ENGINE, START, windows, replace(policy, balance_classes=balance), random())
        found[balance] = losses(ENGINE, adapter, windows)[rare].mean()
    assert found[True] < found[False] / 2


def test_weights_by_hand() -> None:
    assert class_weights(np.array([0, 0, 0, 5])).tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=50))
def test_every_class_has_the_same_weight_and_the_mean_is_one(labels: list[int]) -> None:
    array = np.array(labels)
    weights = class_weights(array)
    assert weights.dtype == np.float32
    assert weights.mean() == pytest.approx(1.0, rel=1e-5)
    sums = [weights[array == label].sum() for label in set(labels)]
    assert sums == pytest.approx([sums[0]] * len(sums), rel=1e-4)


def test_losses_are_cross_entropies_also_for_huge_logits() -> None:
    adapter = np.array([1000.0, -1000.0, 0.0, 0.0, 0.0, 0.0], np.float32)
    features = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], np.float32)
    place = np.arange(3)
    windows = Labelled(features, np.array([0, 1, 0]), place, place)
    assert losses(ENGINE, adapter, windows).tolist() == pytest.approx([0.0, 2000.0, np.log(2)])
