"""The peers' network and training must be ours, or the comparison means nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from agent import optimizers
from agent.objective import class_weights
from benchmarks.peers.flower_app.adapter_training import training
from benchmarks.peers.flower_app.adapter_training.network import AdaptedNetwork, load
from models.adapters import AdaptedModule
from models.backbones import Conv1dBackbone, default_adapter
from models.export import adapt
from protocol.charter import TrainingPolicy
from protocol.input_schema import InputSchema, WindowSpec

SCHEMA = InputSchema("timeseries", ("x", "y"), 100.0, ("a", "b", "c"))
WINDOW = WindowSpec(64, 64)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[AdaptedModule, AdaptedNetwork]:
    """A module of ours with random weights and statistics, and the peer's network of the same weights."""
    torch.manual_seed(0)
    backbone = Conv1dBackbone.build(SCHEMA, WINDOW)
    backbone.set_normalisation(torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.5]))
    for layer in backbone.modules():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(0.5, 2)
            layer.bias.data.normal_()
    module = adapt(backbone.eval(), default_adapter(), SCHEMA, WINDOW)
    for adapter in module.adapters:
        adapter.up.weight.data.normal_(0, 0.1)  # not the identity any more
    arrays = {name: value.numpy() for name, value in backbone.state_dict().items()}
    arrays |= {f"adapters.{name}": value.numpy() for name, value in module.adapters.state_dict().items()}
    arrays["strides"] = np.array([backbone.stem[index].stride[0] for index in (0, 3, 6)])
    np.savez(tmp_path / "weights.npz", **arrays)
    return module, load(tmp_path / "weights.npz")


def test_the_network_computes_what_our_module_computes(pair: tuple[AdaptedModule, AdaptedNetwork]) -> None:
    module, network = pair
    windows = torch.randn(9, 2, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(windows), module(windows), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(network.flat_adapter(), module.flat_adapter().numpy())


def test_only_adapters_and_head_learn(pair: tuple[AdaptedModule, AdaptedNetwork]) -> None:
    _, network = pair
    before = {name: value.clone() for name, value in network.state_dict().items()}
    windows, labels = torch.randn(40, 2, 64), torch.arange(40) % 3
    random = np.random.default_rng(0)
    training.train(network, windows, labels, epochs=1, batch=16, learning_rate=0.01, random=random)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("adapters.", "head.")) for name in changed)


def test_cached_features_train_the_same_adapter(pair: tuple[AdaptedModule, AdaptedNetwork]) -> None:
    _, network = pair
    initial = network.flat_adapter().copy()
    windows, labels = torch.randn(40, 2, 64), torch.arange(40) % 3
    settings = {"epochs": 2, "batch": 16, "learning_rate": 0.01}
    training.train(network, windows, labels, random=np.random.default_rng(0), **settings)
    whole = network.flat_adapter().copy()
    network.set_adapter(initial)
    features = training.features(network, windows, 16)
    training.train(
        network, features, labels, random=np.random.default_rng(0), forward=network.trained, **settings
    )
    np.testing.assert_allclose(network.flat_adapter(), whole, rtol=0, atol=2e-4)


def test_a_step_is_that_of_our_optimiser(pair: tuple[AdaptedModule, AdaptedNetwork]) -> None:
    module, network = pair
    windows, labels = torch.randn(16, 2, 64), torch.tensor([0] * 8 + [1] * 5 + [2] * 3)
    start = network.flat_adapter().copy()
    weights = torch.from_numpy(class_weights(labels.numpy()))
    torch.testing.assert_close(training.class_weights(labels), weights)
    losses = torch.nn.functional.cross_entropy(module(windows), labels, reduction="none")
    loss = (losses * weights).sum() / weights.sum()
    named = dict(module.named_parameters())
    gradients = torch.autograd.grad(loss, [named[name] for name in module.trainable()])
    gradient = torch.cat([part.flatten() for part in gradients]).numpy()
    policy = TrainingPolicy(learning_rate=0.01)
    expected = optimizers.make(policy, policy.learning_rate).step(start, gradient)
    random = np.random.default_rng(0)
    training.train(network, windows, labels, epochs=1, batch=16, learning_rate=0.01, random=random)
    # The first step of Adam is about the sign of the gradient: where that is 0, rounding decides.
    clear = np.abs(gradient) > 1e-5
    np.testing.assert_allclose(network.flat_adapter()[clear], expected[clear], rtol=0, atol=2e-4)
    assert clear.mean() > 0.5
