"""The cut: any adapted module as a frozen prefix and a trainable tail.

The module is traced once into plain ATen operators with the trainable parameters and the window as inputs.
Operators that read the window but no trainable parameter are the prefix; those that read a trainable
parameter are the tail; those that read neither are constants and follow their readers. What the tail reads
from the prefix is the boundary: flattened per sample and concatenated, it is the feature vector that a
device computes once per window and keeps.

Only what each sample owns alone can be cached, so every boundary value must have a dimension that grows
with the batch; tracing at two batch sizes shows which. Building ONNX graphs is left to export.py.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.boundary import Boundary, locate, smallest
from models.errors import ExportError
from models.pooling import REPLACEMENTS
from models.refusals import check_graph, check_layers, check_logits


@dataclass(frozen=True)
class Cut:
    """A module in two parts, at a fixed batch size."""

    prefix: fx.GraphModule
    """window, float32 [batch, channels, length] -> features, float32 [batch, feature_size]."""
    tail: fx.GraphModule
    """(*trainable parameters, features) -> logits, float32 [batch, classes]."""
    feature_size: int
    classes: int


def cut(module: nn.Module, trainable: Sequence[str], window: Tensor) -> Cut:
    """Trace a module and cut it before the first operator that reads a trainable parameter.

    Args:
        module: maps windows to logits, in evaluation mode.
        trainable: names of the trainable parameters, in the order of the tail's inputs.
        window: example windows, float32 [batch, channels, length]; their batch size becomes the graphs'.

    Raises:
        ExportError: the module cannot be traced or cut; the message names the layer or operator.
    """
    check_layers(module)
    batch = window.shape[0]
    graph = _trace(module, trainable, window)
    other = _trace(module, trainable, torch.cat([window, window[:1]]))
    nodes, other_nodes = list(graph.graph.nodes), list(other.graph.nodes)
    if [node.target for node in nodes] != [node.target for node in other_nodes]:
        raise ExportError(
            f"the module runs other operators with {batch} windows than with {batch + 1}",
            "remove code that depends on the batch size",
        )
    placeholders = [node for node in nodes if node.op == "placeholder"]
    parameters, window_node = placeholders[:-1], placeholders[-1]
    of_window = _readers(nodes, {window_node})
    tail = _readers(nodes, set(parameters))
    (logits,) = nodes[-1].all_input_nodes
    if logits not in tail:
        raise ExportError(
            "no trainable parameter has an effect on the logits", "adapt a layer that the forward pass runs"
        )
    check_graph(module, graph, tail, dict(zip(parameters, trainable, strict=True)))

    consumed = {source for node in tail for source in node.all_input_nodes} & (of_window - tail)
    kept = smallest(nodes, consumed, of_window)
    twins = dict(zip(nodes, other_nodes, strict=True))
    boundaries = {node: locate(node, twins[node], batch) for node in kept}
    return Cut(
        _prefix(graph, window_node, boundaries, batch),
        _tail(graph, parameters, boundaries, logits, batch),
        sum(boundary.size(batch) for boundary in boundaries.values()),
        logits.meta["val"].shape[1],
    )


def _trace(module: nn.Module, trainable: Sequence[str], window: Tensor) -> fx.GraphModule:
    """Record the forward pass as ATen operators, without mutations."""
    named = dict(module.named_parameters())

    def forward(values: list[Tensor], window: Tensor) -> Tensor:
        logits: Tensor = functional_call(module, dict(zip(trainable, values, strict=True)), (window,))
        check_logits(logits, window.shape[0])
        return logits

    values = [named[name].detach() for name in trainable]
    # The fused attention kernels and the fused encoder layer have no ONNX counterpart.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return make_fx(
                functionalize(forward, remove="mutations"),
                tracing_mode="fake",
                _allow_non_fake_inputs=True,
            )(values, window)
    except ExportError:
        raise
    except Exception as error:  # a user's forward may fail under tracing in any way
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"the module cannot be traced with windows of {list(window.shape)}: {reason}",
            "remove control flow that depends on the data (if, while, .item()) and fixed batch sizes",
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _readers(nodes: list[fx.Node], sources: set[fx.Node]) -> set[fx.Node]:
    """All operators that depend on one of the sources, the sources among them."""
    found = set(sources)
    for node in nodes:
        if node.op != "output" and any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _prefix(
    traced: fx.GraphModule, window: fx.Node, boundaries: dict[fx.Node, Boundary], batch: int
) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {window: graph.placeholder("window")}
    flat = []
    for node, boundary in boundaries.items():
        value = _copy(node, graph, copies)
        if boundary.dtype != torch.float32:
            value = graph.call_function(torch.Tensor.to, (value, torch.float32))
        value = graph.call_function(torch.movedim, (value, boundary.dimension, 0))
        flat.append(graph.call_function(torch.reshape, (value, (batch, boundary.size(batch)))))
    graph.output(flat[0] if len(flat) == 1 else graph.call_function(torch.cat, (flat, 1)))
    return fx.GraphModule(traced, graph)


def _tail(
    traced: fx.GraphModule,
    parameters: list[fx.Node],
    boundaries: dict[fx.Node, Boundary],
    logits: fx.Node,
    batch: int,
) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {node: graph.placeholder(f"parameter_{i}") for i, node in enumerate(parameters)}
    features = graph.placeholder("features")
    start = 0
    for node, boundary in boundaries.items():
        stop = start + boundary.size(batch)
        value = graph.call_function(operator.getitem, (features, (slice(None), slice(start, stop))))
        moved = list(boundary.shape)
        moved.insert(0, moved.pop(boundary.dimension))
        value = graph.call_function(torch.reshape, (value, tuple(moved)))
        value = graph.call_function(torch.movedim, (value, 0, boundary.dimension))
        if boundary.dtype != torch.float32:
            value = graph.call_function(torch.Tensor.to, (value, boundary.dtype))
        copies[node], start = value, stop
    graph.output(_copy(logits, graph, copies))
    for node in graph.nodes:
        # Only the tail is differentiated; the prefix keeps the fused operators.
        node.target = REPLACEMENTS.get(node.target, node.target)
    return fx.GraphModule(traced, graph)


def _copy(wanted: fx.Node, graph: fx.Graph, copies: dict[fx.Node, fx.Node]) -> fx.Node:
    """Copy an operator and all that it reads; what has a copy already is reused."""
    pending = [wanted]
    while pending:
        node = pending[-1]
        missing = [source for source in node.all_input_nodes if source not in copies]
        if node in copies or not missing:
            pending.pop()
            if node not in copies:
                copies[node] = graph.node_copy(node, copies.__getitem__)
                if node.target is torch.ops.aten.view.default:
                    # A value that comes back from the features has other strides than the traced one.
                    copies[node].target = torch.ops.aten.reshape.default
        else:
            pending.extend(missing)
    return copies[wanted]
