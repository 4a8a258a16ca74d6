"""The backbone for tabular sensors (gas, process values): a perceptron on all the values of a short window.

    window -> normalise -> stem (linear on all values, layer norm) -> blocks.0 -> blocks.1 -> head

It sees every row at its place in the window, so it suits windows that begin at the same moment of a process,
or values so slow that their place hardly matters. Windows of one row are fine.
"""

from typing import ClassVar

from torch import Tensor, nn

from models import embedding
from models.backbones.backbone import Backbone, check_kind
from models.errors import AdapterError
from protocol.input_schema import InputSchema, WindowSpec

WIDTH = 128
MOST_VALUES = 4096
"""Channels times rows; more make the first layer larger than a convolution network."""


class MlpBackbone(Backbone):
    """Adaptable layers are `stem`, `blocks.0`, `blocks.1` and `head`."""

    NAME = "mlp"
    # Levels differ from device to device: an adapter beside the first layer sees the values themselves.
    ADAPTER = "lora"
    LAYERS: ClassVar = {
        "bottleneck": ("stem", "blocks.0", "blocks.1"),
        "lora": ("stem.1", "blocks.0.0", "blocks.1.0"),
    }
    RANKS: ClassVar = {"bottleneck": 16, "lora": 8}
    EMBEDDING = embedding.FIRST

    def __init__(self, channels: int, classes: int, length: int) -> None:
        super().__init__(channels, 1)
        # No BatchNorm: its statistics would be the source devices' levels, which are not the edge's.
        self.stem = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * length, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU()
        )
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(WIDTH, classes)

    @classmethod
    def build(cls, schema: InputSchema, window: WindowSpec) -> "MlpBackbone":
        """Build it for windows of a schema.

        Raises:
            AdapterError: pictures, or too many values per window.
        """
        check_kind(cls, schema, images=False)
        values = len(schema.channels) * window.length
        if values > MOST_VALUES:
            raise AdapterError(
                f"backbone {cls.NAME}: expected at most {MOST_VALUES:,} values per window, got {values:,}",
                "use shorter windows, or --backbone conv1d or transformer",
            )
        return cls(len(schema.channels), len(schema.classes), window.length)

    def forward(self, window: Tensor) -> Tensor:
        """Map windows, float32 [batch, channels, length], to logits, float32 [batch, classes]."""
        features = self.stem(self.normalised(window))
        for block in self.blocks:
            features = block(features)
        logits: Tensor = self.head(features)
        return logits
