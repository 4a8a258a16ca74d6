"""The benchmark's network in plain PyTorch: a frozen convolutional backbone, two bottleneck adapters, a head.

It computes what the model package of the same weights computes: the same layers in the same order, batch
normalisation in evaluation mode, and only adapters and head require a gradient. So autograd records nothing
of the frozen part, as it should be in well-written transfer learning.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """A residual bottleneck (Houlsby et al., 2019)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)

    def forward(self, value: Tensor) -> Tensor:
        """Map float32 [batch, width] to the same shape."""
        adapted: Tensor = value + self.up(torch.relu(self.down(self.norm(value))))
        return adapted


class AdaptedNetwork(nn.Module):
    """Windows, float32 [batch, channels, length], to logits, float32 [batch, classes]."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, classes: int, strides: tuple[int, int, int], rank: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1))
        self.register_buffer("deviation", torch.ones(channels, 1))
        first, second, third = strides
        self.stem = nn.Sequential(
            *_convolution(channels, 32, 15, first),
            *_convolution(32, 64, 7, second),
            *_convolution(64, 64, 5, third),
        )
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(128, 128), nn.ReLU()) for _ in range(2))
        self.adapters = nn.ModuleList(Bottleneck(128, rank) for _ in range(2))
        self.head = nn.Linear(128, classes)

    def frozen(self, window: Tensor) -> Tensor:
        """Run everything before the first adapter: float32 [batch, 128]."""
        hidden = self.stem((window - self.mean) / self.deviation)
        centre = hidden.mean(-1, keepdim=True)
        spread = ((hidden - centre).square().mean(-1) + 1e-5).sqrt()
        features: Tensor = self.blocks[0](torch.cat([centre.squeeze(-1), spread], 1))
        return features

    def trained(self, features: Tensor) -> Tensor:
        """Run the rest: float32 [batch, classes]."""
        features = self.blocks[1](self.adapters[0](features))
        logits: Tensor = self.head(self.adapters[1](features))
        return logits

    def forward(self, window: Tensor) -> Tensor:
        """Run it all."""
        return self.trained(self.frozen(window))

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Return what is trained, in the order of the flat vector."""
        return [*self.adapters.parameters(), *self.head.parameters()]

    def flat_adapter(self) -> np.ndarray:
        """What is trained as one float32 vector: all that a client needs to exchange."""
        return torch.cat([part.detach().flatten() for part in self.adapter_parameters()]).numpy()

    def set_adapter(self, flat: np.ndarray) -> None:
        """Take a flat vector back."""
        parts = self.adapter_parameters()
        pieces = torch.from_numpy(np.array(flat, np.float32)).split([part.numel() for part in parts])
        with torch.no_grad():
            for part, piece in zip(parts, pieces, strict=True):
                part.copy_(piece.view_as(part))


def load(weights: Path) -> AdaptedNetwork:
    """Build the network from an archive of named arrays, frozen but for its adapters and head."""
    with np.load(weights) as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "strides"}
        strides = tuple(arrays["strides"].tolist())
    network = AdaptedNetwork(
        len(state["mean"]), len(state["head.bias"]), strides, len(state["adapters.0.down.bias"])
    )
    network.load_state_dict(state)
    for parameter in network.parameters():
        parameter.requires_grad = False
    for parameter in network.adapter_parameters():
        parameter.requires_grad = True
    return network.eval()


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.BatchNorm1d(outputs), nn.ReLU()]
