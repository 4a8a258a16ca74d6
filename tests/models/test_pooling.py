"""Pooling by matrices and comparisons against torch's fused pooling, values and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.pooling import REPLACEMENTS

aten = torch.ops.aten
CASES: list[tuple[object, tuple[object, ...]]] = [
    (aten._adaptive_avg_pool2d.default, ([3, 4],)),
    (aten._adaptive_avg_pool2d.default, ([7, 11],)),
    (aten.avg_pool2d.default, ([2, 3],)),
    (aten.avg_pool2d.default, ([3, 3], [2, 1], [1, 1])),
    (aten.avg_pool2d.default, ([3, 4], [2, 3], [1, 2], True)),
    (aten.avg_pool2d.default, ([3, 4], [2, 3], [1, 2], True, False)),
    (aten.avg_pool2d.default, ([3, 3], [2, 2], [1, 1], False, True, 5)),
    (aten.max_pool2d_with_indices.default, ([2, 3],)),
    (aten.max_pool2d_with_indices.default, ([3, 3], [2, 2], [1, 1])),
    (aten.max_pool2d_with_indices.default, ([3, 2], [1, 2], [1, 0], [2, 3])),
    (aten.max_pool2d_with_indices.default, ([2, 3], [2, 3], [1, 1], [1, 1], True)),
]


@pytest.mark.parametrize(("fused", "arguments"), CASES)
@pytest.mark.parametrize("ties", [False, True])
def test_pooling_and_its_gradient_are_those_of_the_fused_operator(
    fused: Callable[..., Tensor | tuple[Tensor, Tensor]], arguments: tuple[object, ...], ties: bool
) -> None:
    random = torch.Generator().manual_seed(0)
    value = torch.randn(2, 3, 7, 11, generator=random)
    if ties:
        value = value.round()
    results = []
    for operator in (fused, REPLACEMENTS[fused]):
        leaf = value.clone().requires_grad_()
        pooled = operator(leaf, *arguments)
        pooled = pooled[0] if isinstance(pooled, tuple) else pooled
        (pooled * torch.linspace(-1, 1, pooled.numel()).view(pooled.shape)).sum().backward()
        results.append((pooled.detach(), leaf.grad))
    (expected, expected_gradient), (found, gradient) = results
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient)
