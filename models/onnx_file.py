"""An ONNX file read and brought into one form: bounded, float32, one input, opset 18 to 21.

What comes out has no local functions, no Constant nodes (they are initialisers) and inferred shapes. The
tensors' names stay those of the file, so that a user can name them. Which part of the graph is kept, and what
its operators mean, is decided elsewhere.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper

from models.errors import ExportError, ModelError

MAX_BYTES = 512 * 1024 * 1024
"""Of a file and its external weights together; a package cannot hold more either."""
MAX_NODES = 20_000
MAX_ELEMENTS = 256_000_000
"""Numbers in one tensor of the graph, as far as its shape is known before it runs."""
OPSETS = range(11, 24)
"""Accepted in a file."""
LOWEST, HIGHEST = 18, 21
"""Kept as they are: onnxruntime from 1.18 on runs them. Others are converted."""
STANDARD = ("", "ai.onnx")
HALF = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A graph as it was written, and the same graph in the one form that the rest of the room reads."""

    original: onnx.ModelProto
    """Functions expanded, nothing else changed: the reference that an import is compared with."""
    model: onnx.ModelProto
    """Opset 18 to 21, constants as initialisers, shapes inferred."""
    input: str
    """Name of the one input."""
    input_shape: tuple[int | None, ...]
    """[batch, ...]; None where the file leaves a size open."""

    @property
    def batch(self) -> int | None:
        """The batch size that the file fixes; None if it is open."""
        return self.input_shape[0]

    @property
    def opset(self) -> int:
        """Operator set of `model`."""
        return opset_of(self.model)


def read(file: Path) -> OnnxFile:
    """Read a backbone.

    Args:
        file: an ONNX file; external weights may lie beside it.

    Raises:
        ModelError: it cannot be read, or is too large.
        ExportError: it is no valid graph, or of a kind that is not supported.
    """
    original = _load(file)
    _check_domains(original)
    # A hostile or broken file makes the checker, the inliner and the converter raise all kinds.
    try:
        if original.functions:
            original = onnx.inliner.inline_local_functions(original)
        onnx.checker.check_model(original)
    except Exception as error:
        raise ExportError(f"{file}: not a valid ONNX graph: {_first_line(error)}") from error
    _check_functions_are_gone(original)
    _check_types(original)
    model = _converted(original)
    _constants_as_initialisers(model)
    _name_nodes(model)
    input_name, shape = _input(model)
    model = infer_shapes(model)
    return OnnxFile(original, model, input_name, shape)


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with what can be known of its tensors' shapes.

    Raises:
        ExportError: the operators do not fit together, or a tensor would be too large.
    """
    bare = copy.deepcopy(model)
    del bare.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except Exception as error:
        raise ExportError(
            f"the shapes of the graph cannot be inferred: {_first_line(error)}",
            "export the network again, with a newer exporter",
        ) from error
    for value in [*inferred.graph.value_info, *inferred.graph.output]:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if math.prod(max(dim, 1) for dim in dims) > MAX_ELEMENTS:
            raise ExportError(
                f"tensor {value.name!r}: {dims} is too large, expected {MAX_ELEMENTS:,} numbers"
            )
    return inferred


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operator set that a model is written in."""
    return max((entry.version for entry in model.opset_import if entry.domain in STANDARD), default=0)


def convert_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Rewrite a model in another version of the standard operator set.

    Raises:
        ExportError: an operator has no counterpart there.
    """
    if opset_of(model) == opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # the converter aborts in many ways
        raise ExportError(
            f"opset {opset_of(model)} cannot be converted to {opset}: {_first_line(error)}",
            f"export the file again with opset {LOWEST} to {HIGHEST}",
        ) from error


def _load(file: Path) -> onnx.ModelProto:
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise ModelError(f"{file}: expected at most {MAX_BYTES:,} bytes, got {size:,}")
        model = onnx.load_model_from_string(file.read_bytes())
    except OSError as error:
        raise ModelError(f"{file}: not readable: {error.strerror}") from error
    except (DecodeError, ValueError) as error:
        raise ExportError(f"{file}: not an ONNX file", "expected what torch.onnx.export writes") from error
    if not model.graph.node:
        raise ExportError(f"{file}: the graph has no operators", "expected what torch.onnx.export writes")
    if sum(1 for _ in _nodes(model.graph)) > MAX_NODES:
        raise ExportError(f"{file}: expected at most {MAX_NODES:,} operators")
    _load_weights(model, file, size)
    return model


def _load_weights(model: onnx.ModelProto, file: Path, size: int) -> None:
    """Read weights that lie in files beside the graph; nowhere else."""
    places = set()
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
            if not place or Path(place).name != place or "\\" in place or place in (".", ".."):
                raise ExportError(
                    f"{file}: weights {tensor.name!r}: expected a file beside it, got {place!r}"
                )
            places.add(place)
    try:
        size += sum((file.parent / place).stat().st_size for place in places)
        if size > MAX_BYTES:
            raise ModelError(f"{file}: expected at most {MAX_BYTES:,} bytes with its weights, got {size:,}")
        if places:
            onnx.load_external_data_for_model(model, str(file.parent))
    except OSError as error:
        raise ModelError(
            f"{file}: its weights are not readable: {error.filename}: {error.strerror}",
            "keep the files that were exported together in one folder",
        ) from error
    except (ValueError, onnx.checker.ValidationError) as error:
        raise ExportError(f"{file}: its weights are not readable: {_first_line(error)}") from error


def _nodes(graph: onnx.GraphProto, depth: int = 0) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs among them."""
    if depth > 8:
        raise ExportError("subgraphs are nested more than 8 deep")
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _nodes(inner, depth + 1)


