"""BatchNorm folded away: fewer layers, the same function."""

import pytest
import torch
from torch import Tensor, nn

from models.errors import ExportError
from models.folding import fold_batch_norm
from tests.models import networks
from tests.models.networks import prepared, some_windows


def norms(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


class Untraceable(networks.Convolutions):
    """Control flow over values, which symbolic tracing cannot follow."""

    def forward(self, window: Tensor) -> Tensor:
        return super().forward(window if window.sum() > 0 else window + 0)


class Linear(nn.Sequential):
    """BatchNorm behind a linear layer."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(96, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("build", "folded"), [(networks.Convolutions, 2), (networks.Image, 1), (Untraceable, 2), (Linear, 1)]
)
def test_folding_changes_no_logits(build: type[nn.Module], folded: int) -> None:
    module, windows = prepared(build), some_windows(6)
    before = module(windows)
    assert fold_batch_norm(module, windows) == folded
    assert norms(module) == 0
    torch.testing.assert_close(module(windows), before, rtol=1e-5, atol=1e-5)


def test_a_layer_that_carries_an_adapter_stays() -> None:
    module = prepared(networks.Convolutions)
    assert fold_batch_norm(module, some_windows(2), keep={"first.1"}) == 1
    assert isinstance(module.get_submodule("first.1"), nn.BatchNorm1d)


def test_a_convolution_that_something_else_reads_too_is_left() -> None:
    class Skip(networks.Convolutions):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)

        def forward(self, window: Tensor) -> Tensor:
            hidden = self.convolution(window)
            return super().forward(hidden + self.norm(hidden))

    module, windows = prepared(Skip), some_windows(4)
    before = module(windows)
    assert fold_batch_norm(module, windows) == 2
    assert isinstance(module.norm, nn.BatchNorm1d)
    torch.testing.assert_close(module(windows), before, rtol=1e-5, atol=1e-5)


def test_a_convolution_with_two_names_is_left() -> None:
    module = prepared(networks.Convolutions)
    module.other_name = module.get_submodule("first.0")
    assert fold_batch_norm(module, some_windows(2)) == 1


def test_training_mode_is_left() -> None:
    assert fold_batch_norm(prepared(networks.Convolutions).train(), some_windows(4)) == 0


def test_batch_norm_over_another_dimension_than_the_linear_layer_writes_is_noticed() -> None:
    class Tokens(nn.Sequential):
        # The linear layer writes 3 numbers per token; BatchNorm reads the 3 channels.
        def __init__(self) -> None:
            super().__init__(nn.Linear(32, 3), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(9, 4))

    with pytest.raises(ExportError, match="folding BatchNorm changed"):
        fold_batch_norm(prepared(Tokens), some_windows(4))
