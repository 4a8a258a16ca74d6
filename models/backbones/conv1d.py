"""The backbone for vibration and motion: a small 1-D convolution network.

window -> normalise -> stem (3 strided convolutions) -> pool (mean, deviation)
       -> blocks.0 -> blocks.1 -> head
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.backbones.backbone import Backbone, check_kind
from models.errors import AdapterError
from protocol.input_schema import InputSchema, WindowSpec

WIDTH = 128
SHORTEST = 32
"""Fewest rows per window that leave the pooling something to measure."""


class Conv1dBackbone(Backbone):
    """Adaptable layers are `blocks.0`, `blocks.1` and `head`, and the stem's `stem.0`, `stem.3`, `stem.6`."""

    NAME = "conv1d"
    ADAPTER = "bottleneck"
    LAYERS: ClassVar = {"bottleneck": ("blocks.0", "blocks.1"), "lora": ("blocks.0.0", "blocks.1.0")}
    # 8,000 to 12,000 parameters for few classes (head: hundreds).
    RANKS: ClassVar = {"bottleneck": 16, "lora": 16}

    def __init__(self, channels: int, classes: int, strides: Sequence[int] = (4, 2, 2)) -> None:
        super().__init__(channels, 1)
        self.stem = stem(channels, strides)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(WIDTH, classes)

    @classmethod
    def build(cls, schema: InputSchema, window: WindowSpec) -> "Conv1dBackbone":
        """Choose the strides for a schema's windows.

        Raises:
            AdapterError: pictures, or windows too short for the stem.
        """
        check_kind(cls, schema, images=False)
        if window.length < SHORTEST:
            raise AdapterError(
                f"backbone {cls.NAME}: window length: expected at least {SHORTEST} rows, got {window.length}",
                "use longer windows or --backbone mlp, or export a module of your own",
            )
        return cls(len(schema.channels), len(schema.classes), strides_for(window.length))

    def forward(self, window: Tensor) -> Tensor:
        """Map windows, float32 [batch, channels, length], to logits, float32 [batch, classes]."""
        features = pooled(self.stem(self.normalised(window)))
        for block in self.blocks:
            features = block(features)
        logits: Tensor = self.head(features)
        return logits


def strides_for(length: int) -> tuple[int, int, int]:
    """Return the stem's strides for windows of so many rows: about 16 to 64 positions remain to be pooled."""
    return (4, 2, 2) if length >= 512 else (2, 2, 2) if length >= 128 else (1, 2, 1)


def stem(channels: int, strides: Sequence[int]) -> nn.Sequential:
    """Three strided convolutions, float32 [batch, channels, length] -> [batch, WIDTH // 2, positions]."""
    first, second, third = strides
    return nn.Sequential(
        *convolution(channels, 32, 15, first),
        *convolution(32, 64, 7, second),
        *convolution(64, WIDTH // 2, 5, third),
    )


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution with its norm and ReLU, which keeps the length but for the stride."""
    # BatchNorm brings its own bias; at export it folds into the convolution.
    layer = nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [layer, nn.BatchNorm1d(outputs), nn.ReLU()]


def pooled(hidden: Tensor) -> Tensor:
    """Mean and deviation over time, float32 [batch, channels, positions] -> [batch, 2 * channels]."""
    centre = hidden.mean(-1, keepdim=True)
    # Written out, since a variance has more spellings in ONNX than runtimes agree on.
    spread = ((hidden - centre).square().mean(-1) + 1e-5).sqrt()
    return torch.cat([centre.squeeze(-1), spread], 1)
