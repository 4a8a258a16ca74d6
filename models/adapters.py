"""Adapters for any torch module: small trainable parts beside frozen layers, found by the layers' names.

    adapted = insert(module, AdapterSpec("bottleneck", layers=("blocks.0",), head="head"), example)

Three kinds:

* bottleneck: after the layer, `y + up(relu(down(norm(y))))` (Houlsby et al., 2019);
* lora: beside a linear or convolution layer, `y + up(down(x))` (Hu et al., 2021); with `freeze_a` only
  `up` is trained, so that averages of adapters are exact (FFA-LoRA, Sun et al., 2024);
* head: the layer's own parameters become trainable.

Adapters hang on forward hooks: the user's module keeps its types, its attributes and its own forward code.
Every kind starts as the identity. Nothing is traced or exported here.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from models.adapter_layers import Bottleneck, LowRank
from models.errors import AdapterError

KINDS = ("bottleneck", "lora", "head")
CHANNELS_FIRST = (nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)
"""Layers that put the features in dimension 1."""
CHANNELS_LAST = (nn.Linear, nn.LayerNorm)
"""Layers that put the features in the last dimension."""
LOW_RANK = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Layers that a low-rank detour fits."""


@dataclass(frozen=True)
class AdapterSpec:
    """Which layers of a module get which adapter."""

    kind: str = "bottleneck"
    """bottleneck, lora or head."""
    layers: tuple[str, ...] = ()
    """Names of the layers to adapt, as in `named_modules()`; empty for kind head."""
    head: str | None = None
    """Name of a layer that is trained as a whole, beside the adapters; usually the last one."""
    rank: int = 16
    """Width of the inner layer."""
    freeze_a: bool = False
    """LoRA only: keep the random projection `down` fixed."""
    fresh_classes: int | None = None
    """Replace the head by a new linear layer with as many outputs, for another task."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise AdapterError(f"adapter kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.kind == "head" and (self.layers or not self.head):
            raise AdapterError("adapter head: expected the name of the head, and no other layers")
        if self.kind != "head" and not self.layers:
            raise AdapterError(f"adapter {self.kind}: expected at least one layer to adapt")
        if len(set(self.layers)) != len(self.layers) or self.head in self.layers:
            raise AdapterError("layers: expected no name twice, and the head only as head")
        if not 1 <= self.rank <= 4096:
            raise AdapterError(f"rank: expected 1 to 4096, got {self.rank}")
        if self.freeze_a and self.kind != "lora":
            raise AdapterError(f"freeze_a: only for lora, got kind {self.kind!r}")
        if self.fresh_classes is not None and (self.head is None or self.fresh_classes < 2):
            raise AdapterError("fresh_classes: expected a head to replace and at least two classes")


@dataclass(frozen=True)
class TrainableSegment:
    """Parameters that form one segment of the flat adapter vector, in order."""

    name: str
    parameters: tuple[str, ...]
    """Names as in `named_parameters()` of the adapted module."""


class AdaptedModule(nn.Module):
    """A frozen module with its adapters; only the segments' parameters require a gradient."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        # A sibling of the user's module, never a child: a child of a Sequential would be run by it.
        self.adapters = nn.ModuleList()
        self.segments: tuple[TrainableSegment, ...] = ()

    def forward(self, window: Tensor) -> Tensor:
        """Map windows, float32 [batch, channels, length], to logits, float32 [batch, classes]."""
        logits: Tensor = self.backbone(window)
        return logits

    def trainable(self) -> list[str]:
        """Names of the trainable parameters, in the order of the flat adapter vector."""
        return [name for segment in self.segments for name in segment.parameters]

    def flat_adapter(self) -> Tensor:
        """The flat adapter vector, float32 [parameters], detached."""
        parameters = dict(self.named_parameters())
        flat: Tensor = torch.cat([parameters[name].detach().flatten() for name in self.trainable()])
        return flat


def insert(module: nn.Module, spec: AdapterSpec, example: Tensor) -> AdaptedModule:
    """Freeze a module and put adapters into it.

    Args:
        module: any module that maps windows to logits; it is changed in place (deep-copy it to keep it).
        spec: what to put where.
        example: a few windows, float32 [batch, channels, length], to learn the layers' widths from.

    Returns:
        The adapted module, in the same mode, with one segment per adapted layer and one for the head.

    Raises:
        AdapterError: a layer does not exist, cannot carry this kind of adapter or is not run.
    """
    if isinstance(module, AdaptedModule):
        raise AdapterError("the module already has adapters", "insert them into the plain module")
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    adapted = AdaptedModule(module)
    segments = []
    if spec.kind == "lora":
        _check_low_rank(module, spec.layers)
    outputs = _outputs(module, spec.layers, example)
    for index, name in enumerate(spec.layers):
        layer = find_layer(module, name)
        if spec.kind == "bottleneck":
            adapter: Bottleneck | LowRank = _bottleneck(name, *outputs[name], spec.rank)
        else:
            assert isinstance(layer, LOW_RANK)  # noqa: S101 - _check_low_rank, for the type checker
            adapter = LowRank(layer, spec.rank, freeze_a=spec.freeze_a)
        adapter.train(layer.training)
        adapted.adapters.append(adapter)
        layer.register_forward_hook(adapter.after)
        parts = [
            f"adapters.{index}.{part}"
            for part, _ in adapter.named_parameters()
            if not (spec.freeze_a and part.startswith("down."))
        ]
        segments.append(TrainableSegment(f"{name}.{spec.kind}", tuple(parts)))
    if spec.head is not None:
        segments.append(_head(adapted, spec.head, spec.fresh_classes))
    adapted.segments = tuple(segments)
    trainable = set(adapted.trainable())
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(name in trainable)
    return adapted


