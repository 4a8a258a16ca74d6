"""Adapters in modules that know nothing of them."""

import copy

import pytest
import torch
from torch import Tensor, nn

from models.adapters import AdapterSpec, insert
from models.errors import AdapterError
from tests.models import networks
from tests.models.networks import prepared, some_windows

CASES: list[tuple[type[nn.Module], AdapterSpec]] = [
    (networks.Perceptron, AdapterSpec("bottleneck", ("1", "3"), "5", 3)),
    (networks.Perceptron, AdapterSpec("lora", ("1", "5"), None, 3)),
    (networks.Convolutions, AdapterSpec("bottleneck", ("first", "dense"), "head", 3)),
    (networks.Convolutions, AdapterSpec("lora", ("second.0", "dense"), "head", 3, freeze_a=True)),
    (networks.Image, AdapterSpec("bottleneck", ("lower", "upper"), None, 3)),
    (networks.Encoder, AdapterSpec("bottleneck", ("patch", "blocks.1"), "head", 3)),
    (networks.Encoder, AdapterSpec("head", (), "head")),
]


@pytest.mark.parametrize(("build", "spec"), CASES)
def test_an_untrained_adapter_changes_nothing(build: type[nn.Module], spec: AdapterSpec) -> None:
    module, windows = prepared(build), some_windows(5)
    before = module(windows)
    assert torch.equal(insert(module, spec, windows)(windows), before)


@pytest.mark.parametrize(("build", "spec"), CASES)
def test_a_trained_adapter_changes_the_logits_through_every_segment(
    build: type[nn.Module], spec: AdapterSpec
) -> None:
    module, windows = insert(prepared(build), spec, some_windows(5)), some_windows(5)
    parameters = dict(module.named_parameters())
    for segment in module.segments:
        before = module(windows)
        with torch.no_grad():
            for name in segment.parameters:
                parameters[name].add_(0.3)
        assert not torch.allclose(module(windows), before)


@pytest.mark.parametrize(("build", "spec"), CASES)
def test_only_the_segments_require_a_gradient(build: type[nn.Module], spec: AdapterSpec) -> None:
    module = insert(prepared(build), spec, some_windows(2))
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained == set(module.trainable())
    assert sum(map(len, (segment.parameters for segment in module.segments))) == len(trained)


def test_a_deep_copy_uses_its_own_adapter() -> None:
    module, windows = insert(prepared(networks.Perceptron), CASES[0][1], some_windows(2)), some_windows(2)
    copied = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            if name.startswith("adapters."):
                parameter.add_(0.3)
    assert not torch.allclose(copied(windows), module(windows))


def test_the_frozen_factor_of_lora_is_no_part_of_the_adapter() -> None:
    spec = AdapterSpec("lora", ("dense",), None, 3, freeze_a=True)
    module = insert(prepared(networks.Convolutions), spec, some_windows(2))
    assert module.trainable() == ["adapters.0.up.weight"]
    assert module.flat_adapter().numel() == 3 * 12


def test_the_features_of_a_convolution_are_its_channels() -> None:
    module = insert(
        prepared(networks.Convolutions), AdapterSpec("bottleneck", ("first",), rank=3), some_windows(2)
    )
    assert dict(module.named_parameters())["adapters.0.norm.weight"].shape == (8,)


def test_the_features_of_a_transformer_block_are_the_width_of_its_tokens() -> None:
    spec = AdapterSpec("bottleneck", ("blocks.0",), rank=3)
    module = insert(prepared(networks.Encoder), spec, some_windows(2))
    assert dict(module.named_parameters())["adapters.0.norm.weight"].shape == (16,)


def test_an_unknown_layer_is_answered_with_those_that_exist() -> None:
    with pytest.raises(AdapterError, match=r"no layer named 'dens'.*first, first.0.*dense, head"):
        insert(prepared(networks.Convolutions), AdapterSpec("lora", ("dens",)), some_windows(2))


def test_lora_beside_batch_norm_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"'first.1': lora fits .* got BatchNorm1d"):
        insert(prepared(networks.Convolutions), AdapterSpec("lora", ("first.1",)), some_windows(2))


def test_lora_inside_multi_head_attention_would_have_no_effect_and_is_refused() -> None:
    spec = AdapterSpec("lora", ("layers.0.self_attn.out_proj",))
    with pytest.raises(AdapterError, match="uses its weights without running the layer"):
        insert(prepared(networks.TorchEncoder), spec, some_windows(2))


def test_a_layer_that_runs_twice_is_refused() -> None:
    class Twice(networks.Convolutions):
        def forward(self, window: Tensor) -> Tensor:
            return super().forward(window) + super().forward(-window)

    with pytest.raises(AdapterError, match="'dense' runs more than once"):
        insert(prepared(Twice), AdapterSpec("bottleneck", ("dense",)), some_windows(2))


def test_a_layer_that_never_runs_is_refused() -> None:
    class Spare(networks.Perceptron):
        def __init__(self) -> None:
            super().__init__()
            self[1].spare = nn.Linear(2, 2)

    with pytest.raises(AdapterError, match=r"'1.spare' is never run"):
        insert(prepared(Spare), AdapterSpec("bottleneck", ("1.spare",)), some_windows(2))


def test_a_head_without_parameters_is_refused() -> None:
    with pytest.raises(AdapterError, match="ReLU has no parameters"):
        insert(prepared(networks.Perceptron), AdapterSpec("head", (), "2"), some_windows(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prompt", ("a",)), "expected one of bottleneck, lora, head"),
        (("bottleneck", ()), "at least one layer"),
        (("head", ("a",), "b"), "no other layers"),
        (("lora", ("a", "a")), "no name twice"),
        (("lora", ("a",), "a"), "only as head"),
        (("lora", ("a",), None, 0), "rank: expected 1 to 4096, got 0"),
        (("bottleneck", ("a",), None, 4, True), "only for lora"),
        (("lora", ("a",), None, 4, False, 3), "a head to replace"),
    ],
)
def test_a_contradictory_recipe_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        AdapterSpec(*arguments)  # type: ignore[arg-type]
