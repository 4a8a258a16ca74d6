"""ONNX graphs as small, portable, repeatable bytes.

Opset 18 and IR version 10, so that onnxruntime from 1.18 on loads them, static shapes, standard operators
only, and nothing about the machine that exported them.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.errors import ExportError

OPSET = 18
IR_VERSION = 10


def to_onnx(
    module: nn.Module, inputs: tuple[Tensor, ...], input_names: Sequence[str], output_names: Sequence[str]
) -> bytes:
    """Convert a module of plain operators to a checked ONNX graph.

    Args:
        module: static control flow only; its shapes become those of `inputs`.
        inputs: example inputs.
        input_names: names of the graph's inputs, in order.
        output_names: names of its outputs, in order.

    Raises:
        ExportError: an operator has no counterpart in ONNX.
    """
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(module, inputs, strict=False).run_decompositions()
            exported = torch.onnx.export(
                program,
                input_names=list(input_names),
                output_names=list(output_names),
                opset_version=OPSET,
                verbose=False,
                dynamo=True,
            )
    except Exception as error:  # the exporter raises all kinds, and long texts
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ExportError(
            f"the exporter cannot convert the graph of {', '.join(output_names)}: {reason}",
            "replace the operator that it names, or move the adapters behind it",
        ) from error
    if exported is None:
        raise ExportError(f"the exporter returned no graph for {', '.join(output_names)}")
    return finished(exported.model_proto)


def finished(model: onnx.ModelProto) -> bytes:
    """Strip a model in place, check it and return its bytes."""
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def load(data: bytes) -> onnxruntime.InferenceSession:
    """Open a graph in onnxruntime on the CPU, quietly and with one thread (small graphs, shared machines)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions, and not on the screen as well
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, **inputs: NDArray[np.generic]) -> list[NDArray[np.float32]]:
    """Run a graph and return its outputs in order."""
    outputs: list[NDArray[np.float32]] = session.run(None, inputs)
    return outputs


def _strip(model: onnx.ModelProto) -> None:
    """Drop what a runtime does not read: traces back to source files, shapes that it infers itself."""
    model.ir_version = min(model.ir_version, IR_VERSION)
    model.producer_name, model.producer_version, model.doc_string = "graftwork", "", ""
    del model.metadata_props[:]
    for function in model.functions:
        del function.metadata_props[:]
    graph = model.graph
    graph.doc_string, graph.name = "", "graph"
    del graph.metadata_props[:]
    del graph.value_info[:]
    for index, node in enumerate(graph.node):
        node.doc_string = ""
        # onnxruntime before 1.20 derives names from these, and two equal ones are an error.
        node.name = f"node{index}"
        del node.metadata_props[:]
    for value in [*graph.input, *graph.output, *graph.initializer]:
        value.doc_string = ""
        del value.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and third-party deprecations off the user's screen."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
