"""Where the cut goes, and what cannot be cut."""

import pytest
import torch
from torch import Tensor, nn

from models.errors import ExportError
from models.export import export
from models.tracing import cut
from tests.models import networks
from tests.models.networks import BATCH, KEY, SCHEMA, WINDOW, adapted, some_windows


@pytest.mark.parametrize(
    ("build", "kind", "layers", "head", "size"),
    [
        # The residual and the normalised value both follow from the layer's output.
        (networks.Perceptron, "bottleneck", ("3",), "5", 12),
        # The input of the layer and its frozen product.
        (networks.Perceptron, "lora", ("3",), "5", 20 + 12),
        # The input of attention follows from the tokens; the frozen product does not.
        (networks.Encoder, "lora", ("blocks.0.qkv",), None, 8 * 16 + 8 * 48),
        (networks.Encoder, "head", (), "head", 16),
        # Below the pooling a channel has many positions.
        (networks.Convolutions, "bottleneck", ("first",), None, 8 * 16),
    ],
)
def test_a_device_keeps_no_more_than_it_needs(
    build: type[nn.Module], kind: str, layers: tuple[str, ...], head: str | None, size: int
) -> None:
    module = adapted(build, kind, layers, head)
    assert cut(module, module.trainable(), some_windows(BATCH)).feature_size == size


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_two_parts_compute_what_the_whole_does(batch: int) -> None:
    module, windows = adapted(networks.TorchEncoder, "bottleneck", ("layers.0",), "head"), some_windows(batch)
    parts = cut(module, module.trainable(), windows)
    parameters = dict(module.named_parameters())
    logits = parts.tail(*[parameters[name] for name in module.trainable()], parts.prefix(windows))
    torch.testing.assert_close(logits, module(windows), rtol=1e-5, atol=1e-6)


def refusal(
    build: type[nn.Module], kind: str = "head", layers: tuple[str, ...] = (), head: str = "head"
) -> str:
    with pytest.raises(ExportError) as caught:
        export(adapted(build, kind, layers, head), SCHEMA, WINDOW, KEY, name="test", batch=BATCH)
    return str(caught.value)


class Changed(networks.Convolutions):
    """The convolutions, with one thing changed that cannot be exported."""

    def forward(self, window: Tensor) -> Tensor:
        return super().forward(self.change(window))

    def change(self, window: Tensor) -> Tensor:
        return window


def test_a_recurrent_layer_is_refused_by_name() -> None:
    class Recurrent(Changed):
        def __init__(self) -> None:
            super().__init__()
            self.memory = nn.LSTM(3, 3, batch_first=True)

    message = refusal(Recurrent)
    assert "'memory': LSTM is recurrent" in message
    assert "use convolutions or attention" in message


def test_a_grouped_convolution_below_an_adapter_is_refused_by_name() -> None:
    class Grouped(networks.Convolutions):
        def __init__(self) -> None:
            super().__init__()
            self.second[0] = nn.Conv1d(8, 10, 4, 3, groups=2)

    assert "layer 'second.0': a grouped convolution below an adapter" in refusal(
        Grouped, "bottleneck", ("first",)
    )


def test_a_grouped_convolution_above_all_adapters_is_fine() -> None:
    class Grouped(networks.Convolutions):
        def __init__(self) -> None:
            super().__init__()
            self.second[0] = nn.Conv1d(8, 10, 4, 3, groups=2)

    assert export(adapted(Grouped, "head", (), "head"), SCHEMA, WINDOW, KEY, name="test", batch=BATCH)


def test_a_transposed_convolution_that_is_trained_is_refused_by_name() -> None:
    class Transposed(networks.Convolutions):
        def __init__(self) -> None:
            super().__init__()
            self.first[0] = nn.ConvTranspose1d(3, 8, 4, 2)

    assert "layer 'first.0': a transposed convolution" in refusal(Transposed, head="first.0")


def test_dropout_in_training_mode_is_refused_by_name() -> None:
    module = adapted(networks.Encoder, "head", (), "head").train()
    with pytest.raises(ExportError, match=r"'dropout': Dropout is in training mode.*module\.eval"):
        export(module, SCHEMA, WINDOW, KEY, name="test", batch=BATCH)


def test_randomness_in_evaluation_mode_is_refused() -> None:
    class Noisy(Changed):
        def change(self, window: Tensor) -> Tensor:
            return torch.nn.functional.dropout(window, 0.5, training=True)

    assert "draws random numbers" in refusal(Noisy)


def test_control_flow_over_the_data_is_refused() -> None:
    class Branching(Changed):
        def change(self, window: Tensor) -> Tensor:
            return window if window.mean() > 0 else -window

    assert "remove control flow that depends on the data" in refusal(Branching)


def test_a_fixed_batch_size_is_refused() -> None:
    class Fixed(Changed):
        def change(self, window: Tensor) -> Tensor:
            if window.shape[0] in (4, BATCH):
                return window
            return window.reshape(BATCH, 3, 32)

    assert "cannot be traced" in refusal(Fixed)


def test_a_module_that_runs_otherwise_at_another_batch_size_is_refused() -> None:
    class Even(Changed):
        def change(self, window: Tensor) -> Tensor:
            return window if window.shape[0] % 2 == 0 else -window

    assert "depends on the batch size" in refusal(Even)


def test_a_module_that_mixes_the_samples_of_a_batch_is_refused() -> None:
    class Mixing(Changed):
        def change(self, window: Tensor) -> Tensor:
            return window - window.mean(0, keepdim=True)

    message = refusal(Mixing)
    assert "parity" in message
    assert "mix the samples" in message


def test_a_boundary_without_a_batch_dimension_is_refused() -> None:
    class Pooled(networks.Perceptron):
        def forward(self, window: Tensor) -> Tensor:
            hidden = self[3](torch.relu(self[1](window.flatten(1))))
            logits: Tensor = self[5](hidden.mean(0)) + hidden[:, :4]
            return logits

    assert "no single dimension is the batch" in refusal(Pooled, head="5")


def test_a_module_that_returns_more_than_logits_is_refused() -> None:
    class Pair(networks.Convolutions):
        def forward(self, window: Tensor) -> Tensor:
            logits = super().forward(window)
            return (logits, logits)  # type: ignore[return-value]

    assert "returns tuple, expected one float32 tensor [4, classes]" in refusal(Pair)


def test_windows_of_another_shape_than_the_module_takes_are_refused() -> None:
    class Longer(networks.Perceptron):
        def __init__(self) -> None:
            super().__init__()
            self[1] = nn.Linear(100, 20)

    assert "does not take windows of [4, 3, 32]" in refusal(Longer, head="5")
