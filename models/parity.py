"""How far the exported graphs are from PyTorch: the promise that a device trains what was tried in torch.

The reference is the adapted module itself, run eagerly and differentiated by autograd, not the traced
operators: an error in the cut or in a decomposition shows. Adapters are random, since the initial one is the
identity and would hide most of the gradient.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from models import graphs
from models.adapters import AdaptedModule
from models.tracing import Cut
from models.training_step import unflatten, weighted_loss
from protocol.package import Parity

LIMIT = 1e-5
"""Largest relative L2 error with which a package is written."""


@dataclass(frozen=True)
class Reference:
    """What torch computes for one batch."""

    loss: float
    gradient: NDArray[np.float32]
    logits: NDArray[np.float32]


def reference(
    module: AdaptedModule, adapter: Tensor, windows: Tensor, labels: Tensor, weights: Tensor
) -> Reference:
    """Run the adapted module in torch with a given flat adapter.

    Args:
        module: in evaluation mode.
        adapter: float32 [parameters].
        windows: float32 [n, channels, length].
        labels: int64 [n].
        weights: float32 [n].
    """
    named = dict(module.named_parameters())
    names = module.trainable()
    flat = adapter.clone().requires_grad_()
    parts = unflatten(flat, [named[name].shape for name in names])
    logits = functional_call(module, dict(zip(names, parts, strict=True)), (windows,))
    loss = weighted_loss(logits, labels, weights)
    (gradient,) = torch.autograd.grad(loss, [flat])
    return Reference(float(loss.detach()), gradient.numpy(), logits.detach().numpy())


def measure(
    module: AdaptedModule,
    members: tuple[bytes, bytes, bytes],
    windows: Tensor,
    classes: int,
    batches: int = 3,
    *,
    inputs: Tensor | None = None,
) -> Parity:
    """Compare the graphs with torch on random adapters and batches; the last batch is short.

    The prefix runs once and the batches are drawn from its features, as a device draws them from its cache:
    a module that mixes the samples of a batch shows here.

    Args:
        module: in evaluation mode.
        members: prefix.onnx, step.onnx and predict.onnx.
        windows: float32 [batch, channels, length].
        classes: number of classes.
        batches: how many batches to compare.
        inputs: what the module takes, where a frozen graph stands before it; the windows if None.

    Returns:
        The largest relative L2 error of each output over all batches.
    """
    prefix, step, predict = (graphs.load(member) for member in members)
    random = torch.Generator().manual_seed(0)
    rows = windows.shape[0]
    taken = windows if inputs is None else inputs
    initial = module.flat_adapter()
    (cached,) = graphs.run(prefix, window=windows.numpy())
    errors = []
    for index in range(batches):
        used = rows if index < batches - 1 else max(1, rows * 2 // 3)
        order = torch.randperm(rows, generator=random)
        labels = torch.randint(0, classes, (rows,), generator=random)
        weights = torch.rand(rows, generator=random) + 0.5
        weights[used:] = 0
        features = cached[order.numpy()]
        features[used:] = 0
        adapter = initial + 0.05 * torch.randn(initial.shape, generator=random)
        expected = reference(module, adapter, taken[order[:used]], labels[:used], weights[:used])
        loss, gradient = graphs.run(
            step, adapter=adapter.numpy(), features=features, labels=labels.numpy(), weights=weights.numpy()
        )
        (logits,) = graphs.run(predict, adapter=adapter.numpy(), features=features)
        errors.append(
            (
                relative_error(loss, np.float32(expected.loss)),
                relative_error(gradient, expected.gradient),
                relative_error(logits[:used], expected.logits),
            )
        )
    # max() would skip a NaN that does not come first.
    worst = np.max(np.array(errors), axis=0)
    return Parity(*(float(error) for error in worst))


def measure_step(
    module: AdaptedModule,
    parts: Cut,
    members: tuple[bytes, bytes],
    features: NDArray[np.float32],
    batches: int = 3,
) -> Parity:
    """Compare step and prediction with torch on given features, for a prefix that is not torch's own.

    Args:
        module: in evaluation mode.
        parts: the module in two parts; the reference is the second one, differentiated by autograd.
        members: step.onnx and predict.onnx.
        features: as the device has them, float32 [batch, feature_size].
        batches: how many batches to compare.

    Returns:
        The largest relative L2 error of each output over all batches.
    """
    step, predict = (graphs.load(member) for member in members)
    named = dict(module.named_parameters())
    shapes = [named[name].shape for name in module.trainable()]
    random = torch.Generator().manual_seed(1)
    initial = module.flat_adapter()
    errors = []
    for _ in range(batches):
        rows = features[torch.randperm(len(features), generator=random).numpy()]
        labels = torch.randint(0, parts.classes, (len(rows),), generator=random)
        weights = torch.rand(len(rows), generator=random) + 0.5
        adapter = initial + 0.05 * torch.randn(initial.shape, generator=random)
        flat = adapter.clone().requires_grad_()
        logits = parts.tail(*unflatten(flat, shapes), torch.from_numpy(rows))
        loss = weighted_loss(logits, labels, weights)
        (gradient,) = torch.autograd.grad(loss, [flat])
        found_loss, found_gradient = graphs.run(
            step, adapter=adapter.numpy(), features=rows, labels=labels.numpy(), weights=weights.numpy()
        )
        (found_logits,) = graphs.run(predict, adapter=adapter.numpy(), features=rows)
        errors.append(
            (
                relative_error(found_loss, np.float32(loss.detach())),
                relative_error(found_gradient, gradient.numpy()),
                relative_error(found_logits, logits.detach().numpy()),
            )
        )
    worst = np.max(np.array(errors), axis=0)
    return Parity(*(float(error) for error in worst))


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32] | np.float32) -> float:
    """L2 distance, relative to the length of the expected value."""
    wanted = np.asarray(expected, np.float64)
    return float(np.linalg.norm(np.asarray(found, np.float64) - wanted) / max(np.linalg.norm(wanted), 1e-12))
