"""Which tensors of an ONNX graph depend on the window, where it can be cut, and where its classifier is.

A graph can be cut at a tensor if every path from the window to the logits runs through it: these are the
dominators of the logits (Lengauer and Tarjan, 1979; here by one pass, as the graph has no cycles). Reading a
tensor's shape is no path: shapes are known before the graph runs.
"""

import difflib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx

from models.errors import ExportError
from models.onnx_file import OnnxFile

SHAPE_READERS = ("Shape", "Size")
AFTER_LOGITS = ("Softmax", "LogSoftmax", "Identity", "Dropout")
"""Operators behind the logits that neither a loss nor a decision needs."""
RESHAPES = ("Identity", "Dropout", "Flatten", "Squeeze", "Reshape")


@dataclass(frozen=True, eq=False)
class Graph:
    """A file's graph with its connections, up to the one output that counts."""

    file: OnnxFile
    output: str
    """The logits: what stands before a last softmax."""
    nodes: tuple[onnx.NodeProto, ...]
    """Those that the output needs, in order."""
    weights: dict[str, onnx.TensorProto]
    producers: dict[str, onnx.NodeProto]
    consumers: dict[str, tuple[onnx.NodeProto, ...]]
    dependent: frozenset[str]
    """Tensors whose values depend on the window, the window among them."""
    shapes: dict[str, tuple[int | None, ...]]


@dataclass(frozen=True)
class Classifier:
    """The last linear layer of a graph."""

    features: str
    """The tensor that it reads."""
    output: str
    """The tensor that it writes: the logits."""
    classes: int


@dataclass(frozen=True)
class CutPoint:
    """A tensor that a graph can be cut at."""

    name: str
    shape: tuple[int | None, ...]
    operator: str
    """What writes it."""
    before: int
    """Weights in front of it."""
    behind: int
    """Weights behind it."""


def connect(file: OnnxFile, output: str | None = None) -> Graph:
    """Find out what depends on what.

    Args:
        file: the graph.
        output: name of the tensor that holds the logits; needed where the graph has several outputs.

    Raises:
        ExportError: there is no such output, or it does not depend on the window.
    """
    graph = file.model.graph
    names = [value.name for value in graph.output]
    if output is None and len(names) != 1:
        raise ExportError(f"the graph has the outputs {names}", "name the one with the logits with --logits")
    written = {name: node for node in graph.node for name in node.output if name}
    wanted = names[0] if output is None else output
    if wanted not in written:
        raise unknown_tensor(wanted, list(written))
    while written[wanted].op_type in AFTER_LOGITS and written[wanted].input[0] in written:
        wanted = written[wanted].input[0]
    nodes = _needed(graph.node, written, wanted)
    dependent = {file.input}
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in nodes:
        for name in reads(node):
            consumers[name].append(node)
        if node.op_type not in SHAPE_READERS and not dependent.isdisjoint(reads(node)):
            dependent.update(name for name in node.output if name)
    if wanted not in dependent:
        raise ExportError(f"output {wanted!r} does not depend on the window")
    return Graph(
        file,
        wanted,
        tuple(nodes),
        {tensor.name: tensor for tensor in graph.initializer},
        {name: node for node in nodes for name in node.output if name},
        {name: tuple(readers) for name, readers in consumers.items()},
        frozenset(dependent),
        {value.name: _shape(value) for value in [*graph.value_info, *graph.input, *graph.output]},
    )


def reads(node: onnx.NodeProto) -> list[str]:
    """Names of all tensors that a node reads, those that only its subgraphs read among them."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for inner in [attribute.g, *attribute.graphs]:
            names += [name for part in inner.node for name in reads(part)]
    return names


def unknown_tensor(name: str, known: Sequence[str]) -> ExportError:
    """Say that there is no such tensor, and what it may have been."""
    near = difflib.get_close_matches(name, known, 5, 0.4)
    return ExportError(
        f"the graph has no tensor {name!r}",
        f"near: {', '.join(near)}" if near else "see graftwork-models adapt FILE --list",
    )


def cut_points(graph: Graph) -> list[CutPoint]:
    """Every tensor between window and logits through which all paths run, the window first."""
    above: dict[str, str | None] = {graph.file.input: None}
    depth = {graph.file.input: 0}

    def meet(one: str, other: str) -> str:
        while one != other:
            if depth[one] < depth[other]:
                one, other = other, one
            one = above[one] or graph.file.input
        return one

    counted: set[str] = set()
    weights = {graph.file.input: 0}
    total = 0
    for node in graph.nodes:
        sources = [name for name in reads(node) if name in graph.dependent]
        if not sources or node.op_type in SHAPE_READERS:
            continue
        total += _weights_of(graph, node, counted)
        nearest = sources[0]
        for source in sources[1:]:
            nearest = meet(nearest, source)
        for name in node.output:
            above[name], depth[name], weights[name] = nearest, depth[nearest] + 1, total
    path: list[str] = []
    step: str | None = graph.output
    while step is not None:
        path.append(step)
        step = above[step]
    return [
        CutPoint(
            name,
            graph.shapes.get(name, ()),
            graph.producers[name].op_type if name in graph.producers else "input",
            weights[name],
            total - weights[name],
        )
        for name in reversed(path)
    ]


def classifier(graph: Graph) -> Classifier | None:
    """Find the Gemm, or MatMul and Add, that writes the logits; None where something else does."""
    name = graph.output
    while name in graph.producers and graph.producers[name].op_type in RESHAPES:
        name = graph.producers[name].input[0]
    node = graph.producers.get(name)
    if node is not None and node.op_type == "Add":
        sources = [source for source in node.input if source in graph.dependent]
        node = graph.producers.get(sources[0]) if len(sources) == 1 else None
    if node is None or node.op_type not in ("Gemm", "MatMul") or node.input[0] not in graph.dependent:
        return None
    weight = graph.weights.get(node.input[1])
    if weight is None or len(weight.dims) != 2:
        return None
    transposed = any(part.name == "transB" and part.i for part in node.attribute)
    return Classifier(node.input[0], name, int(weight.dims[0 if transposed else 1]))


def _needed(
    nodes: Sequence[onnx.NodeProto], written: dict[str, onnx.NodeProto], wanted: str
) -> list[onnx.NodeProto]:
    pending, found = [wanted], set()
    while pending:
        node = written.get(pending.pop())
        if node is not None and id(node) not in found:
            found.add(id(node))
            pending.extend(reads(node))
    return [node for node in nodes if id(node) in found]


def _weights_of(graph: Graph, node: onnx.NodeProto, counted: set[str]) -> int:
    """Weights that this node is the first to read, directly or through constant operators."""
    return sum(math.prod(graph.weights[name].dims) for name in _constants(graph, node, counted))


def _constants(graph: Graph, node: onnx.NodeProto, counted: set[str]) -> Iterator[str]:
    pending = [name for name in reads(node) if name not in graph.dependent]
    while pending:
        name = pending.pop()
        if name in counted:
            continue
        counted.add(name)
        if name in graph.weights:
            if graph.weights[name].data_type == onnx.TensorProto.FLOAT:
                yield name
        elif name in graph.producers and graph.producers[name].op_type not in SHAPE_READERS:
            pending.extend(reads(graph.producers[name]))


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(dim.dim_value or None for dim in value.type.tensor_type.shape.dim)
