"""What every backbone of the project has: normalisation in buffers, named layers for adapters, defaults.

The normalisation is that of the source data, so a device feeds raw samples. A backbone is small on purpose:
its prefix runs once per window on a gateway's CPU.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from models import embedding
from models.errors import AdapterError
from protocol.input_schema import InputSchema, WindowSpec


class Backbone(nn.Module, ABC):
    """Classifies windows or pictures; the last layer is `head`."""

    NAME: ClassVar[str]
    """As on the command line."""
    ADAPTER: ClassVar[str]
    """The kind of adapter that suits it best."""
    LAYERS: ClassVar[Mapping[str, tuple[str, ...]]]
    """Layers to adapt, by kind of adapter; none for kind head."""
    RANKS: ClassVar[Mapping[str, int]]
    """Default rank, by kind of adapter."""
    EMBEDDING: ClassVar[str] = embedding.FEATURES
    """Where in the network a discriminant head does best: a place of models/embedding.py."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, dimensions: int) -> None:
        """Take the channels and how many dimensions follow them in the input."""
        super().__init__()
        shape = (channels, *(1,) * dimensions)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))

    @classmethod
    @abstractmethod
    def build(cls, schema: InputSchema, window: WindowSpec) -> "Backbone":
        """Build it for a schema's windows or pictures.

        Raises:
            AdapterError: it does not fit them.
        """

    def set_normalisation(self, mean: Tensor, deviation: Tensor) -> None:
        """Set what is subtracted from each channel and what it is divided by, both float32 [channels]."""
        self.mean.copy_(mean.reshape(self.mean.shape))
        # A constant channel carries nothing; dividing by its tiny deviation would only amplify noise.
        kept = torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, 1.0)
        self.deviation.copy_(kept.reshape(self.deviation.shape))

    def normalised(self, window: Tensor) -> Tensor:
        """Bring every channel to mean 0 and deviation 1, as on the source data."""
        return (window - self.mean) / self.deviation


def check_kind(backbone: type[Backbone], schema: InputSchema, *, images: bool) -> None:
    """Refuse pictures for a backbone of time series, and the other way round.

    Raises:
        AdapterError: the schema is of the other kind.
    """
    if schema.of_images != images:
        wanted = "pictures" if images else "time series"
        raise AdapterError(
            f"backbone {backbone.NAME}: expected {wanted}, got a schema of kind {schema.kind!r}",
            "let --backbone auto choose",
        )
