"""ONNX operators with weights as the torch layers that adapters fit on: convolution, linear, normalisation.

Each function takes a node and returns the layers that stand for it, the one with the weights last. Semantics
are those of the ONNX operator specification, opset 18 to 21.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ExportError
from models.onnx_file import described


@dataclass(frozen=True, eq=False)
class Node:
    """One node behind the cut."""

    proto: onnx.NodeProto
    constants: Mapping[int, NDArray[np.generic]]
    """Inputs that are the same for every batch size, by position."""

    @property
    def operator(self) -> str:
        """Name of its operator."""
        return str(self.proto.op_type)

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute as a Python value; text as str."""
        for attribute in self.proto.attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def has_input(self, index: int) -> bool:
        """Whether an optional input is there."""
        return index < len(self.proto.input) and bool(self.proto.input[index])

    def weights(self, index: int) -> Tensor:
        """Return an input that must be constant, as float32.

        Raises:
            ExportError: it is computed from the window, or of another type.
        """
        value = self.constants.get(index)
        if value is None or value.dtype != np.float32:
            raise self.refused(f"its input {index} is not a float32 constant")
        return torch.from_numpy(np.array(value, np.float32))

    def refused(self, reason: str) -> ExportError:
        """Say that the operator cannot be imported."""
        return ExportError(
            f"operator {self.operator} ({described(self.proto)}) cannot be imported: {reason}",
            "cut behind it (--at, see --list)",
        )


class Padding(nn.Module):
    """Pads the last dimensions: by fixed amounts, or so that a strided kernel covers every row (SAME)."""

    def __init__(self, node: Node, kernel: list[int], value: float = 0.0) -> None:
        super().__init__()
        self.kernel, self.value = kernel, value
        self.strides = node.attribute("strides", [1] * len(kernel))
        self.dilations = node.attribute("dilations", [1] * len(kernel))
        self.mode = node.attribute("auto_pad", "NOTSET")
        self.pads = node.attribute("pads", [0] * 2 * len(kernel)) if self.mode == "NOTSET" else []
        if any(pad < 0 for pad in self.pads):
            raise node.refused("its padding is negative")

    def symmetric(self) -> list[int] | None:
        """The padding per dimension if it is the same on both sides and known, else None."""
        if self.mode == "VALID":
            return [0] * len(self.kernel)
        half = len(self.kernel)
        if self.mode != "NOTSET" or self.pads[:half] != self.pads[half:]:
            return None
        return list(self.pads[:half])

    def forward(self, value: Tensor) -> Tensor:
        """Map [batch, channels, *sizes] to the same with padding."""
        amounts: list[int] = []
        for i, (kernel, stride) in enumerate(zip(self.kernel, self.strides, strict=True)):
            if self.mode == "NOTSET":
                low, high = self.pads[i], self.pads[i + len(self.kernel)]
            else:
                size = value.shape[2 + i]
                total = (-(-size // stride) - 1) * stride + (kernel - 1) * self.dilations[i] + 1 - size
                small, large = max(total, 0) // 2, max(total, 0) - max(total, 0) // 2
                low, high = (small, large) if self.mode == "SAME_UPPER" else (large, small)
            amounts = [low, high, *amounts]
        padded: Tensor = functional.pad(value, amounts, value=self.value)
        return padded


def convolution(node: Node) -> list[nn.Module]:
    """Import Conv, 1-D or 2-D."""
    weight = node.weights(1)
    dimensions = weight.dim() - 2
    if dimensions not in (1, 2):
        raise node.refused(f"it has {dimensions} dimensions, expected 1 or 2")
    kernel, groups = list(weight.shape[2:]), node.attribute("group", 1)
    padding = Padding(node, kernel)
    amounts = padding.symmetric()
    build = nn.Conv1d if dimensions == 1 else nn.Conv2d
    layer = build(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(kernel),  # type: ignore[arg-type]  # one or two numbers, as the class takes
        tuple(padding.strides),
        tuple(amounts or [0] * dimensions),  # type: ignore[arg-type]
        tuple(padding.dilations),
        groups,
        bias=node.has_input(2),
    )
    _set(layer, weight=weight, bias=node.weights(2) if node.has_input(2) else None)
    return [layer] if amounts is not None else [padding, layer]


def linear(node: Node) -> list[nn.Module] | None:
    """Import Gemm or MatMul by a constant matrix; None where it is something else."""
    weight = node.constants.get(1)
    if weight is None or weight.ndim != 2 or weight.dtype != np.float32 or 0 in node.constants:
        return None
    matrix, bias = node.weights(1), None
    if node.operator == "Gemm":
        if node.attribute("transA", 0):
            return None
        matrix = (matrix if node.attribute("transB", 0) else matrix.T) * node.attribute("alpha", 1.0)
        if node.has_input(2):
            if 2 not in node.constants or node.constants[2].size not in (1, len(matrix)):
                return None
            bias = (node.weights(2) * node.attribute("beta", 1.0)).reshape(-1).expand(len(matrix))
    else:
        matrix = matrix.T
    return [linear_layer(matrix, bias)]


def linear_layer(matrix: Tensor, bias: Tensor | None) -> nn.Linear:
    """Make a linear layer of a matrix, float32 [outputs, inputs], and a bias, float32 [outputs]."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias is not None)
    _set(layer, weight=matrix, bias=bias)
    return layer


def batch_normalisation(node: Node) -> list[nn.Module]:
    """Import BatchNormalization with the statistics of its training."""
    if node.attribute("training_mode", 0):
        raise node.refused("it is in training mode; export the network in evaluation mode")
    scale, bias, mean, variance = (node.weights(index) for index in range(1, 5))
    layer = BatchNorm(len(scale), node.attribute("epsilon", 1e-5))
    _set(layer, weight=scale, bias=bias, running_mean=mean, running_var=variance)
    return [layer.eval()]


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm in evaluation mode over dimension 1 of a value with any number of dimensions."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's own signature
        pass


def layer_normalisation(node: Node) -> list[nn.Module]:
    """Import LayerNormalization over the last dimensions."""
    scale = node.weights(1)
    axis = node.attribute("axis", -1)
    if axis < 0 and -axis != scale.dim():
        raise node.refused(f"its scale has {scale.dim()} dimensions, expected {-axis}")
    layer = nn.LayerNorm(list(scale.shape), node.attribute("epsilon", 1e-5), bias=node.has_input(2))
    _set(layer, weight=scale, bias=node.weights(2) if node.has_input(2) else None)
    return [layer]


LAYERS: dict[str, Callable[[Node], list[nn.Module] | None]] = {
    "Conv": convolution,
    "Gemm": linear,
    "MatMul": linear,
    "BatchNormalization": batch_normalisation,
    "LayerNormalization": layer_normalisation,
}
"""Operators that become layers; where the function returns None, that of onnx_operators.py is used."""


def _set(layer: nn.Module, **values: Tensor | None) -> None:
    named = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    with torch.no_grad():
        for name, value in values.items():
            if value is not None:
                if named[name].shape != value.shape:
                    raise ExportError(f"{name}: expected {list(named[name].shape)}, got {list(value.shape)}")
                named[name].copy_(value)
