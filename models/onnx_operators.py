"""The table of ONNX operators without weights, as functions on torch tensors (opset 18 to 21).

Each entry takes a node and returns a function of its inputs, in order: tensors, numbers for constant scalars,
arrays of int64 for constant sizes and axes, None for inputs left out. Whatever is not in OPERATORS is refused
by its name.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.onnx_layers import LAYERS, Node, Padding
from models.onnx_shape_operators import SHAPE_OPERATORS, Function, as_tensor, integers


class Operator(nn.Module):
    """One node as a module: constants inside, everything else as an argument."""

    def __init__(self, node: Node, function: Function) -> None:
        super().__init__()
        self.function = function
        self.slots: list[Any] = []
        """What stands at each input: a constant, the name of a buffer, or nothing yet."""
        for index in range(len(node.proto.input)):
            value = node.constants.get(index)
            if value is None:
                self.slots.append(("argument", None) if node.has_input(index) else ("constant", None))
            elif value.ndim == 0:
                self.slots.append(("constant", value.item()))
            elif value.dtype.kind == "i":
                self.slots.append(("constant", value))
            else:
                self.register_buffer(f"constant_{index}", torch.from_numpy(np.array(value)), persistent=False)
                self.slots.append(("buffer", f"constant_{index}"))

    def forward(self, *arguments: Any) -> Any:
        """Run the operator on the inputs that are not constant."""
        given = iter(arguments)
        values = []
        for kind, content in self.slots:
            if kind == "argument":
                values.append(next(given))
            else:
                values.append(getattr(self, content) if kind == "buffer" else content)
        return self.function(*values)


def operator_module(node: Node) -> Operator:
    """Look a node's operator up.

    Raises:
        ExportError: it is not in the table, or used in a way that is not supported.
    """
    check_operator(node)
    return Operator(node, OPERATORS[node.operator](node))


def check_operator(node: Node) -> None:
    """Refuse what no table has.

    Raises:
        ExportError: the operator can never be imported.
    """
    if node.operator not in OPERATORS and node.operator not in LAYERS:
        recurrent = node.operator in ("LSTM", "GRU", "RNN", "Loop", "Scan")
        reason = "recurrence is not supported" if recurrent else "it is not in the table of operators"
        raise node.refused(reason)


def _elementwise(function: Function) -> Callable[[Node], Function]:
    """Make an entry for an operator whose inputs may be tensors or numbers."""

    def of(*values: Any) -> Any:
        like = next(value for value in values if isinstance(value, Tensor))
        return function(*(as_tensor(v, like) if isinstance(v, (np.ndarray, tuple)) else v for v in values))

    return lambda _node: of


def _folded(function: Function) -> Callable[[Node], Function]:
    """Make an entry for an operator of any number of tensors, taken two by two."""

    def of(*values: Any) -> Any:
        like = next(value for value in values if isinstance(value, Tensor))
        result, *others = (as_tensor(value, like) for value in values)
        for other in others:
            result = function(result, other)
        return result

    return lambda _node: of


def _gemm(node: Node) -> Function:
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)

    def gemm(first: Tensor, second: Tensor, third: Tensor | None = None) -> Tensor:
        first = first.T if node.attribute("transA", 0) else first
        second = second.T if node.attribute("transB", 0) else second
        product: Tensor = alpha * (first @ second)
        return product if third is None else product + beta * third

    return gemm


def _clip(value: Tensor, low: Any = None, high: Any = None) -> Tensor:
    low, high = (bound.item() if isinstance(bound, Tensor) else bound for bound in (low, high))
    return torch.clamp(value, low, high)


def _gelu(node: Node) -> Function:
    approximate = node.attribute("approximate", "none")
    return lambda value: functional.gelu(value, approximate=approximate)


def _softmax(function: Function) -> Callable[[Node], Function]:
    return lambda node: lambda value: function(value, node.attribute("axis", -1))


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[[Node], Function]:
    def build(node: Node) -> Function:
        keep = bool(node.attribute("keepdims", 1))

        def reduce(value: Tensor, axes: Any = None) -> Tensor:
            chosen = [] if axes is None else integers(axes)
            if not chosen and node.attribute("noop_with_empty_axes", 0):
                return value
            return function(value, chosen or list(range(value.dim())), keep)

        return reduce

    return build


def _pool(node: Node) -> Function:
    """MaxPool and AveragePool; padding that torch has not is put in front."""
    if len([name for name in node.proto.output if name]) > 1:
        raise node.refused("its second output (indices) is used")
    kernel = list(node.attribute("kernel_shape"))
    if len(kernel) not in (1, 2):
        raise node.refused(f"it has {len(kernel)} dimensions, expected 1 or 2")
    maximum = node.operator == "MaxPool"
    counted = bool(node.attribute("count_include_pad", 0))
    padding = Padding(node, kernel, -math.inf if maximum else 0.0)
    amounts = padding.symmetric()
    ceil = bool(node.attribute("ceil_mode", 0))
    if amounts is None and not (maximum or counted):
        raise node.refused("its padding differs between the two sides, and the padding is not counted")
    if not maximum and padding.dilations != [1] * len(kernel):
        raise node.refused("it is dilated")
    # torch takes at most half a kernel of padding; more is put in front.
    separate = amounts is None or any(2 * pad > size for pad, size in zip(amounts, kernel, strict=True))
    if separate and not maximum and not counted:
        raise node.refused("it has more padding than half the kernel")
    inside = [0] * len(kernel) if separate or amounts is None else amounts

    def pool(value: Tensor) -> Tensor:
        value = padding(value) if separate else value
        if maximum:
            function: Function = functional.max_pool1d if len(kernel) == 1 else functional.max_pool2d
            pooled: Tensor = function(value, kernel, padding.strides, inside, padding.dilations, ceil)
        else:
            function = functional.avg_pool1d if len(kernel) == 1 else functional.avg_pool2d
            pooled = function(value, kernel, padding.strides, inside, ceil, counted)
        return pooled

    return pool


def _over_space(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[[Node], Function]:
    return lambda _node: lambda value: function(value, list(range(2, value.dim())), True)


def _instance_normalisation(node: Node) -> Function:
    epsilon = node.attribute("epsilon", 1e-5)
    return lambda value, scale, bias: _normalised(value, value.shape[1], epsilon, scale, bias)


def _group_normalisation(node: Node) -> Function:
    groups, epsilon = node.attribute("num_groups"), node.attribute("epsilon", 1e-5)

    def normalise(value: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        # Before opset 21 there is one factor per group, since then one per channel.
        scale, bias = (part.repeat_interleave(value.shape[1] // len(part)) for part in (scale, bias))
        return _normalised(value, groups, epsilon, scale, bias)

    return normalise


def _normalised(value: Tensor, groups: int, epsilon: float, scale: Tensor, bias: Tensor) -> Tensor:
    rows = value.reshape(value.shape[0], groups, -1)
    centred = rows - rows.mean(-1, keepdim=True)
    rows = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + epsilon)
    factors = [1, -1] + [1] * (value.dim() - 2)
    return rows.reshape(value.shape) * scale.reshape(factors) + bias.reshape(factors)


def _cast(node: Node) -> Function:
    types = {onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.BOOL: torch.bool}
    wanted = node.attribute("to")
    if wanted not in types:
        raise node.refused(f"it makes {onnx.TensorProto.DataType.Name(wanted)}, expected float32 or bool")
    return lambda value: value.to(types[wanted])


def _einsum(node: Node) -> Function:
    return lambda *values: torch.einsum(node.attribute("equation"), *values)


def _same(_node: Node) -> Function:
    def same(value: Tensor, *_others: object) -> Tensor:
        return value

    return same


def _with(
    name: str, default: float, function: Callable[[Tensor, float], Tensor]
) -> Callable[[Node], Function]:
    """Make an entry for a function of a tensor and one attribute."""
    return lambda node: lambda value: function(value, node.attribute(name, default))


def _hard_sigmoid(node: Node) -> Function:
    alpha, beta = node.attribute("alpha", 0.2), node.attribute("beta", 0.5)
    return lambda value: torch.clamp(alpha * value + beta, 0, 1)


def _one(function: Function) -> Callable[[Node], Function]:
    return lambda _node: function


def _sum(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    return value.sum(axes, keepdim=keep)


def _mean(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    return value.mean(axes, keepdim=keep)


OPERATORS: dict[str, Callable[[Node], Function]] = {
    **SHAPE_OPERATORS,
    "Abs": _one(torch.abs),
    "Add": _elementwise(operator.add),
    "And": _folded(torch.logical_and),
    "AveragePool": _pool,
    "Cast": _cast,
    "Clip": _one(_clip),
    "Cos": _one(torch.cos),
    "Div": _elementwise(operator.truediv),
    "Dropout": _same,
    "Einsum": _einsum,
    "Elu": _with("alpha", 1.0, functional.elu),
    "Equal": _folded(torch.eq),
    "Erf": _one(torch.erf),
    "Exp": _one(torch.exp),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _over_space(_mean),
    "GlobalMaxPool": _over_space(lambda value, axes, keep: value.amax(axes, keep)),
    "Greater": _folded(torch.gt),
    "GroupNormalization": _group_normalisation,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _one(functional.hardswish),
    "Identity": _same,
    "InstanceNormalization": _instance_normalisation,
    "LeakyRelu": _with("alpha", 0.01, functional.leaky_relu),
    "Less": _folded(torch.lt),
    "Log": _one(torch.log),
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": _folded(torch.matmul),
    "Max": _folded(torch.maximum),
    "MaxPool": _pool,
    "Min": _folded(torch.minimum),
    "Mul": _elementwise(operator.mul),
    "Neg": _one(torch.neg),
    "Not": _one(torch.logical_not),
    "Or": _folded(torch.logical_or),
    "PRelu": _folded(lambda value, slope: torch.where(value > 0, value, value * slope)),
    "Pow": _elementwise(operator.pow),
    "Reciprocal": _one(torch.reciprocal),
    "ReduceL2": _reduce(lambda value, axes, keep: value.square().sum(axes, keepdim=keep).sqrt()),
    "ReduceMax": _reduce(lambda value, axes, keep: value.amax(axes, keep)),
    "ReduceMean": _reduce(_mean),
    "ReduceMin": _reduce(lambda value, axes, keep: value.amin(axes, keep)),
    "ReduceSum": _reduce(_sum),
    "ReduceSumSquare": _reduce(lambda value, axes, keep: value.square().sum(axes, keepdim=keep)),
    "Relu": _one(torch.relu),
    "Selu": lambda node: (
        lambda value: (
            node.attribute("gamma", 1.0507009873554805)
            * functional.elu(value, node.attribute("alpha", 1.6732632423543772))
        )
    ),
    "Sigmoid": _one(torch.sigmoid),
    "Sin": _one(torch.sin),
    "Softmax": _softmax(torch.softmax),
    "Softplus": _one(functional.softplus),
    "Softsign": _one(functional.softsign),
    "Sqrt": _one(torch.sqrt),
    "Sub": _elementwise(operator.sub),
    "Sum": _folded(torch.add),
    "Tanh": _one(torch.tanh),
    "Where": _elementwise(torch.where),
}
