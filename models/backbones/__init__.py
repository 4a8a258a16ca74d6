"""The project's own backbones; see docs/backbones.md. Any torch module does as well."""

from models.backbones.backbone import Backbone
from models.backbones.choice import AUTO, BACKBONES, choose, default_adapter
from models.backbones.conv1d import Conv1dBackbone
from models.backbones.conv2d import Conv2dBackbone
from models.backbones.mlp import MlpBackbone
from models.backbones.time_frequency import TimeFrequencyBackbone
from models.backbones.transformer import TransformerBackbone

__all__ = [
    "AUTO",
    "BACKBONES",
    "Backbone",
    "Conv1dBackbone",
    "Conv2dBackbone",
    "MlpBackbone",
    "TimeFrequencyBackbone",
    "TransformerBackbone",
    "choose",
    "default_adapter",
]
