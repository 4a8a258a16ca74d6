"""Which backbone for which data, by name or by what the fleet senses, and which adapters for a backbone."""

from models.adapters import AdapterSpec
from models.backbones.backbone import Backbone
from models.backbones.conv1d import SHORTEST, Conv1dBackbone
from models.backbones.conv2d import Conv2dBackbone
from models.backbones.mlp import MlpBackbone
from models.backbones.time_frequency import TimeFrequencyBackbone
from models.backbones.transformer import TransformerBackbone
from models.errors import AdapterError
from protocol.input_schema import InputSchema, WindowSpec

BACKBONES: dict[str, type[Backbone]] = {
    backbone.NAME: backbone
    for backbone in (
        Conv1dBackbone,
        TimeFrequencyBackbone,
        MlpBackbone,
        Conv2dBackbone,
        TransformerBackbone,
    )
}
AUTO = "auto"


def choose(name: str, schema: InputSchema, window: WindowSpec) -> type[Backbone]:
    """Return the backbone of that name; "auto" goes by the data.

    Pictures get conv2d, windows that are too short for conv1d get mlp, all others conv1d. Two are never
    chosen by themselves: the transformer needs more data than most fleets' source devices have, and
    time-frequency is much better on some fleets and much worse on others.

    Raises:
        AdapterError: no backbone has this name.
    """
    if name == AUTO:
        if schema.of_images:
            return Conv2dBackbone
        return MlpBackbone if window.length < SHORTEST else Conv1dBackbone
    if name not in BACKBONES:
        raise AdapterError(f"backbone: expected one of {AUTO}, {', '.join(BACKBONES)}, got {name!r}")
    return BACKBONES[name]


def default_adapter(
    kind: str | None = None,
    rank: int | None = None,
    *,
    freeze_a: bool = False,
    backbone: type[Backbone] = Conv1dBackbone,
) -> AdapterSpec:
    """Return the recipe for a backbone: its layers for this kind of adapter, and the head.

    Args:
        kind: of adapter; None: what suits the backbone best.
        rank: None: the default of kind and backbone.
        freeze_a: of LoRA.
        backbone: for which.
    """
    kind = backbone.ADAPTER if kind is None else kind
    rank = backbone.RANKS.get(kind, 1) if rank is None else rank
    return AdapterSpec(kind, backbone.LAYERS.get(kind, ()), "head", rank, freeze_a)
