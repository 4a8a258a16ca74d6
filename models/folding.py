"""BatchNorm in evaluation mode, folded into the convolution or linear layer before it.

Fewer operators on the device, and adapters below meet no BatchNorm whose backward they would need. Pairs are
found by symbolic tracing, or, where a module cannot be traced, inside every `nn.Sequential`. What is not
folded stays as it is: evaluation BatchNorm can be exported, too.
"""

from collections import Counter
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from models.errors import ExportError

FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


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
    with torch.no_grad():
        expected = module(example)
    try:
        pairs = list(_traced_pairs(module))
    except Exception:  # noqa: BLE001 - a user's forward may fail under symbolic tracing in any way
        pairs = list(_sequential_pairs(module))
    # A layer with two names or two uses would change for its other use as well.
    shared = Counter(id(layer) for _, layer in module.named_modules(remove_duplicate=False))
    folded = 0
    for name, norm_name in pairs:
        layer, norm = module.get_submodule(name), module.get_submodule(norm_name)
        once = shared[id(layer)] == 1 and shared[id(norm)] == 1
        if once and norm_name not in keep and _fits(layer, norm):
            fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
            _replace(module, name, fuse(layer, norm))  # type: ignore[operator]  # a pair that fits, see above
            _replace(module, norm_name, nn.Identity())
            folded += 1
    with torch.no_grad():
        if folded and not torch.allclose(module(example), expected, rtol=1e-3, atol=1e-4):
            raise ExportError(
                "folding BatchNorm changed what the module computes",
                "a BatchNorm reads another dimension than the layer before it writes; fold it by hand",
            )
    return folded


def _fits(layer: nn.Module, norm: nn.Module) -> bool:
    # Exact types: a parametrised layer (weight norm) would lose its parametrisation.
    if type(layer) not in FOLDABLE or not isinstance(norm, NORMS):
        return False
    if layer.weight.shape[0] != norm.num_features:
        return False
    # Without running statistics BatchNorm depends on the batch and cannot be folded.
    return not layer.training and not norm.training and norm.running_mean is not None


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
            yield from zip(names, names[1:], strict=False)


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, layer)
