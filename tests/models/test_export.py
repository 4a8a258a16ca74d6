"""Exported graphs against torch: what a device computes is what the module computes."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from models import graphs, parity
from models.adapters import AdaptedModule, AdapterSpec
from models.backbones import Conv1dBackbone, default_adapter
from models.errors import ExportError
from models.export import adapt, export
from protocol.input_schema import InputSchema, WindowSpec
from protocol.package import PREDICT, PREFIX, STEP, ModelPackage, Parity, unpack
from tests.models import networks
from tests.models.networks import BATCH, KEY, SCHEMA, WINDOW, adapted, prepared, relative, some_windows

Case = tuple[type[nn.Module], str, tuple[str, ...], str | None]
EVERY_LINEAR = tuple(f"blocks.{i}.{part}" for i in (0, 1) for part in ("qkv", "out", "up", "down"))
CASES: dict[str, Case] = {
    "bottleneck between linear layers": (networks.Perceptron, "bottleneck", ("1", "3"), "5"),
    "lora on linear layers": (networks.Perceptron, "lora", ("1", "3"), "5"),
    "only the head": (networks.Convolutions, "head", (), "head"),
    "head in the middle of the network": (networks.Convolutions, "head", (), "second.0"),
    "bottleneck below a strided convolution": (
        networks.Convolutions, "bottleneck", ("first", "dense"), "head",
    ),
    "lora on strided convolutions": (networks.Convolutions, "lora", ("first.0", "second.0"), None),
    "bottleneck between 2-D convolutions": (networks.Image, "bottleneck", ("norm",), "head"),
    "a 2-D convolution trained as a whole": (networks.Image, "head", (), "upper"),
    "lora in every block of a transformer": (networks.Encoder, "lora", EVERY_LINEAR, None),
    "bottleneck after a transformer block": (networks.Encoder, "bottleneck", ("blocks.0",), "head"),
    "torch's encoder layers, batch in dimension 1": (
        networks.TorchEncoder, "bottleneck", ("layers.0", "layers.1"), "head",
    ),
}  # fmt: skip


def build(case: str) -> AdaptedModule:
    return adapted(*CASES[case])


def exported(module: AdaptedModule) -> ModelPackage:
    data = export(module, SCHEMA, WINDOW, KEY, name="test", batch=BATCH)
    return unpack(data, KEY.public)


def torch_step(
    module: AdaptedModule,
    adapter: np.ndarray,
    windows: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Loss, gradient and logits by torch alone, written without any code of the exporter."""
    parameters = dict(module.named_parameters())
    leaves, start = {}, 0
    for name in module.trainable():
        count = parameters[name].numel()
        values = torch.from_numpy(adapter[start : start + count].copy())
        leaves[name] = values.reshape(parameters[name].shape).requires_grad_()
        start += count
    logits = functional_call(module, leaves, (windows,))
    loss = (functional.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return loss.item(), torch.cat([g.flatten() for g in gradients]).numpy(), logits.detach().numpy()


@pytest.mark.parametrize("case", CASES)
def test_loss_gradient_and_logits_are_those_of_torch(case: str) -> None:
    module = build(case)
    package = exported(module)
    prefix, step, predict = (graphs.load(package.members[name]) for name in (PREFIX, STEP, PREDICT))
    random = np.random.default_rng(1)
    for scale in (0.0, 0.1, 0.3):
        adapter = package.adapter + random.normal(0, scale, package.adapter.shape).astype(np.float32)
        windows = some_windows(BATCH)
        labels = torch.from_numpy(random.integers(0, 4, BATCH))
        weights = torch.from_numpy(random.uniform(0.1, 2, BATCH).astype(np.float32))
        loss, gradient, logits = torch_step(module, adapter, windows, labels, weights)
        (features,) = graphs.run(prefix, window=windows.numpy())
        found_loss, found_gradient = graphs.run(
            step, adapter=adapter, features=features, labels=labels.numpy(), weights=weights.numpy()
        )
        (found_logits,) = graphs.run(predict, adapter=adapter, features=features)
        assert relative(found_loss, loss) <= 1e-5
        assert relative(found_gradient, gradient) <= 1e-5
        assert relative(found_logits, logits) <= 1e-5


@pytest.fixture(scope="module")
def convolutions() -> tuple[AdaptedModule, ModelPackage]:
    module = build("bottleneck below a strided convolution")
    return module, exported(module)


def test_a_short_batch_filled_up_with_weight_0_counts_only_its_own_rows(
    convolutions: tuple[AdaptedModule, ModelPackage],
) -> None:
    module, package = convolutions
    adapter = package.adapter + np.float32(0.05)
    windows, labels, weights = some_windows(3), torch.tensor([0, 3, 1]), torch.ones(3)
    loss, gradient, logits = torch_step(module, adapter, windows, labels, weights)
    filled = np.zeros((BATCH, 3, 32), np.float32)
    filled[:3] = windows.numpy()
    (features,) = graphs.run(graphs.load(package.members[PREFIX]), window=filled)
    found_loss, found_gradient = graphs.run(
        graphs.load(package.members[STEP]),
        adapter=adapter,
        features=features,
        labels=np.array([0, 3, 1] + [2] * (BATCH - 3)),
        weights=np.array([1, 1, 1] + [0] * (BATCH - 3), np.float32),
    )
    (found_logits,) = graphs.run(graphs.load(package.members[PREDICT]), adapter=adapter, features=features)
    assert relative(found_loss, loss) <= 1e-5
    assert relative(found_gradient, gradient) <= 1e-5
    assert relative(found_logits[:3], logits) <= 1e-5


def test_a_batch_without_any_weight_moves_nothing(convolutions: tuple[AdaptedModule, ModelPackage]) -> None:
    _, package = convolutions
    loss, gradient = graphs.run(
        graphs.load(package.members[STEP]),
        adapter=package.adapter,
        features=np.ones((BATCH, package.manifest.feature_size), np.float32),
        labels=np.zeros(BATCH, np.int64),
        weights=np.zeros(BATCH, np.float32),
    )
    assert loss == 0
    assert not gradient.any()


def test_fifty_steps_on_the_device_lower_the_loss_as_torch_does() -> None:
    module = build("lora on linear layers")
    package = exported(module)
    windows, labels, weights = some_windows(BATCH), torch.arange(BATCH) % 4, torch.ones(BATCH)
    (features,) = graphs.run(graphs.load(package.members[PREFIX]), window=windows.numpy())
    step = graphs.load(package.members[STEP])
    on_device, in_torch = package.adapter.copy(), package.adapter.copy()
    losses, torch_losses = [], []
    for _ in range(50):
        loss, gradient = graphs.run(
            step, adapter=on_device, features=features, labels=labels.numpy(), weights=weights.numpy()
        )
        on_device = on_device - np.float32(0.1) * gradient
        losses.append(float(loss))
        torch_loss, torch_gradient, _ = torch_step(module, in_torch, windows, labels, weights)
        in_torch = in_torch - np.float32(0.1) * torch_gradient
        torch_losses.append(torch_loss)
    assert losses[-1] < 0.5 * losses[0]
    assert relative(losses, torch_losses) < 1e-4


def test_the_prefix_is_the_same_for_every_adapter(convolutions: tuple[AdaptedModule, ModelPackage]) -> None:
    module, package = convolutions
    prefix = graphs.load(package.members[PREFIX])
    assert [value.name for value in prefix.get_inputs()] == ["window"]
    names = module.trainable()
    moved = build("bottleneck below a strided convolution")
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            if name in names:
                parameter.add_(0.5)
    assert exported(moved).manifest.backbone_sha256 == package.manifest.backbone_sha256


def test_segments_and_initial_adapter_are_in_the_order_of_the_layers(
    convolutions: tuple[AdaptedModule, ModelPackage],
) -> None:
    module, package = convolutions
    assert [segment.name for segment in package.manifest.segments] == [
        "first.bottleneck", "dense.bottleneck", "head",
    ]  # fmt: skip
    head = package.adapter[package.manifest.slices()["head"]]
    weight, bias = (dict(module.named_parameters())[f"backbone.head.{part}"] for part in ("weight", "bias"))
    assert np.array_equal(head, torch.cat([weight.flatten(), bias]).detach().numpy())


def test_equal_modules_give_equal_bytes() -> None:
    first, second = (
        export(build("lora on linear layers"), SCHEMA, WINDOW, KEY, name="test", batch=BATCH)
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize(("channels", "length"), [(1, 1000), (6, 128)])
def test_the_default_recipe_fits_its_budget(channels: int, length: int) -> None:
    schema = InputSchema(
        "timeseries", tuple(f"c{i}" for i in range(channels)), 100.0, ("a", "b", "c", "d", "e")
    )
    window = WindowSpec(length, length)
    backbone = prepared(lambda: Conv1dBackbone.build(schema, window))
    data = export(adapt(backbone, default_adapter(), schema, window), schema, window, KEY, name="default")
    assert 8_000 <= unpack(data, KEY.public).manifest.parameters <= 12_000
    assert len(data) < 1_000_000


def test_a_segment_that_the_forward_pass_skips_gets_a_zero_gradient() -> None:
    class WithSpare(networks.Perceptron):
        def __init__(self) -> None:
            super().__init__()
            self[1].spare = nn.Linear(2, 2)

    module = adapted(WithSpare, "head", (), "1")
    package = exported(module)
    assert package.manifest.parameters == 96 * 20 + 20 + 6
    _, gradient = graphs.run(
        graphs.load(package.members[STEP]),
        adapter=package.adapter,
        features=np.ones((BATCH, package.manifest.feature_size), np.float32),
        labels=np.zeros(BATCH, np.int64),
        weights=np.ones(BATCH, np.float32),
    )
    assert not gradient[-6:].any()
    assert gradient[:-6].any()


def test_a_graph_that_differs_from_torch_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "measure", lambda *_, **__: Parity(1e-7, 2e-5, 1e-7))
    with pytest.raises(ExportError, match=r"gradient within 1e-05 of torch, got 2\.0e-05"):
        exported(build("only the head"))


def test_logits_must_be_the_classes_of_the_schema() -> None:
    schema = InputSchema("timeseries", SCHEMA.channels, 50.0, ("a", "b"))
    with pytest.raises(ExportError, match="4 logits, the schema has 2 classes"):
        export(build("only the head"), schema, WINDOW, KEY, name="test", batch=BATCH)


def test_a_fresh_head_takes_the_classes_of_a_new_task() -> None:
    schema = InputSchema("timeseries", SCHEMA.channels, 50.0, tuple("abcdefg"))
    spec = AdapterSpec("lora", ("3",), "5", 2, fresh_classes=7)
    module = adapt(prepared(networks.Perceptron), spec, schema, WINDOW)
    data = export(module, schema, WINDOW, KEY, name="test", batch=BATCH)
    assert unpack(data, KEY.public).manifest.slices()["5"] == slice(64, 64 + 12 * 7 + 7)
