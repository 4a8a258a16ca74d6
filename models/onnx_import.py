"""The part of an ONNX graph behind a cut, as a torch module with layers that adapters find by name.

A layer is named after the tensor that it writes (or by the name of its node); a full stop becomes "_", since
torch separates levels by it. The module takes any batch size and computes what the graph computes: adapt.py
compares the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from models.errors import AdapterError
from models.onnx_cut import Known, Tail
from models.onnx_graph import Graph, unknown_tensor
from models.onnx_layers import LAYERS, Node, linear_layer
from models.onnx_operators import operator_module

CHANNELS_FIRST_OPERATORS = (
    "Conv", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "MaxPool", "AveragePool",
    "GlobalAveragePool", "GlobalMaxPool",
)  # fmt: skip
CHANNELS_LAST_OPERATORS = ("Gemm", "MatMul", "LayerNormalization")


class Entry(nn.Identity):
    """The tensor that the graph was cut at: a place for an adapter."""


@dataclass(frozen=True, eq=False)
class Step:
    """A layer that runs, and between which tensors."""

    layers: tuple[str, ...]
    """Names of the layers, which run one after the other."""
    sources: tuple[str | Known, ...]
    outputs: tuple[str, ...]


class ImportedTail(nn.Module):
    """Maps the tensor at the cut, float32 with the batch in front, to the tensor that the tail stops with."""

    def __init__(self, tail: Tail, reserved: Sequence[str] = ()) -> None:
        """Import every operator of the tail.

        Args:
            tail: what to import.
            reserved: names that no layer may have.

        Raises:
            ExportError: an operator is not supported; the message names it.
        """
        super().__init__()
        self.start, self.stop, self.batch_dimension = tail.start, tail.stop, tail.batch_dimension
        self.reserved = frozenset(reserved)
        self.names: dict[str, str] = {}
        """From names of tensors and nodes to names of layers."""
        self._graph = tail.graph
        self.entry = self._add(tail.start, Entry())
        self.steps: list[Step] = []
        fused = _biases(tail)
        for node in tail.nodes:
            if node.output[0] not in fused.values():
                self.steps.append(self._step(node, tail, fused.get(node.output[0])))
        for before, after in fused.items():
            self.names.setdefault(before, self.names[after])

    def forward(self, value: Tensor) -> Tensor:
        """Run the tail."""
        entered = self.get_submodule(self.entry)(value)
        values: dict[str, Any] = {self.start: entered.movedim(0, self.batch_dimension)}
        for step in self.steps:
            result: Any = [
                values[source] if isinstance(source, str) else _argument(source, value)
                for source in step.sources
            ]
            for index, layer in enumerate(step.layers):
                result = self.get_submodule(layer)(*(result if index == 0 else [result]))
            results = result if isinstance(result, tuple) else (result,)
            values.update(zip(step.outputs, results, strict=False))
        stopped: Tensor = values[self.stop]
        return stopped

    def layer(self, name: str) -> str:
        """Return the name of the layer that a tensor or node became.

        Raises:
            AdapterError: there is none behind the cut.
        """
        if name not in self.names:
            error = unknown_tensor(name, list(self.names))
            raise AdapterError(f"no layer {name!r} behind {self.start!r}", error.hint)
        return self.names[name]

    def layers_of(self, *types: type[nn.Module]) -> list[str]:
        """Return the names of all layers of some types, in the order in which they run."""
        named = dict(self.named_children())
        return [name for step in self.steps for name in step.layers if isinstance(named[name], types)]

    def _step(self, node: onnx.NodeProto, tail: Tail, added: str | None) -> Step:
        known = {i: tail.known[name] for i, name in enumerate(node.input) if name in tail.known}
        constants = {
            i: value.base for i, value in known.items() if value.slope is None and not value.repeated
        }
        wrapped = Node(node, constants)
        build = LAYERS.get(node.op_type)
        layers = None if build is None else build(wrapped)
        if layers is None:
            layers = [operator_module(wrapped)]
            sources = [known.get(i, name) for i, name in enumerate(node.input) if name and i not in constants]
        else:
            sources = [node.input[0]]
            if any(node.output[1:]):
                raise wrapped.refused("its further outputs are used")
        output = node.output[0]
        if added is not None:
            layers = [_with_bias(layers[-1], tail, node, added)]
            output = added
        names = [self._add(output, layers[-1], node.name)]
        if len(layers) > 1:
            names.insert(0, self._add(f"{output}_padding", layers[0]))
        return Step(tuple(names), tuple(sources), (output, *node.output[1:]))

    def _add(self, tensor: str, layer: nn.Module, node: str = "") -> str:
        name = tensor.replace(".", "_") or "tensor"
        while hasattr(self, name) or name in self.reserved:
            name += "_"
        # Adapters work along the features; where these are, a tensor [batch, a, b] does not tell.
        layer.channels_first = channels_first(self._graph, tensor)  # type: ignore[assignment]
        self.add_module(name, layer)
        self.names[tensor] = name
        if node:
            self.names.setdefault(node, name)
        return name


def channels_first(graph: Graph, tensor: str) -> bool:
    """Whether the features of a tensor are dimension 1, as after a convolution, or the last dimension."""
    name = tensor
    while name in graph.producers:
        node = graph.producers[name]
        if node.op_type in CHANNELS_FIRST_OPERATORS:
            return True
        if node.op_type in CHANNELS_LAST_OPERATORS or node.op_type == "Transpose":
            return False
        sources = [source for source in node.input if source in graph.dependent]
        if not sources:
            break
        name = sources[0]
    # Windows come as [batch, channels, ...].
    return name == graph.file.input


def _argument(known: Known, value: Tensor) -> Any:
    """Return a value that depends on the batch size only: a tensor, or sizes as an array."""
    found = known.at(value.shape[0])
    return torch.from_numpy(np.array(found)) if found.dtype.kind in "fb" else found


def _biases(tail: Tail) -> dict[str, str]:
    """Find MatMul operators whose only reader adds a constant vector; from what one writes to the other's."""
    found = {}
    for node in tail.nodes:
        readers = tail.graph.consumers.get(node.output[0], ())
        if node.op_type != "MatMul" or node.output[0] == tail.stop or len(readers) != 1:
            continue
        (reader,) = readers
        weight = tail.known.get(node.input[1])
        if reader.op_type == "Add" and weight is not None and weight.base.ndim == 2:
            bias = tail.known.get(next((name for name in reader.input if name != node.output[0]), ""))
            if bias is not None and bias.base.shape == weight.base.shape[1:] and bias.slope is None:
                found[node.output[0]] = reader.output[0]
    return found


def _with_bias(layer: nn.Module, tail: Tail, node: onnx.NodeProto, added: str) -> nn.Module:
    assert isinstance(layer, nn.Linear)  # noqa: S101 - _biases looks for a constant matrix
    (reader,) = tail.graph.consumers[node.output[0]]
    assert reader.output[0] == added  # noqa: S101
    bias = next(tail.known[name] for name in reader.input if name in tail.known)
    return linear_layer(layer.weight.detach(), torch.from_numpy(np.array(bias.base, np.float32)))
