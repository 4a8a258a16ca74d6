"""Modules as users write them, for the tests to adapt and export.

They take windows, float32 [batch, 3, 32], and those below PICTURES pictures, float32 [batch, 3, 12, 16].
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.adapters import AdaptedModule, AdapterSpec
from models.export import adapt
from protocol.input_schema import ImageSpec, InputSchema, WindowSpec
from protocol.signing import PrivateKey

SCHEMA = InputSchema("timeseries", ("x", "y", "z"), 50.0, ("rest", "walk", "run", "fall"))
WINDOW = WindowSpec(length=32, stride=16)
KEY = PrivateKey(bytes(range(32)))
BATCH = 8


class Perceptron(nn.Sequential):
    """A plain Sequential: adapters must not become members of the chain."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(96, 20), nn.ReLU(), nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 4)
        )


class Convolutions(nn.Module):
    """Strided convolutions with BatchNorm, as in most time series models."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(3, 8, 5, 2, 2), nn.BatchNorm1d(8), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv1d(8, 10, 4, 3, 1, 2), nn.BatchNorm1d(10), nn.ReLU())
        self.dense = nn.Linear(10, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, window: Tensor) -> Tensor:
        hidden = self.second(self.first(window)).mean(-1)
        logits: Tensor = self.head(torch.relu(self.dense(hidden)))
        return logits


class Image(nn.Module):
    """A 2-D network on the window as a one-channel image, with pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.lower = nn.Conv2d(1, 6, 3, (1, 2), 1)
        self.norm = nn.BatchNorm2d(6)
        self.upper = nn.Conv2d(6, 8, (2, 3), (1, 2), bias=False)
        self.pool = nn.AdaptiveAvgPool2d((1, 2))
        self.head = nn.Linear(16, 4)

    def forward(self, window: Tensor) -> Tensor:
        hidden = functional.gelu(self.norm(self.lower(window[:, None])))
        hidden = functional.avg_pool2d(torch.relu(self.upper(hidden)), (1, 2), (1, 1), (0, 1))
        hidden = functional.max_pool2d(hidden, (2, 3), (1, 2), (1, 1), ceil_mode=True)
        logits: Tensor = self.head(self.pool(hidden).flatten(1))
        return logits


class Attention(nn.Module):
    """One encoder block, pre-norm."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        split = self.qkv(self.norm1(tokens)).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(mixed.transpose(1, 2).reshape(batch, count, width))
        mapped: Tensor = tokens + self.down(functional.gelu(self.up(self.norm2(tokens))))
        return mapped


class Encoder(nn.Module):
    """A small transformer over patches of the window, with positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv1d(3, 16, 4, 4)
        self.position = nn.Parameter(torch.randn(8, 16) * 0.1)
        self.blocks = nn.ModuleList([Attention(), Attention()])
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(16, 4)

    def forward(self, window: Tensor) -> Tensor:
        tokens = self.patch(window).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = self.dropout(block(tokens))
        logits: Tensor = self.head(tokens.mean(1))
        return logits


class TorchEncoder(nn.Module):
    """nn.TransformerEncoderLayer, whose fused inference path no exporter knows; batch in dimension 1."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 16)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32) for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, window: Tensor) -> Tensor:
        tokens = self.embed(window.permute(2, 0, 1))
        for layer in self.layers:
            tokens = layer(tokens)
        logits: Tensor = self.head(tokens.mean(0))
        return logits


PICTURES = InputSchema("image", ("red", "green", "blue"), 1.0, SCHEMA.classes, ImageSpec(12, 16))


class PictureNetwork(nn.Module):
    """Convolutions with BatchNorm, max pooling and a residual, as in the usual tutorials."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.third = nn.Conv2d(8, 12, (3, 2), stride=2, padding="valid")
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(12, 4)

    def forward(self, picture: Tensor) -> Tensor:
        hidden = self.first(picture)
        hidden = torch.relu(hidden + self.second(hidden))
        hidden = torch.relu(self.third(hidden))
        logits: Tensor = self.head(self.pool(hidden).flatten(1))
        return logits


class PatchTransformer(nn.Module):
    """Patches of a picture through torch's own encoder, batch first, with a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16) * 0.1)
        self.position = nn.Parameter(torch.randn(1, 13, 16) * 0.1)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, picture: Tensor) -> Tensor:
        tokens = self.patch(picture).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1) + self.position
        logits: Tensor = self.head(self.encoder(tokens)[:, 0])
        return logits


def prepared(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module with repeatable weights and, in BatchNorm, statistics that are not the initial ones."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = build()
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand(buffer.shape) * 0.5)
    return module.eval()


def adapted(
    build: Callable[[], nn.Module],
    kind: str,
    layers: tuple[str, ...] = (),
    head: str | None = None,
    *,
    freeze_a: bool = False,
) -> AdaptedModule:
    """Build and adapt a module, with rank 4."""
    return adapt(prepared(build), AdapterSpec(kind, layers, head, 4, freeze_a), SCHEMA, WINDOW)


def some_windows(count: int, seed: int = 7) -> Tensor:
    """Random windows, float32 [count, 3, 32]."""
    return torch.randn(count, 3, 32, generator=torch.Generator().manual_seed(seed))


def relative(found: object, expected: object) -> float:
    """Relative L2 distance of two arrays or tensors."""
    found, expected = (np.asarray(value, np.float64) for value in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
