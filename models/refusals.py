"""What cannot become a model package, said before the exporter fails on it with a worse message.

Some limits show in the module (recurrent layers, training mode), some only in the traced operators
(randomness, convolutions whose backward pass is not covered).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from models.errors import ExportError

STOCHASTIC = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)  # noqa: SLF001 - the base classes


def check_layers(module: nn.Module) -> None:
    """Refuse layers that are not supported wherever they stand.

    Raises:
        ExportError: a layer is recurrent, or in training mode.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
            raise ExportError(
                f"layer {_shown(name)!r}: {type(layer).__name__} is recurrent, which is not supported",
                "use convolutions or attention over time instead",
            )
        if isinstance(layer, STOCHASTIC) and layer.training:
            raise ExportError(
                f"layer {_shown(name)!r}: {type(layer).__name__} is in training mode",
                "call module.eval() before the export",
            )


def check_logits(logits: object, batch: int) -> None:
    """Refuse a module that returns anything but one tensor, float32 [batch, classes].

    Raises:
        ExportError: it does.
    """
    if isinstance(logits, Tensor) and logits.dim() == 2 and logits.shape[0] == batch and logits.shape[1] > 1:
        if logits.dtype == torch.float32:
            return
        got = str(logits.dtype)
    else:
        got = str(list(logits.shape)) if isinstance(logits, Tensor) else type(logits).__name__
    raise ExportError(
        f"the module returns {got}, expected one float32 tensor [{batch}, classes]", "return the logits only"
    )


def check_graph(
    module: nn.Module, traced: fx.GraphModule, tail: set[fx.Node], trainable: Mapping[fx.Node, str]
) -> None:
    """Refuse operators that give no graph, or no gradient, on the device.

    Args:
        module: the module that was traced, to name its layers.
        traced: its operators.
        tail: the operators that depend on trainable parameters.
        trainable: names of the trainable parameters, by their placeholders.

    Raises:
        ExportError: an operator is random, or a convolution in the tail is grouped or transposed.
    """
    owners = {parameter.data_ptr(): name for name, parameter in module.named_parameters()}
    for node in traced.graph.nodes:
        if node.op != "call_function":
            continue
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise ExportError(
                f"the forward pass draws random numbers ({node.target})",
                "make it deterministic in evaluation mode",
            )
        if node.target == torch.ops.aten.convolution.default and node in tail:
            transposed, groups = node.args[6], node.args[8]
            if transposed or groups != 1:
                layer = _layer_of(node.args[1], traced, owners, trainable)
                raise ExportError(
                    f"layer {layer!r}: a {'transposed' if transposed else 'grouped'} convolution "
                    "below an adapter is not supported",
                    "put the first adapter after it, or use an ordinary convolution",
                )


def _layer_of(
    weight: object, traced: fx.GraphModule, owners: Mapping[int, str], trainable: Mapping[fx.Node, str]
) -> str:
    """Name the layer that owns a weight, as the user knows it."""
    name = "?"
    if isinstance(weight, fx.Node):
        if weight in trainable:
            name = trainable[weight]
        elif weight.op == "get_attr":
            value = getattr(traced, str(weight.target))
            name = owners.get(value.data_ptr(), "?") if isinstance(value, Tensor) else "?"
    return _shown(name).rpartition(".")[0] or name


def _shown(name: str) -> str:
    """Name a layer of an adapted module as the user's module does."""
    return name.removeprefix("backbone.")
