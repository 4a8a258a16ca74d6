"""Training the adapter in plain PyTorch, tensors already in memory."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .network import AdaptedNetwork

EVALUATION_BATCH = 256


def train(
    network: AdaptedNetwork,
    inputs: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    random: np.random.Generator,
    forward: Callable[[Tensor], Tensor] | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train for some epochs with AdamW, every class weighted alike.

    Args:
        network: trained in place.
        inputs: windows, or whatever `forward` takes.
        labels: int64 [n].
        epochs: passes over the data.
        batch: rows per step.
        learning_rate: of AdamW, without weight decay.
        random: order of the windows.
        forward: what to run; None: the whole network.
        after_step: called after each step, to measure.
    """
    run = network if forward is None else forward
    weights = class_weights(labels)
    # The fused implementation is PyTorch's fastest for a handful of small tensors on a CPU.
    optimizer = torch.optim.AdamW(network.adapter_parameters(), learning_rate, weight_decay=0.0, fused=True)
    for _ in range(epochs):
        order = torch.from_numpy(random.permutation(len(labels)))
        for rows in order.split(batch):
            losses = functional.cross_entropy(run(inputs[rows]), labels[rows], reduction="none")
            loss = (losses * weights[rows]).sum() / weights[rows].sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after_step()


def features(network: AdaptedNetwork, windows: Tensor, batch: int) -> Tensor:
    """Run the frozen part once over all windows, float32 [n, 128]."""
    with torch.inference_mode():
        parts = [network.frozen(part) for part in windows.split(batch)]
    # Autograd refuses inference tensors; a copy is an ordinary one.
    return torch.cat(parts).clone()


def accuracy(network: AdaptedNetwork, windows: Tensor, labels: Tensor) -> float:
    """Share of windows that are classified right."""
    with torch.inference_mode():
        logits = torch.cat([network(part) for part in windows.split(EVALUATION_BATCH)])
    return float((logits.argmax(1) == labels).double().mean())


def class_weights(labels: Tensor) -> Tensor:
    """Weights, float32 [n] with mean 1, under which every class that occurs counts the same."""
    counts = torch.bincount(labels)
    return (len(labels) / (int((counts > 0).sum()) * counts[labels].double())).float()
