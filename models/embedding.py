"""The frozen embedding that a discriminant head is computed on, as one ONNX graph: features -> embedding.

    features -> [the network behind them, as the package brings it, up to one tensor]
             -> arcsinh of twice the value: far values are pulled in, as with sensors that drift
             -> less its mean, by its scatter within classes: what the source devices showed
             -> randomised Hadamard transform (Ailon and Chazelle 2009), to `dimension` at most

The last step makes all dimensions alike, so that an update's one quantisation step suits them all, and it
bounds the size of a head, whatever the network. No torch here.
"""

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from models import graphs
from models.errors import ModelError

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]

FEATURES, FIRST, LAST = "features", "first", "last"
"""Where in the network: what the prefix gives, the first activation behind it, or what the head takes in."""
MOST_FEATURES = 4096
"""Wider features would make the transform too large for a device."""
SCATTER_FLOOR = 0.1
"""Of the root mean square over all dimensions: one that hardly scattered must not be blown up."""
_GAIN = 2.0


@dataclass(frozen=True)
class Raw:
    """The part of an embedding that comes out of the network."""

    nodes: tuple[onnx.NodeProto, ...]
    initializers: tuple[onnx.TensorProto, ...]
    output: str
    batch: int
    feature_size: int

    def run(self, features: Floats) -> Doubles:
        """Compute it, float64 [n, size], of features, float32 [n, feature_size]."""
        if not self.nodes:
            return features.astype(np.float64)
        session = graphs.load(self._graph())
        return run_in_batches(session, features, self.batch).astype(np.float64)

    def _graph(self) -> bytes:
        return _model(self.nodes, self.initializers, self.output, self.batch, self.feature_size)


def raw(predict: bytes, adapter: Floats, where: str) -> Raw:
    """Take the part of a network that lies between the features and an embedding.

    Args:
        predict: predict.onnx of a package.
        adapter: the initial adapter, float32 [parameters of the graphs].
        where: FEATURES, FIRST or LAST.

    Raises:
        ModelError: the network has no such place, or its features are too many.
    """
    model = onnx.load_from_string(predict)
    shape = next(value for value in model.graph.input if value.name == "features").type.tensor_type.shape
    batch, size = (dimension.dim_value for dimension in shape.dim)
    if where == FEATURES and size > MOST_FEATURES:
        where = LAST
    if where == FEATURES:
        return Raw((), (), "features", batch, size)
    output = _place(model, where)
    nodes = _ancestors(model.graph, output)
    needed = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    constants.append(numpy_helper.from_array(adapter, "adapter"))
    return Raw(tuple(nodes), tuple(constants), output, batch, size)


def finish(found: Raw, embedded: Doubles, groups: NDArray[np.int64], dimension: int) -> bytes:
    """The whole graph, features -> embedding, float32 [batch, dimension or fewer].

    Args:
        found: the part out of the network.
        embedded: what that gives for labelled windows, float64 [n, size].
        groups: windows of one device and class have one number, int64 [n].
        dimension: of the embedding, at most.
    """
    pulled = np.arcsinh(_GAIN * embedded)
    scatter = np.sqrt(np.mean(deviations(pulled, groups) ** 2, axis=0))
    scatter = np.maximum(scatter, max(SCATTER_FLOOR * float(np.sqrt(np.mean(scatter**2))), 1e-6))
    matrix = hadamard(embedded.shape[1], dimension) / scatter[:, None]
    offset = -pulled.mean(axis=0) @ matrix
    tail = (
        helper.make_node("Mul", [found.output, "embedding_gain"], ["embedding_wide"]),
        helper.make_node("Asinh", ["embedding_wide"], ["embedding_pulled"]),
        helper.make_node("Gemm", ["embedding_pulled", "embedding_matrix", "embedding_offset"], ["embedding"]),
    )
    constants = (
        numpy_helper.from_array(np.float32(_GAIN), "embedding_gain"),
        numpy_helper.from_array(matrix.astype(np.float32), "embedding_matrix"),
        numpy_helper.from_array(offset.astype(np.float32), "embedding_offset"),
    )
    return _model(
        (*found.nodes, *tail), (*found.initializers, *constants), "embedding", found.batch, found.feature_size
    )


def hadamard(size: int, dimension: int) -> Doubles:
    """A randomised Hadamard transform, float64 [size, dimension or `size` if that is less]; always the same.

    Distances stay as they are where nothing is left out, and nearly so where much is.
    """
    padded = 1 << (size - 1).bit_length()
    matrix = np.ones((1, 1))
    while len(matrix) < padded:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    random = np.random.Generator(np.random.PCG64(size))
    signs = np.where(random.integers(0, 2, padded) == 0, -1.0, 1.0)
    columns = np.sort(random.permutation(padded)[: min(size, dimension)])
    return np.asarray((signs[:, None] * matrix)[:size, columns] / np.sqrt(len(columns)))


def deviations(values: Doubles, groups: NDArray[np.int64]) -> Doubles:
    """Values less the mean of their group, float64 [n, size], widened by what taking the mean costs."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, inverse, values)
    widened = np.sqrt(counts / np.maximum(counts - 1, 1))
    return np.asarray((values - (sums / counts[:, None])[inverse]) * widened[inverse][:, None])


def run_in_batches(session: onnxruntime.InferenceSession, features: Floats, batch: int) -> Floats:
    """Run a graph of a fixed batch on any number of rows, the last batch padded."""
    parts = []
    for start in range(0, len(features), batch):
        rows = features[start : start + batch]
        padded = np.zeros((batch, features.shape[1]), np.float32)
        padded[: len(rows)] = rows
        [found] = graphs.run(session, features=padded)
        parts.append(found[: len(rows)])
    return np.concatenate(parts)


def _place(model: onnx.ModelProto, where: str) -> str:
    graph = model.graph
    if where == FIRST:
        inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
        widths = {value.name: value.type.tensor_type.shape.dim[-1].dim_value for value in inferred}
        places = [str(node.output[0]) for node in graph.node if node.op_type == "Relu"]
        if places:
            # An adapter has activations of its own, which are narrower; of equal ones the first is meant.
            return max(places, key=lambda name: widths.get(name, 0))
    else:
        last = next((node for node in graph.node if "logits" in node.output), None)
        if last is not None and last.op_type in ("Gemm", "MatMul"):
            return str(last.input[0])
    raise ModelError(
        f"embedding: the network has no place {where!r} to take it from", "leave --discriminant out"
    )


def _ancestors(graph: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    """The nodes that a tensor depends on, in the graph's order."""
    needed, chosen = {output}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            chosen.append(node)
    return chosen[::-1]


def _model(
    nodes: tuple[onnx.NodeProto, ...],
    constants: tuple[onnx.TensorProto, ...],
    output: str,
    batch: int,
    feature_size: int,
) -> bytes:
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, size])
        for name, size in (("features", feature_size), (output, None))
    ]
    graph = helper.make_graph(list(nodes), "graph", values[:1], values[1:], list(constants))
    opset = [helper.make_opsetid("", graphs.OPSET)]
    return graphs.finished(helper.make_model(graph, opset_imports=opset, ir_version=graphs.IR_VERSION))
