"""The frozen prefix in 8-bit integers: static quantisation by onnxruntime, and what it costs.

Weights and activations of convolutions and matrix products become int8, by QuantizeLinear and
DequantizeLinear around them (standard operators, which runtimes fuse). Ranges come from real windows. Window
and features stay float32; so do all other operators, the normalisation of the raw window above all: channels
of different scale would not survive one common step.
"""

import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from models import graphs
from models.calibration import Calibration
from models.errors import ExportError
from models.parity import relative_error

OPERATORS = ("Conv", "Gemm", "MatMul")
REPEATS = 20
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class QuantisedPrefix:
    """An int8 prefix, and what it costs."""

    data: bytes
    metrics: dict[str, float]
    """Kept in the manifest."""


def quantise(prefix: bytes, calibration: Calibration, batch: int) -> QuantisedPrefix:
    """Quantise prefix.onnx.

    Args:
        prefix: "window" -> "features", float32, at a fixed batch.
        calibration: windows to set the ranges.
        batch: rows of the graph's input.

    Raises:
        ExportError: there is nothing to quantise, or onnxruntime cannot.
    """
    model = onnx.load_from_string(prefix)
    if not any(node.op_type in OPERATORS for node in model.graph.node):
        raise ExportError(
            "the prefix has no convolution and no matrix product to quantise", "leave --quantise-prefix out"
        )
    windows = calibration.windows
    if not len(windows):
        raise ExportError("expected windows to calibrate with, got none")
    data = _quantised(prefix, windows, batch)
    before, after = features(prefix, windows, batch), features(data, windows, batch)
    metrics = {
        "prefix_int8_feature_error": relative_error(after, before),
        "prefix_float32_bytes": float(len(prefix)),
        "prefix_int8_bytes": float(len(data)),
        "prefix_calibrated_on_real_windows": float(calibration.real),
    }
    milliseconds = [_milliseconds(each, windows, batch) for each in (data, prefix)]
    calibration.report(
        f"int8 prefix: features {metrics['prefix_int8_feature_error']:.1%} off, {len(data):,} bytes instead "
        f"of {len(prefix):,}, {milliseconds[0]:.2f} ms per {batch} windows on one thread "
        f"here instead of {milliseconds[1]:.2f}"
        + ("" if calibration.real else "; calibrated on random windows: give real ones with --calibrate")
    )
    return QuantisedPrefix(data, metrics)


def features(prefix: bytes, windows: Floats, batch: int) -> Floats:
    """Run a prefix over any number of windows: float32 [n, *input_shape] -> [n, feature_size]."""
    session = graphs.load(prefix)
    rows = [graphs.run(session, window=rows)[0][:count] for rows, count in _batches(windows, batch)]
    return np.concatenate(rows)


def accuracy_cost(
    prefixes: tuple[bytes, bytes], predict: bytes, adapter: Floats, calibration: Calibration, batch: int
) -> dict[str, float]:
    """Accuracy on held-out windows with the float32 and with the int8 prefix; empty without such windows.

    Args:
        prefixes: float32 and int8.
        predict: predict.onnx.
        adapter: the initial one, float32 [parameters].
        calibration: holds the labelled windows.
        batch: rows of the graphs' inputs.
    """
    if calibration.held_out is None or not len(calibration.held_out[1]):
        return {}
    windows, labels = calibration.held_out
    session = graphs.load(predict)
    found = []
    for prefix in prefixes:
        rows = features(prefix, windows, batch)
        logits = [
            graphs.run(session, adapter=adapter, features=part)[0][:count]
            for part, count in _batches(rows, batch)
        ]
        found.append(float((np.concatenate(logits).argmax(1) == labels).mean()))
    calibration.report(f"held-out accuracy {found[1]:.3f} with the int8 prefix instead of {found[0]:.3f}")
    return {"prefix_float32_held_out_accuracy": found[0], "prefix_int8_held_out_accuracy": found[1]}


def _quantised(prefix: bytes, windows: Floats, batch: int) -> bytes:
    # onnxruntime's quantiser reads and writes files.
    from onnxruntime import quantization  # noqa: PLC0415 - a second to import
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        def __init__(self) -> None:
            self.batches = iter([{"window": rows} for rows, _ in _batches(windows, batch, repeat=True)])

        def get_next(self) -> dict[str, Floats] | None:
            return next(self.batches, None)

    logger = logging.getLogger()
    level = logger.level
    # The quantiser advises on the root logger.
    logger.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="graftwork-") as name:
            source, prepared, target = (str(Path(name) / part) for part in ("source", "prepared", "target"))
            Path(source).write_bytes(prefix)
            # Folds BatchNorm and constants; a fixed batch needs no symbolic shapes.
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                target,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(OPERATORS),
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
            )
            return _finished(onnx.load(target))
    except Exception as error:  # onnxruntime's quantiser raises all kinds
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"onnxruntime cannot quantise the prefix: {reason}", "leave --quantise-prefix out"
        ) from error
    finally:
        logger.setLevel(level)


def _finished(model: onnx.ModelProto) -> bytes:
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return graphs.finished(model)


def _batches(rows: Floats, batch: int, *, repeat: bool = False) -> Iterator[tuple[Floats, int]]:
    """Cut rows into batches; the last one is filled with zeros, or with rows again."""
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        if len(part) == batch:
            yield part, batch
        elif repeat:
            yield np.resize(part, (batch, *rows.shape[1:])), len(part)
        else:
            filled = np.zeros((batch, *rows.shape[1:]), np.float32)
            filled[: len(part)] = part
            yield filled, len(part)


def _milliseconds(prefix: bytes, windows: Floats, batch: int) -> float:
    """Median time of one batch on one thread."""
    session: Any = graphs.load(prefix)
    (rows, _), *_ = _batches(windows, batch, repeat=True)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        graphs.run(session, window=rows)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3
