"""ONNX operators that move values and compute none: shapes, slices, joins (opset 18 to 21).

The entries of the table are those of onnx_operators.py: a node in, a function of its inputs out.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.onnx_layers import Node

Function = Callable[..., Any]
"""Of the node's inputs; returns its output, or a tuple of several."""


def integers(value: Any) -> list[int]:
    """Return sizes or axes, given as an array or a tuple, as a list."""
    return [int(number) for number in np.asarray(value).reshape(-1)]


def as_tensor(value: Any, like: Tensor | None = None) -> Tensor:
    """Return a tensor as it is, and a constant array as one, of the type of another."""
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(np.asarray(value), dtype=None if like is None else like.dtype)


def _reshape(node: Node) -> Function:
    zero_is_zero = bool(node.attribute("allowzero", 0))

    def reshape(value: Tensor, shape: Any) -> Tensor:
        sizes = integers(shape)
        if not zero_is_zero:
            sizes = [value.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
        return value.reshape(sizes)

    return reshape


def _flatten(node: Node) -> Function:
    axis = node.attribute("axis", 1)
    return lambda value: value.reshape(math.prod(value.shape[:axis]), -1)


def _transpose(node: Node) -> Function:
    order = node.attribute("perm")
    return lambda value: value.permute(order or list(range(value.dim()))[::-1])


def _squeeze(_node: Node) -> Function:
    def squeeze(value: Tensor, axes: Any = None) -> Tensor:
        return value.squeeze() if axes is None else value.squeeze(tuple(integers(axes)))

    return squeeze


def _unsqueeze(_node: Node) -> Function:
    def unsqueeze(value: Tensor, axes: Any) -> Tensor:
        chosen = integers(axes)
        for axis in sorted(axis % (value.dim() + len(chosen)) for axis in chosen):
            value = value.unsqueeze(axis)
        return value

    return unsqueeze


def _concat(node: Node) -> Function:
    return lambda *values: torch.cat([as_tensor(value) for value in values], node.attribute("axis"))


def _split(node: Node) -> Function:
    axis, parts = node.attribute("axis", 0), node.attribute("num_outputs", len(node.proto.output))

    def split(value: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
        size = -(-value.shape[axis] // parts)
        return torch.split(value, size if sizes is None else integers(sizes), axis)

    return split


def _slice(node: Node) -> Function:
    if 4 in node.constants and any(step < 1 for step in integers(node.constants[4])):
        raise node.refused("it runs backwards (negative step)")

    def cut(value: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
        first, last = integers(starts), integers(ends)
        chosen = list(range(len(first))) if axes is None else integers(axes)
        strides = [1] * len(first) if steps is None else integers(steps)
        index = [slice(None)] * value.dim()
        for axis, start, end, step in zip(chosen, first, last, strides, strict=True):
            index[axis] = slice(*slice(start, end, step).indices(value.shape[axis]))
        return value[tuple(index)]

    return cut


def _gather(node: Node) -> Function:
    axis = node.attribute("axis", 0)
    if 1 not in node.constants:
        raise node.refused("its indices are not constant")

    def gather(value: Tensor, indices: Any) -> Tensor:
        if not isinstance(indices, np.ndarray):
            return value.select(axis, int(indices))
        chosen = [value.select(axis, index) for index in integers(indices)]
        rows = torch.stack(chosen, axis)
        place = axis % value.dim()
        return rows.reshape(*value.shape[:place], *indices.shape, *value.shape[place + 1 :])

    return gather


def _expand(_node: Node) -> Function:
    return lambda value, shape: value.expand(np.broadcast_shapes(tuple(value.shape), tuple(integers(shape))))


def _tile(_node: Node) -> Function:
    return lambda value, repeats: value.repeat(integers(repeats))


def _pad(node: Node) -> Function:
    if node.attribute("mode", "constant") != "constant":
        raise node.refused(f"its mode is {node.attribute('mode')!r}, expected 'constant'")

    def pad(value: Tensor, pads: Any, fill: Any = None, axes: Any = None) -> Tensor:
        amounts = integers(pads)
        chosen = range(value.dim()) if axes is None else [axis % value.dim() for axis in integers(axes)]
        both = {axis: (amounts[i], amounts[i + len(chosen)]) for i, axis in enumerate(chosen)}
        flat = [amount for axis in reversed(range(value.dim())) for amount in both.get(axis, (0, 0))]
        number = fill.item() if isinstance(fill, Tensor) else fill
        return functional.pad(value, flat, value=number or 0.0)

    return pad


SHAPE_OPERATORS: dict[str, Callable[[Node], Function]] = {
    "Concat": _concat,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
