"""The layers that adapters are made of; where they go is decided in adapters.py.

Both start as the identity: what they add is zero until they are trained. They are applied as forward hooks,
which are bound methods, so that a deep copy of a module binds the copied adapter and not the original.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """A residual bottleneck after a layer, along the layer's feature dimension."""

    def __init__(self, width: int, rank: int, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, value: Tensor) -> Tensor:
        """Map a layer's output to one of the same shape."""
        rows = value.movedim(self.dimension, -1)
        change = self.up(torch.relu(self.down(self.norm(rows))))
        adapted: Tensor = value + change.movedim(-1, self.dimension)
        return adapted

    def after(self, _layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Apply as a forward hook."""
        adapted: Tensor = self(output)
        return adapted


class LowRank(nn.Module):
    """A low-rank detour around a linear or convolution layer; `up` starts at zero."""

    def __init__(self, layer: nn.Linear | nn.Conv1d | nn.Conv2d, rank: int, *, freeze_a: bool) -> None:
        super().__init__()
        self.down: nn.Linear | nn.Conv1d | nn.Conv2d
        self.up: nn.Linear | nn.Conv1d | nn.Conv2d
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            convolution: Any = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d
            # The down projection sees what the layer sees; the up projection mixes its channels.
            self.down = convolution(
                layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
                bias=False, padding_mode=layer.padding_mode,
            )  # fmt: skip
            self.up = convolution(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)
        self.freeze_a = freeze_a

    def forward(self, value: Tensor) -> Tensor:
        """Map a layer's input to the change of its output."""
        change: Tensor = self.up(self.down(value))
        return change

    def after(self, _layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Apply as a forward hook."""
        change: Tensor = self(inputs[0])
        return output + change
