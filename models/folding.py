"""BatchNorm in evaluation mode, folded into the convolution or linear layer before it.

Fewer operators on the device, and adapters below meet no BatchNorm whose backward they would need. Pairs are
found by symbolic tracing, or, where a module cannot be traced, inside every `nn.Sequential`. What is not
folded stays as it is: evaluation BatchNorm can be exported, too.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from models.errors import ExportError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def fold_batch_norm(module: nn.Module, example: Tensor, keep: Collection[str] = ()) -> int:
    """Fold BatchNorm layers in place; the module's function in evaluation mode does not change.

    Args:
        module: in evaluation mode.
        example: a few windows, float32 [batch, channels, length], to check the result on.
        keep: names of layers that must stay as they are.

    Returns:
        How many were folded.

    Raises:
        ExportError: the folded module computes something else.
    """
    expected = _run(module, example)
    try:
        pairs = list(_traced_pairs(module))
    except Exception:  # noqa: BLE001 - a user's forward may fail under symbolic tracing in any way
        pairs = list(_sequential_pairs(module))
    # A layer with two names or two uses would change for its other use as well.
    shared = Counter(id(layer) for _, layer in module.named_modules(remove_duplicate=False))
    folded = 0
    for name, norm_name in pairs:
        layer, norm = module.get_submodule(name), module.get_submodule(norm_name)
        if shared[id(layer)] != 1 or shared[id(norm)] != 1 or norm_name in keep:
            continue
        fused = _fused(layer, norm)
        if fused is not None:
            _replace(module, name, fused)
            _replace(module, norm_name, nn.Identity())
            folded += 1
    if folded and not torch.allclose(_run(module, example), expected, rtol=1e-3, atol=1e-4):
        raise ExportError(
            "folding BatchNorm changed what the module computes",
            "a BatchNorm reads another dimension than the layer before it writes; fold it by hand",
        )
    return folded


def _run(module: nn.Module, example: Tensor) -> Tensor:
    # A module that draws random numbers is refused later, and with a better message.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        logits: Tensor = module(example)
        return logits


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    """Return the two as one layer, or None where they are not such a pair."""
    # Without running statistics BatchNorm depends on the batch and cannot be folded.
    if not isinstance(norm, NORMS) or norm.running_mean is None or layer.training or norm.training:
        return None
    # Exact types: a parametrised layer (weight norm) would lose its parametrisation.
    if type(layer) is nn.Linear and layer.out_features == norm.num_features:
        return fuse_linear_bn_eval(layer, norm)
    if type(layer) in CONVOLUTIONS and layer.out_channels == norm.num_features:
        return fuse_conv_bn_eval(layer, norm)  # type: ignore[type-var]  # one of CONVOLUTIONS
    return None


def _traced_pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    graph = fx.Tracer().trace(module)
    uses = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if (
            isinstance(source, fx.Node)
            and source.op == "call_module"
            and len(source.users) == 1
            and uses[node.target] == uses[source.target] == 1
        ):
            yield str(source.target), str(node.target)


def _sequential_pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    for prefix, sequence in module.named_modules():
        if isinstance(sequence, nn.Sequential):
            names = [f"{prefix}.{name}" if prefix else name for name, _ in sequence.named_children()]
            yield from itertools.pairwise(names)


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, layer)
