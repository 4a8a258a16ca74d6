"""An ONNX graph cut at one tensor: a front that stays ONNX, and what the part behind needs to be imported.

The front takes any batch. A file that was exported for a fixed batch is opened first: its Reshape operators
get a free leading size; whether that was right, comparing with the original file shows (adapt.py).

What the part behind reads from elsewhere never depends on the window's values, so onnxruntime computes it
here, at several batch sizes: constants, sizes that grow with the batch, and rows repeated for each sample.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models import graphs
from models.errors import ExportError
from models.onnx_file import OnnxFile, infer_shapes
from models.onnx_graph import SHAPE_READERS, Graph, cut_points, reads, unknown_tensor
from models.onnx_layers import Node
from models.onnx_operators import check_operator

PROBED = (2, 3, 5)
"""Batch sizes at which values are computed; three of them show whether sizes grow evenly."""
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Known:
    """A value behind the cut that does not depend on the window, for any batch size n."""

    base: Array
    slope: Array | None = None
    """Of integers that grow with the batch: base + slope * n."""
    repeated: bool = False
    """`base` is one row that stands there n times."""

    def at(self, batch: int) -> Array:
        """Return the value at a batch size."""
        if self.repeated:
            return np.repeat(self.base, batch, 0)
        return self.base if self.slope is None else self.base + self.slope * batch


@dataclass(frozen=True, eq=False)
class Tail:
    """The part of a graph from the cut to a later tensor."""

    graph: Graph
    start: str
    """The cut: a float32 tensor with one batch dimension."""
    stop: str
    """The tensor that it ends with."""
    nodes: tuple[onnx.NodeProto, ...]
    known: dict[str, Known]
    """Everything else that the nodes read."""
    batch_dimension: int
    """Where the cut has its batch; the front moves it to dimension 0."""


def opened(file: OnnxFile, shape: Sequence[int]) -> OnnxFile:
    """Return the file for any batch, and for windows of one shape.

    Args:
        file: as read.
        shape: of one window as the graph takes it, without the batch.

    Raises:
        ExportError: the graph does not take such windows.
    """
    wanted = file.input_shape[1:]
    if len(wanted) != len(shape) or any(a not in (None, b) for a, b in zip(wanted, shape, strict=False)):
        raise ExportError(
            f"input {file.input!r} takes {_shown(wanted)} per window, the schema gives {list(shape)}",
            "correct the channels and the window length of the schema",
        )
    model = copy.deepcopy(file.model)
    _set_shape(model.graph.input[0], [file.batch, *shape])
    if file.batch is not None:
        # Shapes that the file itself declares would hold the batch fast.
        model = infer_shapes(model)
        _free_reshapes(model, file)
        _set_shape(model.graph.input[0], [None, *shape])
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return OnnxFile(file.original, infer_shapes(model), file.input, (None, *shape))


def cut(graph: Graph, start: str, stop: str) -> Tail:
    """Take the part between two tensors, and compute what else it reads.

    Args:
        graph: of an opened file.
        start: name of the tensor to cut at.
        stop: name of that tensor, or of one behind it, that all paths run through.

    Raises:
        ExportError: the graph cannot be cut there; the message says why.
    """
    points = [point.name for point in cut_points(graph)]
    for name in (start, stop):
        if name not in points:
            raise _not_a_cut(graph, name, points)
    if points.index(start) > points.index(stop):
        raise ExportError(
            f"tensor {start!r} stands behind {stop!r}, where the part to import ends",
            "cut there or further in front",
        )
    nodes = _between(graph, start, stop)
    for node in nodes:
        check_operator(Node(node, {}))
    beside = {name for node in nodes for name in reads(node) if name not in graph.dependent}
    known = {
        name: Known(numpy_helper.to_array(graph.weights[name])) for name in beside if name in graph.weights
    }
    wanted = sorted(beside - set(known))
    probes = [_probe(graph, [start, *wanted], batch) for batch in PROBED]
    values: list[list[Array]] = [list(found) for found in zip(*probes, strict=True)]
    dimension = _batch_dimension(start, values[0])
    known |= {name: _known(name, found) for name, found in zip(wanted, values[1:], strict=True)}
    return Tail(graph, start, stop, tuple(nodes), known, dimension)


def front(graph: Graph, stop: str) -> onnx.ModelProto:
    """Return the part from the window to a tensor as a model of its own, for any batch."""
    return _model(graph, [stop])


def _probe(graph: Graph, names: Sequence[str], batch: int) -> list[Array]:
    """Run the graph on random windows and return some of its tensors."""
    shape = [batch if size is None else size for size in graph.file.input_shape]
    window = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    try:
        session = graphs.load(_model(graph, names).SerializeToString())
        return list(graphs.run(session, **{graph.file.input: window}))
    except Exception as error:  # onnxruntime's own errors share no narrower root
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"the graph does not run on {batch} windows: {reason}",
            "export the file again with an open batch dimension (torch.onnx.export: dynamic_shapes)",
        ) from error


def _model(graph: Graph, names: Sequence[str]) -> onnx.ModelProto:
    """Build a model of all that some tensors need."""
    pending, needed = list(names), set()
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            if name in graph.producers:
                pending.extend(reads(graph.producers[name]))
    nodes = [node for node in graph.nodes if not needed.isdisjoint(node.output)]
    outputs = []
    for name in names:
        output = f"{name}.kept"
        # An output may not be an input, and its type must be declared; a copy of known type needs neither.
        nodes.append(helper.make_node("Identity", [name], [output]))
        outputs.append(onnx.ValueInfoProto(name=output))
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            list(graph.file.model.graph.input),
            outputs,
            [tensor for name, tensor in graph.weights.items() if name in needed],
        ),
        opset_imports=[helper.make_opsetid("", graph.file.opset)],
        ir_version=graphs.IR_VERSION,
    )
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _between(graph: Graph, start: str, stop: str) -> list[onnx.NodeProto]:
    pending, needed = [stop], set()
    while pending:
        name = pending.pop()
        if name != start and name in graph.dependent and name not in needed:
            needed.add(name)
            pending.extend(reads(graph.producers[name]))
    return [
        node
        for node in graph.nodes
        if not needed.isdisjoint(node.output) and node.op_type not in SHAPE_READERS
    ]


def _batch_dimension(name: str, found: Sequence[Array]) -> int:
    shapes = [value.shape for value in found]
    # A size that merely grows with the batch (heads and samples in one) does not keep samples apart.
    places = [i for i, sizes in enumerate(zip(*shapes, strict=True)) if sizes == PROBED]
    still = [i for i, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) == 1]
    if found[0].dtype != np.float32 or len(places) != 1 or len(still) != found[0].ndim - 1:
        raise ExportError(
            f"tensor {name!r} is {found[0].dtype} {list(shapes[0])} for {PROBED[0]} windows, expected "
            "float32 with one dimension that is the batch",
            "cut at another tensor (--list)",
        )
    return places[0]


def _known(name: str, found: Sequence[Array]) -> Known:
    """Describe a value for any batch from three of them."""
    first, second, third = found
    if first.shape == second.shape == third.shape:
        if all(np.array_equal(first, other, equal_nan=True) for other in (second, third)):
            return Known(first)
        if first.dtype.kind == "i":
            slope = second - first
            base = first - slope * PROBED[0]
            if np.array_equal(third, base + slope * PROBED[2]):
                return Known(base, slope)
    elif first.ndim and tuple(value.shape[0] for value in found) == PROBED:
        row = first[:1]
        if all(value.shape[1:] == row.shape[1:] and (value == row).all() for value in found):
            return Known(row, repeated=True)
    raise ExportError(
        f"tensor {name!r} depends on the batch size in a way that is not supported", "cut behind it (--at)"
    )


def _not_a_cut(graph: Graph, name: str, points: Sequence[str]) -> ExportError:
    if name not in graph.dependent:
        if name in graph.weights or name in graph.producers:
            return ExportError(f"tensor {name!r} does not depend on the window", "cut elsewhere (--list)")
        return unknown_tensor(name, sorted(graph.dependent))
    order = [name for name in _in_order(graph) if name in points or name == points[0]]
    place = _in_order(graph).index(name)
    later = [point for point in order if _in_order(graph).index(point) > place]
    return ExportError(
        f"tensor {name!r} is not the only path from the window to the logits (a branch runs beside it)",
        f"the next tensor that is: {later[0]!r}" if later else "cut elsewhere (--list)",
    )


def _in_order(graph: Graph) -> list[str]:
    return [graph.file.input, *(name for node in graph.nodes for name in node.output if name)]


def _free_reshapes(model: onnx.ModelProto, file: OnnxFile) -> None:
    """Make the leading size of constant target shapes follow the batch, where it is a multiple of it."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*model.graph.value_info, *model.graph.output]
    }
    dependent = {file.input}
    for node in model.graph.node:
        if dependent.isdisjoint(reads(node)) or node.op_type in SHAPE_READERS:
            continue
        dependent.update(node.output)
        if node.op_type != "Reshape" or node.input[1] not in weights or node.input[0] not in dependent:
            continue
        shape = shapes.get(node.output[0], [])
        if shape and all(size > 0 for size in shape) and shape[0] % (file.batch or 1) == 0:
            name = f"{node.output[0]}.shape"
            target = np.array([-1, *shape[1:]], np.int64)
            model.graph.initializer.append(numpy_helper.from_array(target, name))
            node.input[1] = name


def _set_shape(value: onnx.ValueInfoProto, shape: Sequence[int | None]) -> None:
    replaced = helper.make_tensor_value_info(
        value.name, TensorProto.FLOAT, ["batch" if size is None else size for size in shape]
    )
    value.CopyFrom(replaced)


def _shown(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"
