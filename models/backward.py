"""Backward operators of torch, written in operators that every ONNX runtime has.

BACKWARD is a decomposition table, to be laid over torch's own when a training step is traced. Each function
has the signature of the operator that it stands for.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.errors import ExportError


def convolution_backward(  # noqa: PLR0917 - the operator's signature
    gradient: Tensor,
    value: Tensor,
    weight: Tensor,
    _bias_sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    _output_padding: list[int],
    groups: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Express the backward pass of an ordinary convolution as convolutions, which ONNX has.

    An entry for a decomposition table, with the signature of `aten.convolution_backward`. With respect to
    its input, a convolution's gradient is the transposed convolution. With respect to its weight, it is the
    convolution of the input by the output's gradient, where batch and channels change places, and so do
    stride and dilation.

    Raises:
        ExportError: the convolution is grouped or transposed.
    """
    if transposed or groups != 1:
        raise ExportError("a grouped or transposed convolution below an adapter is not supported")
    convolution = torch.ops.aten.convolution.default
    dimensions = range(value.dim() - 2)
    # One number may stand for all dimensions, as padding="valid" leaves it.
    stride, padding, dilation = (
        [*given] * (len(dimensions) if len(given) == 1 else 1) for given in (stride, padding, dilation)
    )
    of_value = of_weight = of_bias = None
    if output_mask[0]:
        # Rows at the end that no kernel position reached get a zero gradient through output padding.
        reach = [dilation[i] * (weight.shape[2 + i] - 1) + 1 for i in dimensions]
        unread = [(value.shape[2 + i] + 2 * padding[i] - reach[i]) % stride[i] for i in dimensions]
        of_value = convolution(gradient, weight, None, stride, padding, dilation, True, unread, 1)
    if output_mask[1]:
        kernels, rows = gradient.transpose(0, 1), value.transpose(0, 1)
        zeros = [0] * len(dimensions)
        of_weight = convolution(rows, kernels, None, dilation, padding, stride, False, zeros, 1).transpose(
            0, 1
        )
        for i in dimensions:
            # The same unread rows would appear as kernel positions that do not exist.
            of_weight = of_weight.narrow(2 + i, 0, weight.shape[2 + i])
    if output_mask[2]:
        of_bias = gradient.sum([0, *(2 + i for i in dimensions)])
    return of_value, of_weight, of_bias


def slice_backward(  # noqa: PLR0917 - the operator's signature
    gradient: Tensor, input_sizes: list[int], dimension: int, start: int, end: int, step: int
) -> Tensor:
    """Put a slice's gradient back among zeros, by padding; torch's own scatters, which exports badly."""
    size = input_sizes[dimension]
    first, _, _ = slice(start, end, step).indices(size)
    count = gradient.shape[dimension]
    spread = gradient.movedim(dimension, -1)
    if step > 1:
        # One column of values and step - 1 of zeros, read row by row.
        spread = functional.pad(spread[..., None], (0, step - 1)).flatten(-2)
        spread = spread[..., : (count - 1) * step + 1]
    spread = functional.pad(spread, (first, size - first - spread.shape[-1]))
    return spread.movedim(-1, dimension)


def select_backward(gradient: Tensor, input_sizes: list[int], dimension: int, index: int) -> Tensor:
    """Put the gradient of one selected index back among zeros, by padding."""
    size = input_sizes[dimension]
    spread = gradient.unsqueeze(dimension).movedim(dimension, -1)
    return functional.pad(spread, (index % size, size - 1 - index % size)).movedim(-1, dimension)


BACKWARD: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.convolution_backward.default: convolution_backward,
    torch.ops.aten.slice_backward.default: slice_backward,
    torch.ops.aten.select_backward.default: select_backward,
}