def find_layer(module: nn.Module, name: str) -> nn.Module:
    """Return the layer of that name.

    Raises:
        AdapterError: there is none; the message lists those that exist.
    """
    layers = dict(module.named_modules())
    if name and name in layers:
        layer: nn.Module = layers[name]
        return layer
    raise AdapterError(f"no layer named {name!r}", f"the module has: {shown_layers(module)}")


def shown_layers(module: nn.Module) -> str:
    """List the names of a module's layers for a message, the first 40 of them."""
    names = [name for name, _ in module.named_modules() if name]
    more = f" and {len(names) - 40} more" if len(names) > 40 else ""
    return (", ".join(names[:40]) or "no named layers") + more


def _head(adapted: AdaptedModule, name: str, fresh_classes: int | None) -> TrainableSegment:
    layer = find_layer(adapted.backbone, name)
    if fresh_classes is not None:
        if not isinstance(layer, nn.Linear):
            raise AdapterError(f"head {name!r}: only a Linear can be replaced, got {type(layer).__name__}")
        fresh = nn.Linear(layer.in_features, fresh_classes).train(layer.training)
        parent, _, attribute = name.rpartition(".")
        setattr(adapted.backbone.get_submodule(parent), attribute, fresh)
        layer = fresh
    parts = tuple(f"backbone.{name}.{part}" for part, _ in layer.named_parameters())
    if not parts:
        raise AdapterError(f"head {name!r}: a {type(layer).__name__} has no parameters to train")
    return TrainableSegment(name, parts)


def _bottleneck(name: str, output: object, channels_first: bool, rank: int) -> Bottleneck:
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() < 2:
        raise AdapterError(
            f"layer {name!r}: expected one tensor with at least two dimensions as its output, got "
            f"{list(output.shape) if isinstance(output, Tensor) else type(output).__name__}",
            "name another layer, e.g. the linear or convolution inside it",
        )
    dimension = 1 if output.dim() == 4 or (output.dim() == 3 and channels_first) else -1
    return Bottleneck(output.shape[dimension], rank, dimension)


def _check_low_rank(module: nn.Module, names: tuple[str, ...]) -> None:
    for name in names:
        layer = find_layer(module, name)
        parent = module.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention):
            raise AdapterError(
                f"layer {name!r}: nn.MultiheadAttention uses its weights without running the layer",
                "write the attention with nn.Linear and scaled_dot_product_attention, or adapt another layer",
            )
        if not isinstance(layer, LOW_RANK) or getattr(layer, "groups", 1) != 1:
            raise AdapterError(
                f"layer {name!r}: lora fits an ungrouped Linear or Conv1d or Conv2d, "
                f"got {type(layer).__name__}",
                "use bottleneck, or name a layer inside it",
            )


def _outputs(module: nn.Module, names: tuple[str, ...], example: Tensor) -> dict[str, tuple[object, bool]]:
    """Run the example once; keep what the named layers return, and whether its features are dimension 1.

    A tensor [batch, a, b] does not tell where its features are; the layer with weights that ran last does.
    """
    outputs: dict[str, tuple[object, bool]] = {}
    channels_first = False

    def note_layout(layer: nn.Module, _inputs: object, _output: object) -> None:
        nonlocal channels_first
        # A layer that was imported from a graph says it itself.
        declared = getattr(layer, "channels_first", None)
        if isinstance(declared, bool):
            channels_first = declared
        elif isinstance(layer, (*CHANNELS_FIRST, *CHANNELS_LAST)):
            channels_first = isinstance(layer, CHANNELS_FIRST)

    def keep(name: str, _layer: nn.Module, _inputs: object, output: object) -> None:
        if name in outputs:
            raise AdapterError(
                f"layer {name!r} runs more than once per window",
                "an adapter belongs to one place: name a layer that runs once",
            )
        outputs[name] = (output, channels_first)

    hooks = [layer.register_forward_hook(note_layout) for layer in module.modules()]
    hooks += [find_layer(module, name).register_forward_hook(partial(keep, name)) for name in names]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    for name in names:
        if name not in outputs:
            raise AdapterError(f"layer {name!r} is never run by the module's forward")
    return outputs
