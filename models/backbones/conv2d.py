"""The backbone for camera pictures: a small 2-D convolution network.

    picture -> normalise -> stem (strided convolutions down to at most 6 x 6 positions) -> project
            -> blocks.0 -> blocks.1 -> head

The positions are kept apart up to the projection: on a fixed camera, what is where matters.
"""

import math
from typing import ClassVar

from torch import Tensor, nn

from models import embedding
from models.backbones.backbone import Backbone, check_kind
from protocol.input_schema import InputSchema, WindowSpec

WIDTH = 128
WIDTHS = (24, 32, 48, 64)
"""Channels of the stem's layers; further layers have as many as the last."""
POSITIONS = 6
"""Largest height and width that the stem leaves."""


class Conv2dBackbone(Backbone):
    """Adaptable layers are `project`, `blocks.0`, `blocks.1` and `head`, and the stem's convolutions."""

    NAME = "conv2d"
    # Beside the projection an adapter still sees where the strokes are: on meters that the backbone had never
    # seen, 5 points better than adapters behind it.
    ADAPTER = "lora"
    LAYERS: ClassVar = {
        "bottleneck": ("project", "blocks.0", "blocks.1"),
        "lora": ("project.1", "blocks.0.0", "blocks.1.0"),
    }
    RANKS: ClassVar = {"bottleneck": 16, "lora": 8}
    EMBEDDING = embedding.LAST

    def __init__(self, channels: int, classes: int, height: int, width: int) -> None:
        super().__init__(channels, 2)
        layers: list[nn.Module] = []
        inputs = channels
        # The first layer keeps the size of a small picture: its strokes are a pixel or two wide.
        strides = [1 if max(height, width) <= 64 else 2]
        strides += [2] * max(1, math.ceil(math.log2(max(height, width) / strides[0] / POSITIONS)))
        strides += [1] * max(0, len(WIDTHS) - 1 - len(strides))
        for index, stride in enumerate(strides):
            outputs = WIDTHS[min(index, len(WIDTHS) - 1)]
            layers += _convolution(inputs, outputs, stride)
            height, width, inputs = math.ceil(height / stride), math.ceil(width / stride), outputs
        self.stem = nn.Sequential(*layers)
        self.project = nn.Sequential(nn.Flatten(), nn.Linear(inputs * height * width, WIDTH), nn.ReLU())
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(WIDTH, classes)

    @classmethod
    def build(cls, schema: InputSchema, window: WindowSpec) -> "Conv2dBackbone":
        """Build it for pictures of a schema's size.

        Raises:
            AdapterError: no pictures.
        """
        check_kind(cls, schema, images=True)
        channels, height, width = schema.input_shape(window)
        return cls(channels, len(schema.classes), height, width)

    def forward(self, window: Tensor) -> Tensor:
        """Map pictures, float32 [batch, channels, height, width], to logits, float32 [batch, classes]."""
        features = self.project(self.stem(self.normalised(window)))
        for block in self.blocks:
            features = block(features)
        logits: Tensor = self.head(features)
        return logits


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
