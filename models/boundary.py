"""What crosses the cut between prefix and tail: as little as possible, and one row per sample.

A device computes these values once per window and keeps them, so their size is its memory. Values that
follow cheaply from others are repeated in the tail instead.
"""

import math
import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from models.errors import ExportError

CHEAP = {
    "_to_copy", "_unsafe_view", "abs", "add", "alias", "clone", "detach", "div", "expand",
    "flatten", "gelu", "hardswish", "hardtanh", "leaky_relu", "mul", "native_layer_norm", "neg",
    "permute", "pow", "relu", "reshape", "rsqrt", "select", "sigmoid", "silu", "slice", "split",
    "sqrt", "squeeze", "sub", "t", "tanh", "transpose", "unflatten", "unsqueeze", "view",
}  # fmt: skip
"""Operators that cost less to repeat in every step than their result costs to keep for every window."""


@dataclass(frozen=True)
class Boundary:
    """One value that crosses the cut, and how its samples are laid out."""

    shape: tuple[int, ...]
    """Its shape at the traced batch size."""
    dimension: int
    """The dimension that grows with the batch."""
    dtype: torch.dtype

    def size(self, batch: int) -> int:
        """Numbers per sample."""
        return math.prod(self.shape) // batch


def smallest(nodes: list[fx.Node], consumed: set[fx.Node], of_window: set[fx.Node]) -> list[fx.Node]:
    """Replace consumed values by fewer or smaller ones that they are cheaply recomputed from.

    Greedy: a value whose only source is smaller (an expanded or padded view) gives way to its source; then a
    value that follows from the others by cheap operators is dropped.

    Args:
        nodes: all operators, in order.
        consumed: what the tail reads from the prefix.
        of_window: all operators that depend on the window.

    Returns:
        The values to keep, in order.
    """

    def sources(node: fx.Node) -> set[fx.Node]:
        return {source for source in node.all_input_nodes if source in of_window}

    def follows(node: fx.Node, known: set[fx.Node]) -> bool:
        needed = sources(node)
        return _cheap(node) and bool(needed) and all(n in known or follows(n, known) for n in needed)

    kept = set(consumed)
    for node in reversed(nodes):
        if node in kept and _cheap(node) and len(sources(node)) == 1:
            (source,) = sources(node)
            if _elements(source) < _elements(node):
                kept = (kept - {node}) | {source}
    for node in reversed(nodes):
        if node in kept and follows(node, kept - {node}):
            kept.remove(node)
    return [node for node in nodes if node in kept]


def _cheap(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001 - the only name of this type
        return False
    return node.target.overloadpacket.__name__ in CHEAP


def _elements(node: fx.Node) -> float:
    value = node.meta.get("val")
    # Only float32 values are worth going back to: features have no other type.
    return value.numel() if isinstance(value, Tensor) and value.dtype == torch.float32 else math.inf


def locate(node: fx.Node, other: fx.Node, batch: int) -> Boundary:
    """Find the batch in a value, from its shapes at two batch sizes.

    Args:
        node: the operator, traced with `batch` windows.
        other: the same operator, traced with one window more.
        batch: the number of windows.

    Raises:
        ExportError: no single dimension grows with the batch, or the value is not float32 or bool.
    """
    value = node.meta["val"]
    if value.dtype not in (torch.float32, torch.bool):
        raise ExportError(
            f"{node.target} hands {value.dtype} to the adapters, expected float32",
            "cast it to float32 before the first adapted layer",
        )
    grown = [
        dimension
        for dimension, (size, larger) in enumerate(zip(value.shape, other.meta["val"].shape, strict=True))
        if size != larger and size % batch == 0 and larger == size // batch * (batch + 1)
    ]
    changed = sum(a != b for a, b in zip(value.shape, other.meta["val"].shape, strict=True))
    if len(grown) != 1 or changed != 1:
        raise ExportError(
            f"{node.target} hands {list(value.shape)} to the adapters, and no single dimension is the batch",
            "keep one batch dimension up to the first adapted layer; never mix the samples of a batch",
        )
    return Boundary(tuple(value.shape), grown[0], value.dtype)
