"""Pooling in operators whose backward pass ONNX has, for pooling layers behind an adapter.

The fused pooling operators of torch have backward operators that no exporter knows. Average pooling is
linear along each dimension, so it is a product with a constant matrix; max pooling is a comparison of the
kernel's positions one after the other. The functions have the signatures of the operators they replace.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def adaptive_average(value: Tensor, output_size: Sequence[int]) -> Tensor:
    """Replace `_adaptive_avg_pool2d`: float32 [..., height, width] -> [..., *output_size]."""
    matrices = []
    for size, count in zip(value.shape[-2:], output_size, strict=True):
        bounds = [(i * size // count, math.ceil((i + 1) * size / count)) for i in range(count)]
        matrices.append(_averages(size, [(start, stop, stop - start) for start, stop in bounds]))
    return _apply(value, matrices)


def average(  # noqa: PLR0917 - the operator's signature
    value: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Replace `avg_pool2d`: float32 [..., height, width] -> pooled along the last two dimensions."""
    kernel, stride, padding = _pair(kernel_size), _pair(stride or kernel_size), _pair(padding)
    matrices = []
    for i, size in enumerate(value.shape[-2:]):
        bounds = []
        for position in range(_positions(size, kernel[i], stride[i], padding[i], ceil_mode)):
            start = position * stride[i] - padding[i]
            stop = min(start + kernel[i], size + padding[i])
            inside = max(start, 0), min(stop, size)
            count = stop - start if count_include_pad else inside[1] - inside[0]
            bounds.append((*inside, count if divisor_override is None else 1))
        matrices.append(_averages(size, bounds))
    return _apply(value, matrices) / (divisor_override or 1)


def maximum(  # noqa: PLR0917 - the operator's signature
    value: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Tensor, None]:
    """Replace `max_pool2d_with_indices`: float32 [..., height, width] -> (pooled, no indices)."""
    kernel, stride = _pair(kernel_size), _pair(stride or kernel_size)
    padding, dilation = _pair(padding), _pair(dilation)
    counts, pads = [], []
    for i, size in enumerate(value.shape[-2:]):
        reach = dilation[i] * (kernel[i] - 1) + 1
        counts.append(_positions(size, reach, stride[i], padding[i], ceil_mode))
        # In ceil mode the last position may reach beyond the padding.
        pads.append((padding[i], max(padding[i], (counts[i] - 1) * stride[i] + reach - size - padding[i])))
    padded = torch.nn.functional.pad(value, (*pads[1], *pads[0]), value=-math.inf)
    best: Tensor | None = None
    for row, column in itertools.product(range(kernel[0]), range(kernel[1])):
        candidate = padded
        for dimension, tap, i in ((-2, row, 0), (-1, column, 1)):
            start = tap * dilation[i]
            stop = start + (counts[i] - 1) * stride[i] + 1
            candidate = aten.slice.Tensor(candidate, dimension, start, stop, stride[i])
        # Strictly greater: among equals the first keeps the gradient, as in torch.
        best = candidate if best is None else torch.where(candidate > best, candidate, best)
    assert best is not None  # noqa: S101 - a kernel has at least one position
    return best, None


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    aten._adaptive_avg_pool2d.default: adaptive_average,  # noqa: SLF001 - the operator's name
    aten.avg_pool2d.default: average,
    aten.max_pool2d_with_indices.default: maximum,
}


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return (values[0], values[-1])


def _positions(size: int, reach: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """How many positions a kernel has along one dimension."""
    span = size + 2 * padding - reach
    count = (-(-span // stride) if ceil_mode else span // stride) + 1
    # The last position must start inside the value or its left padding.
    return count - 1 if ceil_mode and (count - 1) * stride >= size + padding else count


def _averages(size: int, bounds: Sequence[tuple[int, int, int]]) -> Tensor:
    """A matrix [size, len(bounds)] that sums from start to stop and divides."""
    # In one go: writing into a tensor would be traced as a mutation.
    return torch.tensor(
        [
            [1 / divisor if start <= row < stop else 0.0 for start, stop, divisor in bounds]
            for row in range(size)
        ]
    )


def _apply(value: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    rows, columns = matrices
    pooled: Tensor = (value @ columns).transpose(-1, -2) @ rows
    return pooled.transpose(-1, -2)
