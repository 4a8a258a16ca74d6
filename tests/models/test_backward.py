"""Backward operators against autograd's own."""

import pytest
import torch
from torch.nn import functional

from models.backward import convolution_backward, select_backward, slice_backward
from models.errors import ExportError


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 1, 1, 1), (5, 2, 2, 1), (4, 3, 1, 2), (1, 2, 0, 1), (7, 4, 3, 1), (2, 1, 0, 3)],
)
def test_convolution_of_any_stride_padding_and_dilation(
    dimensions: int, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    random = torch.Generator().manual_seed(0)
    extent = (17, 13)[:dimensions]
    value = torch.randn(4, 3, *extent, generator=random).requires_grad_()
    weight = torch.randn(5, 3, *[kernel] * dimensions, generator=random).requires_grad_()
    bias = torch.randn(5, generator=random).requires_grad_()
    convolve = functional.conv1d if dimensions == 1 else functional.conv2d
    output = convolve(value, weight, bias, stride, padding, dilation)
    gradient = torch.randn(output.shape, generator=random)
    expected = torch.autograd.grad(output, [value, weight, bias], gradient)
    found = convolution_backward(
        gradient,
        value.detach(),
        weight.detach(),
        [5],
        [stride] * dimensions,
        [padding] * dimensions,
        [dilation] * dimensions,
        False,
        [0] * dimensions,
        1,
        [True, True, True],
    )
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_grouped_convolution_is_refused() -> None:
    value, weight = torch.zeros(2, 4, 8), torch.zeros(4, 2, 3)
    with pytest.raises(ExportError, match="grouped"):
        convolution_backward(
            torch.zeros(2, 4, 6), value, weight, None, [1], [0], [1], False, [0], 2, [True, True, False]
        )


@pytest.mark.parametrize(
    ("start", "end", "step"),
    [(0, 2**63 - 1, 1), (2, 9, 3), (-4, 2**63 - 1, 2), (1, -1, 1), (0, 10, 4), (9, 10, 5)],
)
@pytest.mark.parametrize("dimension", [0, 1, -1])
def test_slices(dimension: int, start: int, end: int, step: int) -> None:
    value = torch.randn(10, 10, 10).requires_grad_()
    output = torch.ops.aten.slice.Tensor(value, dimension, start, end, step)
    gradient = torch.randn(output.shape)
    (expected,) = torch.autograd.grad(output, [value], gradient)
    assert torch.equal(slice_backward(gradient, [10, 10, 10], dimension, start, end, step), expected)


@pytest.mark.parametrize("dimension", [0, 1, -1])
@pytest.mark.parametrize("index", [0, 2, -1])
def test_selections(dimension: int, index: int) -> None:
    value = torch.randn(4, 5, 6).requires_grad_()
    output = value.select(dimension, index)
    gradient = torch.randn(output.shape)
    (expected,) = torch.autograd.grad(output, [value], gradient)
    assert torch.equal(select_backward(gradient, [4, 5, 6], dimension, index), expected)
