"""Whether a package's members for other engines hold: run where their runtime is installed, else looked at.

What runs is compared with the ONNX graphs of the same package on one random batch.
"""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models import graphs
from models.errors import ModelError
from models.parity import relative_error
from protocol.package import (
    LITERT,
    ONNXRUNTIME,
    ONNXRUNTIME_TRAINING,
    PREDICT,
    PREDICT_TFLITE,
    PREFIX,
    PREFIX_TFLITE,
    STEP,
    STEP_TFLITE,
    TRAINING_CHECKPOINT,
    TRAINING_MODEL,
    ModelPackage,
)
from runtime import litert, onnxruntime_training

LIMIT = 1e-4
"""Largest relative L2 difference between two engines: each is within 1e-5 of torch at export."""
IDENTIFIERS = {
    TRAINING_CHECKPOINT: b"ODTC",
    PREFIX_TFLITE: b"TFL3",
    STEP_TFLITE: b"TFL3",
    PREDICT_TFLITE: b"TFL3",
}
"""FlatBuffers carry one behind their first four bytes."""

Arrays = dict[str, NDArray[np.generic]]


def check_engines(package: ModelPackage) -> dict[str, str]:
    """Check the members for other engines than onnxruntime.

    Args:
        package: its hashes and ONNX graphs are good (packages.verify).

    Returns:
        For each engine that could not be run: why.

    Raises:
        ModelError: a member is malformed, or computes something else than the ONNX graphs.
    """
    for member, identifier in IDENTIFIERS.items():
        if member in package.members and package.members[member][4:8] != identifier:
            raise ModelError(f"{member}: expected a file with the identifier {identifier.decode()}")
    checks = {ONNXRUNTIME_TRAINING: _onnxruntime_training, LITERT: _litert}
    not_run = {}
    for engine in package.manifest.engines:
        if engine == ONNXRUNTIME:
            continue
        reason = checks[engine](package) if engine in checks else "this version does not know the engine"
        if reason:
            not_run[engine] = reason
    return not_run


def _onnxruntime_training(package: ModelPackage) -> str:
    if not onnxruntime_training.installed():
        return "onnxruntime-training is not installed here"
    inputs, expected = _random_batch(package)
    with tempfile.TemporaryDirectory(prefix="graftwork-") as folder:
        paths = [Path(folder) / name for name in (TRAINING_MODEL, TRAINING_CHECKPOINT)]
        for path in paths:
            path.write_bytes(package.members[path.name])
        try:
            step = onnxruntime_training.TrainingStep(*paths)
            loss, gradient = step.run(*inputs.values())  # type: ignore[arg-type]
        except Exception as error:  # the runtime raises all kinds
            raise ModelError(f"{TRAINING_MODEL}: does not run: {_first_line(error)}") from error
    _compare(TRAINING_MODEL, {"loss": np.asarray(loss, np.float32), "gradient": gradient}, expected)
    return ""


def _litert(package: ModelPackage) -> str:
    if litert.installed() is None:
        return "neither ai-edge-litert nor tflite-runtime is installed here"
    inputs, expected = _random_batch(package)
    rows = {name: inputs[name] for name in ("adapter", "features")}
    shape = (package.manifest.batch, *package.manifest.input_shape)
    runs: dict[str, Arrays] = {
        PREFIX_TFLITE: {"window": np.zeros(shape, np.float32)},
        STEP_TFLITE: inputs,
        PREDICT_TFLITE: rows,
    }
    for member, values in runs.items():
        try:
            found = litert.LiteRTGraph(package.members[member]).run(values)
        except Exception as error:  # the runtime raises all kinds
            raise ModelError(f"{member}: does not run: {_first_line(error)}") from error
        if member == PREFIX_TFLITE:
            # Not compared: prefix.onnx may be quantised where this one is not.
            width = (package.manifest.batch, package.manifest.feature_size)
            if list(found) != ["features"] or found["features"].shape != width:
                raise ModelError(f"{member}: expected the output features {list(width)}")
        else:
            _compare(member, found, expected)
    return ""


def _random_batch(package: ModelPackage) -> tuple[Arrays, dict[str, NDArray[np.float32]]]:
    """Inputs of the training step, in its order, and what the ONNX graphs make of them."""
    manifest, random = package.manifest, np.random.default_rng(0)
    shape = (manifest.batch, *manifest.input_shape)
    prefix, step, predict = (graphs.load(package.members[name]) for name in (PREFIX, STEP, PREDICT))
    (features,) = graphs.run(prefix, window=random.normal(size=shape).astype(np.float32))
    noise = random.normal(0, 0.05, manifest.graph_parameters).astype(np.float32)
    rows: Arrays = {"adapter": package.adapter[: manifest.graph_parameters] + noise, "features": features}
    (logits,) = graphs.run(predict, **rows)
    inputs: Arrays = {
        **rows,
        "labels": random.integers(0, len(manifest.schema.classes), manifest.batch),
        "weights": random.uniform(0.5, 1.5, manifest.batch).astype(np.float32),
    }
    loss, gradient = graphs.run(step, **inputs)
    return inputs, {"loss": loss, "gradient": gradient, "logits": logits}


def _compare(
    member: str, found: dict[str, NDArray[np.float32]], expected: dict[str, NDArray[np.float32]]
) -> None:
    for name, value in found.items():
        if name not in expected or value.shape != expected[name].shape:
            raise ModelError(f"{member}: unexpected output {name} {list(value.shape)}")
        error = relative_error(value, expected[name])
        if not error <= LIMIT:
            raise ModelError(
                f"{member}: expected the {name} of {STEP} and {PREDICT} within {LIMIT:.0e}, got {error:.1e}"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
