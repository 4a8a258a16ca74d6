"""The backbone for time series: a small 1-D convolution network with named layers for adapters.

    window -> normalise -> stem (3 strided convolutions) -> pool (mean, deviation)
           -> blocks.0 -> blocks.1 -> head

It is small on purpose: the prefix runs once per window on a gateway's CPU. The normalisation is that of the
source data and lives in buffers, so a device feeds raw samples.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.adapters import AdapterSpec
from models.errors import AdapterError
from protocol.input_schema import InputSchema, WindowSpec

WIDTH = 128
RANKS = {"bottleneck": 16, "lora": 16, "head": 1}
"""Default rank of each kind of adapter: 8,000 to 12,000 parameters for few classes (head: hundreds)."""
SHORTEST = 32
"""Fewest rows per window that leave the pooling something to measure."""


class Conv1dBackbone(nn.Module):
    """Classifies windows of sensor data; adaptable layers are `blocks.0`, `blocks.1` and `head`."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, classes: int, strides: Sequence[int] = (4, 2, 2)) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1))
        self.register_buffer("deviation", torch.ones(channels, 1))
        first, second, third = strides
        self.stem = nn.Sequential(
            *_convolution(channels, 32, 15, first),
            *_convolution(32, 64, 7, second),
            *_convolution(64, WIDTH // 2, 5, third),
        )
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(WIDTH, classes)

    @classmethod
    def build(cls, schema: InputSchema, window: WindowSpec) -> "Conv1dBackbone":
        """Choose the strides for a schema's windows.

        Raises:
            AdapterError: the windows are too short for the stem.
        """
        if window.length < SHORTEST:
            raise AdapterError(
                f"window length: expected at least {SHORTEST} rows, got {window.length}",
                "use longer windows, or export a module of your own",
            )
        # About 16 to 64 positions remain for the pooling.
        strides = (4, 2, 2) if window.length >= 512 else (2, 2, 2) if window.length >= 128 else (1, 2, 1)
        return cls(len(schema.channels), len(schema.classes), strides)

    def set_normalisation(self, mean: Tensor, deviation: Tensor) -> None:
        """Set what is subtracted from each channel and what it is divided by, both float32 [channels]."""
        self.mean.copy_(mean[:, None])
        # A constant channel carries nothing; dividing by its tiny deviation would only amplify noise.
        self.deviation.copy_(torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, 1.0)[:, None])

    def forward(self, window: Tensor) -> Tensor:
        """Map windows, float32 [batch, channels, length], to logits, float32 [batch, classes]."""
        hidden = self.stem((window - self.mean) / self.deviation)
        centre = hidden.mean(-1, keepdim=True)
        # Written out, since a variance has more spellings in ONNX than runtimes agree on.
        spread = ((hidden - centre).square().mean(-1) + 1e-5).sqrt()
        features = torch.cat([centre.squeeze(-1), spread], 1)
        for block in self.blocks:
            features = block(features)
        logits: Tensor = self.head(features)
        return logits


def default_adapter(
    kind: str = "bottleneck", rank: int | None = None, *, freeze_a: bool = False
) -> AdapterSpec:
    """Return the recipe for a `Conv1dBackbone`: adapters at both blocks, and the head."""
    rank = RANKS.get(kind, 1) if rank is None else rank
    layers = {"bottleneck": ("blocks.0", "blocks.1"), "lora": ("blocks.0.0", "blocks.1.0")}
    return AdapterSpec(kind, layers.get(kind, ()), "head", rank, freeze_a)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    # BatchNorm brings its own bias; at export it folds into the convolution.
    convolution = nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.BatchNorm1d(outputs), nn.ReLU()]
