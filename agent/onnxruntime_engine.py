"""The default engine: the exported training step on stock onnxruntime.

The device never differentiates: `step.onnx` holds forward and backward pass as ordinary operators.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from agent.engine import Floats, batched, pad
from agent.errors import EngineError
from protocol.package import PREDICT, PREFIX, STEP, Manifest


class OnnxruntimeEngine:
    """Runs prefix, step and prediction of an installed package; sessions are opened when first needed."""

    def __init__(self, directory: Path, manifest: Manifest, *, threads: int = 1) -> None:
        """Take an installed package.

        Args:
            directory: where prefix.onnx, step.onnx and predict.onnx lie.
            manifest: the package's description.
            threads: of onnxruntime, per graph.
        """
        self.batch = manifest.batch
        self.feature_size = manifest.feature_size
        self.parameters = manifest.parameters
        self.classes = len(manifest.schema.classes)
        self._window_shape = (len(manifest.schema.channels), manifest.window.length)
        self._directory = directory
        self._threads = threads
        self._sessions: dict[str, Any] = {}

    def features(self, windows: Floats) -> Floats:
        """Run the frozen part: float32 [n, channels, length] -> float32 [n, feature_size].

        Raises:
            EngineError: windows of another shape.
        """
        if windows.shape[1:] != self._window_shape:
            raise EngineError(f"expected windows {list(self._window_shape)}, got {list(windows.shape[1:])}")
        out = np.empty((len(windows), self.feature_size), np.float32)
        for index, (rows, count) in enumerate(batched(windows.astype(np.float32, copy=False), self.batch)):
            [result] = self._run(PREFIX, {"window": rows})
            out[index * self.batch : index * self.batch + count] = result[:count]
        return out

    def loss_and_gradient(
        self, adapter: Floats, features: Floats, labels: NDArray[np.int64], weights: Floats
    ) -> tuple[float, Floats]:
        """Weighted mean cross-entropy over at most `batch` rows, and its gradient float32 [parameters].

        Raises:
            EngineError: shapes that do not belong together.
        """
        self._check(adapter, features)
        if not len(features) == len(labels) == len(weights):
            raise EngineError(
                f"expected as many labels and weights as features, got {len(features)}, {len(labels)}, "
                f"{len(weights)}"
            )
        loss, gradient = self._run(
            STEP,
            {
                "adapter": adapter,
                "features": pad(features, self.batch),
                "labels": pad(labels, self.batch),
                "weights": pad(weights, self.batch),
            },
        )
        return float(loss), gradient

    def predict(self, adapter: Floats, features: Floats) -> Floats:
        """Logits float32 [n, classes] of any number of rows.

        Raises:
            EngineError: shapes that do not belong together.
        """
        self._check(adapter, features)
        out = np.empty((len(features), self.classes), np.float32)
        for index, (rows, count) in enumerate(batched(features, self.batch)):
            [logits] = self._run(PREDICT, {"adapter": adapter, "features": rows})
            out[index * self.batch : index * self.batch + count] = logits[:count]
        return out

    def _check(self, adapter: Floats, features: Floats) -> None:
        if adapter.shape != (self.parameters,):
            raise EngineError(f"expected an adapter [{self.parameters}], got {list(adapter.shape)}")
        if features.ndim != 2 or features.shape[1] != self.feature_size:
            raise EngineError(f"expected features [n, {self.feature_size}], got {list(features.shape)}")

    def _run(self, name: str, inputs: dict[str, NDArray[np.generic]]) -> list[Any]:
        try:
            if name not in self._sessions:
                self._sessions[name] = self._open(name)
            result: list[Any] = self._sessions[name].run(None, inputs)
        except Exception as error:  # onnxruntime's own errors share no narrower root
            raise EngineError(f"{name}: {error}") from error
        return result

    def _open(self, name: str) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # An arena keeps the peak of every graph for ever; the allocator of the system gives it back.
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(
            str(self._directory / name), options, providers=["CPUExecutionProvider"]
        )