def _check_domains(model: onnx.ModelProto) -> None:
    opset = opset_of(model)
    if opset not in OPSETS:
        raise ExportError(
            f"expected opset {OPSETS[0]} to {OPSETS[-1]}, got {opset}",
            f"export the file again with opset {LOWEST} to {HIGHEST}",
        )
    known = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model.graph):
        if node.domain not in STANDARD and (node.domain, node.op_type) not in known:
            raise ExportError(
                f"operator {node.domain}.{node.op_type} ({described(node)}) is not a standard one",
                "export the network with standard operators only: no optimised or quantised file",
            )


def _check_functions_are_gone(model: onnx.ModelProto) -> None:
    if model.functions or any(node.domain not in STANDARD for node in _nodes(model.graph)):
        raise ExportError("a local function of the file could not be expanded")
    if sum(1 for _ in _nodes(model.graph)) > MAX_NODES:
        raise ExportError(f"expected at most {MAX_NODES:,} operators after expanding functions")


def _check_types(model: onnx.ModelProto) -> None:
    graph = model.graph
    found = [(value.name, value.type.tensor_type.elem_type) for value in [*graph.input, *graph.value_info]]
    found += [(tensor.name, tensor.data_type) for tensor in graph.initializer]
    for name, kind in found:
        if kind in HALF:
            raise ExportError(
                f"tensor {name!r} is {HALF[kind]}, expected float32 throughout",
                "export the network in float32 (module.float())",
            )


def _converted(original: onnx.ModelProto) -> onnx.ModelProto:
    opset = opset_of(original)
    model = copy.deepcopy(original)
    for entry in model.opset_import:
        entry.domain = "" if entry.domain in STANDARD else entry.domain
    if opset < LOWEST or opset > HIGHEST:
        del model.graph.value_info[:]
        model = convert_opset(model, LOWEST if opset < LOWEST else HIGHEST)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", min(max(opset, LOWEST), HIGHEST)))
    return model


def _constants_as_initialisers(model: onnx.ModelProto) -> None:
    kept = []
    for node in model.graph.node:
        value = constant_of(node) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
        else:
            model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)


def constant_of(node: onnx.NodeProto) -> np.ndarray | None:
    """Value of a Constant node; None where it is a string or sparse."""
    (attribute,) = node.attribute
    value = helper.get_attribute_value(attribute)
    match attribute.name:
        case "value":
            array: np.ndarray = numpy_helper.to_array(value)
            return array
        case "value_float" | "value_floats":
            return np.array(value, np.float32)
        case "value_int" | "value_ints":
            return np.array(value, np.int64)
    return None


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give nodes without a name that of the tensor they write, which is unique."""
    for node in model.graph.node:
        node.name = node.name or next((name for name in node.output if name), node.op_type)


def _input(model: onnx.ModelProto) -> tuple[str, tuple[int | None, ...]]:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise ExportError(f"expected one input, got {[value.name for value in inputs]}")
    (value,) = inputs
    kind = value.type.tensor_type
    if kind.elem_type != TensorProto.FLOAT or len(kind.shape.dim) < 2:
        raise ExportError(
            f"input {value.name!r}: expected float32 [batch, ...], got "
            f"{TensorProto.DataType.Name(kind.elem_type)} with {len(kind.shape.dim)} dimensions"
        )
    # Weights that are inputs, too, could be overridden by a caller; here they are constants.
    del model.graph.input[:]
    model.graph.input.append(value)
    return value.name, tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim)


def described(node: onnx.NodeProto) -> str:
    """Name a node for a message."""
    return f"node {node.name!r}" if node.name else f"the node that writes {list(node.output)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
