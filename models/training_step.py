"""The tail of a cut module as a training step: `(adapter, features, labels, weights) -> (loss, gradient)`.

Forward and backward become one list of ATen operators that need no autograd to run. The adapter is sliced
first and each slice differentiated by itself: differentiating the flat vector would scatter every slice's
gradient into a vector of its own.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions
from torch.func import grad_and_value
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.backward import BACKWARD
from models.errors import ExportError
from models.tracing import Cut

SMALLEST_TOTAL = 1e-12
"""Divisor when all weights are 0: loss and gradient are then 0 and not NaN."""


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy, summed with weights and divided by their sum.

    Args:
        logits: float32 [batch, classes].
        labels: int64 [batch].
        weights: float32 [batch], not negative; 0 for rows that only fill the batch.

    Returns:
        float32 [].
    """
    classes = torch.arange(logits.shape[1], device=logits.device)
    # one_hot() would leave an assertion in the trace; a comparison is an ordinary operator everywhere.
    chosen = (labels[:, None] == classes).to(logits.dtype)
    losses = -(torch.log_softmax(logits, -1) * chosen).sum(-1)
    return (losses * weights).sum() / weights.sum().clamp_min(SMALLEST_TOTAL)


class Predict(nn.Module):
    """`(adapter, features) -> logits`."""

    def __init__(self, cut: Cut, shapes: Sequence[torch.Size]) -> None:
        super().__init__()
        self.tail, self.shapes = cut.tail, shapes

    def forward(self, adapter: Tensor, features: Tensor) -> Tensor:
        """Map the flat adapter, float32 [parameters], and features, [batch, feature_size], to logits."""
        logits: Tensor = self.tail(*unflatten(adapter, self.shapes), features)
        return logits


def unflatten(adapter: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Cut a flat vector into tensors of these shapes, in order."""
    parts, start = [], 0
    for shape in shapes:
        size = math.prod(shape)
        parts.append(adapter[start : start + size].view(shape))
        start += size
    return parts


def trace_step(cut: Cut, shapes: Sequence[torch.Size], batch: int) -> fx.GraphModule:
    """Trace the training step at a fixed batch size.

    Args:
        cut: the module in two parts.
        shapes: those of the trainable parameters, in the order of the tail's inputs.
        batch: rows of every input.

    Raises:
        ExportError: an operator of the tail has no gradient in portable operators.
    """

    def loss_of(parts: list[Tensor], features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return weighted_loss(cut.tail(*parts, features), labels, weights)

    def step(adapter: Tensor, features: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        gradients, loss = grad_and_value(loss_of)(unflatten(adapter, shapes), features, labels, weights)
        return loss, torch.cat([gradient.reshape(-1) for gradient in gradients])

    table = {**core_aten_decompositions(), **BACKWARD}
    inputs = (
        torch.zeros(sum(map(math.prod, shapes))),
        torch.zeros(batch, cut.feature_size),
        torch.zeros(batch, dtype=torch.int64),
        torch.ones(batch),
    )
    try:
        with sdpa_kernel(SDPBackend.MATH):
            return make_fx(step, decomposition_table=table, tracing_mode="fake", _allow_non_fake_inputs=True)(
                *inputs
            )
    except ExportError:
        raise
    except Exception as error:  # autograd and the decompositions raise all kinds
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"the adapters' gradient cannot be traced: {reason}",
            "move the adapters behind the operator that it names",
        ) from error
