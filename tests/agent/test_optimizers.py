"""Optimisers: by hand, on a quadratic, and against PyTorch where that is installed."""

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.optimizers import SGD, AdamW, Optimizer, make
from protocol.charter import TrainingPolicy

START = np.array([1.0, -2.0, 0.5, 3.0], np.float32)
CURVATURE = np.array([1.0, 2.0, 0.5, 4.0], np.float32)


def descend(optimizer: Optimizer, steps: int) -> NDArray[np.float32]:
    """Steps down a quadratic whose minimum is at zero."""
    vector = START
    for _ in range(steps):
        vector = optimizer.step(vector, CURVATURE * vector)
    return vector


def test_the_first_step_of_adam_has_the_length_of_the_learning_rate() -> None:
    after = AdamW(0.1).step(START, np.array([5.0, -0.1, 1e-3, 2.0], np.float32))
    assert np.allclose(START - after, [0.1, -0.1, 0.1, 0.1], atol=1e-5)


def test_two_steps_of_adam_by_hand() -> None:
    optimizer = AdamW(0.1, epsilon=0.0)
    vector = np.array([1.0], np.float32)
    for gradient in (1.0, 2.0):
        vector = optimizer.step(vector, np.array([gradient], np.float32))
    mean = (0.9 * 0.1 + 0.1 * 2.0) / (1 - 0.9**2)
    square = (0.999 * 0.001 + 0.001 * 4.0) / (1 - 0.999**2)
    assert vector[0] == pytest.approx(0.9 - 0.1 * mean / np.sqrt(square), rel=1e-6)


def test_momentum_by_hand() -> None:
    optimizer = SGD(0.1, momentum=0.5)
    vector = np.array([0.0], np.float32)
    path = []
    for _ in range(3):
        vector = optimizer.step(vector, np.array([1.0], np.float32))
        path.append(float(vector[0]))
    assert path == pytest.approx([-0.1, -0.25, -0.425])


def test_decay_pulls_towards_zero_without_a_gradient() -> None:
    nothing = np.zeros_like(START)
    assert AdamW(0.1, weight_decay=0.5).step(START, nothing) == pytest.approx(START * 0.95)
    assert SGD(0.1, weight_decay=0.5).step(START, nothing) == pytest.approx(START * 0.95)


@pytest.mark.parametrize("optimizer", [AdamW(0.05), SGD(0.1), SGD(0.05, momentum=0.8)])
def test_a_quadratic_is_descended_to_its_minimum(optimizer: Optimizer) -> None:
    assert np.abs(descend(optimizer, 600)).max() < 1e-2


def test_vectors_stay_float32_and_the_input_is_left_alone() -> None:
    for optimizer in (AdamW(0.05, 0.01), SGD(0.1, 0.9, 0.01)):
        before = START.copy()
        assert optimizer.step(START, CURVATURE).dtype == np.float32
        assert START.tobytes() == before.tobytes()


def test_the_policy_names_the_optimiser() -> None:
    adam = make(TrainingPolicy(learning_rate=0.01, weight_decay=0.1))
    assert isinstance(adam, AdamW)
    assert (adam.learning_rate, adam.weight_decay) == (0.01, 0.1)
    sgd = make(TrainingPolicy("sgd", learning_rate=0.02, weight_decay=0.2, momentum=0.3))
    assert isinstance(sgd, SGD)
    assert (sgd.learning_rate, sgd.momentum, sgd.weight_decay) == (0.02, 0.3, 0.2)


@pytest.mark.parametrize(
    "policy",
    [
        TrainingPolicy(learning_rate=0.05),
        TrainingPolicy(learning_rate=0.05, weight_decay=0.1),
        TrainingPolicy("sgd", learning_rate=0.05, momentum=0.0),
        TrainingPolicy("sgd", learning_rate=0.05, momentum=0.9, weight_decay=0.01),
    ],
)
def test_every_step_agrees_with_pytorch(policy: TrainingPolicy) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    parameter = torch.nn.Parameter(torch.tensor(START))
    foreign = (
        torch.optim.AdamW([parameter], policy.learning_rate, weight_decay=policy.weight_decay)
        if policy.optimizer == "adamw"
        else torch.optim.SGD(
            [parameter], policy.learning_rate, momentum=policy.momentum, weight_decay=policy.weight_decay
        )
    )
    own, vector = make(policy), START
    for _ in range(50):
        gradient = CURVATURE * vector
        parameter.grad = torch.tensor(gradient)
        foreign.step()
        vector = own.step(vector, gradient)
        assert np.allclose(vector, parameter.detach().numpy(), rtol=1e-5, atol=1e-5)
