"""The frozen ONNX part of an adapted file: from windows as the agent cuts them to the tensor at the cut.

It becomes the first half of prefix.onnx; the second half is what the traced tail leaves frozen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models import graphs
from models.errors import ExportError
from models.onnx_cut import Tail, front
from models.onnx_file import convert_opset, infer_shapes, opset_of

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Arrangement:
    """How a window is laid out for a graph that does not take [channels, ...] as the agent gives it."""

    window: tuple[int, ...]
    """Shape of a window of the schema."""
    taken: tuple[int, ...]
    """Shape of a window as the graph takes it."""
    channels_last: bool
    """Whether the channels move to the end before the reshape."""

    def __call__(self, windows: Floats) -> Floats:
        """Lay out windows, float32 [n, *window] -> [n, *taken]."""
        if self.channels_last:
            windows = np.moveaxis(windows, 1, -1)
        return np.ascontiguousarray(windows.reshape(len(windows), *self.taken))

    def nodes(self, batch: int, source: str, target: str) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
        """Return the same as ONNX operators."""
        order = [0, *range(2, len(self.window) + 1), 1] if self.channels_last else None
        nodes = [helper.make_node("Transpose", [source], [f"{target}.moved"], perm=order)] if order else []
        moved = f"{target}.moved" if order else source
        shape = numpy_helper.from_array(np.array([batch, *self.taken], np.int64), f"{target}.shape")
        return [*nodes, helper.make_node("Reshape", [moved, shape.name], [target])], [shape]


def arrange(window: Sequence[int], taken: Sequence[int | None]) -> Arrangement:
    """Find out how windows of the schema fit what a graph takes.

    As they are, with the channels last (TensorFlow, Keras), flattened, or with dimensions of size 1 more or
    less; an open size takes what the window has.

    Raises:
        ExportError: none of these fits.
    """
    last = (*window[1:], window[0])
    for shape, moved in ((tuple(window), False), (last, True)):
        if len(taken) == len(shape) and all(a in (None, b) for a, b in zip(taken, shape, strict=True)):
            return Arrangement(tuple(window), shape, moved)
    known = [size for size in taken if size is not None]
    if len(known) == len(taken) or len(taken) == 1:
        for shape, moved in ((tuple(window), False), (last, True)):
            if [size for size in shape if size != 1] == [size for size in known if size != 1] and known:
                return Arrangement(tuple(window), tuple(known), moved)
        if len(taken) == 1 and (not known or known[0] == math.prod(window)):
            return Arrangement(tuple(window), (math.prod(window),), False)
    shown = ", ".join("any" if size is None else str(size) for size in taken)
    raise ExportError(
        f"the graph takes [{shown}] per window, the schema gives {list(window)} [channels, ...]",
        "correct the channels and the window length of the schema",
    )


def fixed_front(parts: Tail, arrangement: Arrangement, batch: int) -> bytes:
    """Return the graph from windows to the cut: "window" -> "cut", both float32 [batch, ...].

    Raises:
        ExportError: an operator is not one that every onnxruntime has.
    """
    # The graph's own names must not meet those of a package.
    model = onnx.compose.add_prefix(front(parts.graph, parts.start), "front.")
    inner = model.graph
    (source,), (output,) = list(inner.input), list(inner.output)
    taken = source.name
    nodes, weights = arrangement.nodes(batch, "window", taken)
    if arrangement.window == arrangement.taken and not arrangement.channels_last:
        nodes, weights = [helper.make_node("Identity", ["window"], [taken])], []
    count = len(output.type.tensor_type.shape.dim)
    order = [parts.batch_dimension, *(i for i in range(count) if i != parts.batch_dimension)]
    last = (
        helper.make_node("Transpose", [output.name], ["cut"], perm=order)
        if parts.batch_dimension
        else helper.make_node("Identity", [output.name], ["cut"])
    )
    model = helper.make_model(
        helper.make_graph(
            [*nodes, *inner.node, last],
            "graph",
            [helper.make_tensor_value_info("window", TensorProto.FLOAT, [batch, *arrangement.window])],
            [helper.make_tensor_value_info("cut", TensorProto.FLOAT, None)],
            [*weights, *inner.initializer],
        ),
        opset_imports=list(model.opset_import),
        ir_version=graphs.IR_VERSION,
    )
    return bytes(infer_shapes(model).SerializeToString(deterministic=True))


def compose(first: bytes, second: bytes) -> bytes:
    """Put the prefix that torch exported behind the front.

    Args:
        first: "window" -> "cut".
        second: "window", which is the cut, -> "features".

    Returns:
        "window" -> "features".

    Raises:
        ExportError: the two cannot be brought to one opset.
    """
    front_model, prefix = onnx.load_from_string(first), onnx.load_from_string(second)
    opset = max(opset_of(front_model), opset_of(prefix))
    front_model, prefix = convert_opset(front_model, opset), convert_opset(prefix, opset)
    front_model.ir_version = prefix.ir_version = graphs.IR_VERSION
    prefix = onnx.compose.add_prefix(prefix, "prefix.", rename_outputs=False)
    merged = onnx.compose.merge_models(
        front_model, prefix, io_map=[("cut", "prefix.window")], inputs=["window"], outputs=["features"]
    )
    del merged.opset_import[:]
    merged.opset_import.append(helper.make_opsetid("", opset))
    return graphs.finished(merged)
