"""Artefacts for onnxruntime-training: the loss as a forward graph, which that package differentiates itself.

The flat adapter vector is the graph's one trainable parameter, so on the device one array goes in and one
gradient comes out. The package excludes stock onnxruntime, so it is called in an interpreter of its own.
"""

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import graphs, onnxruntime_training_artifacts
from models.errors import ExportError
from models.onnxruntime_training_artifacts import CASES, CHECKPOINT, LOSS, RESULTS, TRAINING_MODEL
from models.tracing import Cut
from models.training_step import weighted_loss
from runtime.onnxruntime_training import PARAMETER

VARIABLE = "GRAFTWORK_ONNXRUNTIME_TRAINING_PYTHON"
"""Names the interpreter where no option does."""
TIMEOUT_SECONDS = 1800.0


class Loss(nn.Module):
    """`(adapter, features, labels, weights) -> loss`."""

    def __init__(self, cut: Cut, shapes: Sequence[torch.Size]) -> None:
        super().__init__()
        self.tail, self.shapes = cut.tail, list(shapes)

    def forward(self, adapter: Tensor, features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean cross-entropy, float32 []."""
        # One Split, whose gradient is one Concat; slices would add up a whole vector for each of them.
        parts = torch.split(adapter, [math.prod(shape) for shape in self.shapes])
        parameters = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return weighted_loss(self.tail(*parameters, features), labels, weights)


def write_training_artifacts(
    cut: Cut,
    shapes: Sequence[torch.Size],
    adapter: Tensor,
    cases: Mapping[str, NDArray[np.generic]],
    python: Path | None,
) -> tuple[bytes, bytes, list[tuple[float, NDArray[np.float32]]]]:
    """Write the training model and its checkpoint, and run them.

    Args:
        cut: the module in two parts.
        shapes: those of the trainable parameters, in the order of the tail's inputs.
        adapter: the initial one, float32 [parameters].
        cases: batches to run, stacked: adapter [n, parameters], features [n, batch, feature_size], labels
            [n, batch], weights [n, batch].
        python: interpreter with onnxruntime-training and onnx; None: the one that the environment variable
            VARIABLE names, or this one.

    Returns:
        training_model.onnx, training_checkpoint, and loss and gradient of every case.

    Raises:
        ExportError: there is no such interpreter, or the package refuses the graph.
    """
    rows = len(cases["labels"][0])
    loss = graphs.to_onnx(
        Loss(cut, shapes).eval(),
        (
            adapter,
            torch.zeros(rows, cut.feature_size),
            torch.zeros(rows, dtype=torch.int64),
            torch.ones(rows),
        ),
        [PARAMETER, "features", "labels", "weights"],
        ["loss"],
    )
    with tempfile.TemporaryDirectory(prefix="graftwork-") as name:
        folder = Path(name)
        (folder / LOSS).write_bytes(_with_parameter(loss, adapter))
        np.savez(folder / CASES, **cases)  # type: ignore[arg-type]
        _run(python, str(folder))
        with np.load(folder / RESULTS) as results:
            found = [
                (float(results[f"loss{index}"]), results[f"gradient{index}"])
                for index in range(len(cases["labels"]))
            ]
        return (folder / TRAINING_MODEL).read_bytes(), (folder / CHECKPOINT).read_bytes(), found


def _with_parameter(loss: bytes, adapter: Tensor) -> bytes:
    """Turn the input that holds the adapter into a parameter; the exporter would fold one into the graph."""
    model = onnx.load_from_string(loss)
    inputs = [value for value in model.graph.input if value.name != PARAMETER]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.append(onnx.numpy_helper.from_array(adapter.numpy(), PARAMETER))
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def check_installed(python: Path | None) -> None:
    """Refuse to begin without the package; arguments and errors as of `write_training_artifacts`."""
    _run(python)


def _run(python: Path | None, *arguments: str) -> None:
    python = python or Path(os.environ.get(VARIABLE) or sys.executable)
    script = onnxruntime_training_artifacts.__file__
    try:
        done = subprocess.run(  # noqa: S603 - the interpreter that the user named
            [str(python), "-I", script, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExportError(f"{python}: cannot write artefacts for onnxruntime-training: {error}") from error
    if done.returncode == 0:
        return
    reason = (done.stderr.strip() or f"exit status {done.returncode}").rpartition("\n")[2]
    if "ImportError" in reason or "ModuleNotFoundError" in reason:
        raise ExportError(
            f"{python}: onnxruntime-training is not installed there: {reason}",
            "it excludes onnxruntime, so make an environment (Python 3.12 or older, x86-64) with pip install "
            f"onnxruntime-training-cpu==1.19.2 onnx, and name its python with "
            f"--onnxruntime-training-python or ${VARIABLE}",
        )
    raise ExportError(
        f"onnxruntime-training refuses the graph: {reason}",
        "leave out --engine onnxruntime-training, or move the adapters behind the operator that it names",
    )
