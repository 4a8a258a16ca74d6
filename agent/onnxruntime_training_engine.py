"""The engine that differentiates on the device: onnxruntime-training's module and checkpoint.

Prefix and prediction run on the inference session of the same package.
"""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from agent.engine import Floats, count_of
from agent.onnxruntime_engine import OnnxruntimeEngine
from protocol.package import (
    ONNXRUNTIME_TRAINING,
    PREFIX,
    TRAINING_CHECKPOINT,
    TRAINING_MODEL,
    Manifest,
)
from runtime import memory
from runtime.onnxruntime_training import TrainingStep, import_training


class OnnxruntimeTrainingEngine(OnnxruntimeEngine):
    """Runs the training artefacts of an installed package; on the CPU, as the published builds do."""

    name = ONNXRUNTIME_TRAINING

    def __init__(self, directory: Path, manifest: Manifest, *, threads: int = 1) -> None:
        """Take an installed package.

        Args:
            directory: where training_model.onnx, training_checkpoint, prefix.onnx and predict.onnx lie.
            manifest: the package's description.
            threads: of onnxruntime, per graph.

        Raises:
            ImportError: the onnxruntime here is no training build.
        """
        super().__init__(directory, manifest, threads=threads, providers=("cpu",))
        import_training()
        self._step: TrainingStep | None = None

    def describe(self) -> str:
        """Name, version and what it runs on, for the log."""
        return f"{self.name} {onnxruntime.__version__}, CPU, {count_of(self._threads, 'thread')}"

    def _run_step(
        self, adapter: Floats, features: Floats, labels: NDArray[np.int64], weights: Floats
    ) -> tuple[float, Floats]:
        self._sessions.pop(PREFIX, None)
        if self._step is None:
            self._step = TrainingStep(
                self._directory / TRAINING_MODEL,
                self._directory / TRAINING_CHECKPOINT,
                threads=self._threads,
            )
            memory.release_start_up()
        return self._step.run(adapter, features, labels, weights)
