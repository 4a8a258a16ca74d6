"""The engine for boards without onnxruntime: the same traced step as .tflite, on a LiteRT runtime."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.engine import Floats, PackageEngine, count_of
from protocol.package import LITERT, PREDICT_TFLITE, PREFIX_TFLITE, STEP_TFLITE, Manifest
from runtime import memory
from runtime.litert import LiteRTGraph, version


class LiteRTEngine(PackageEngine):
    """Runs the .tflite members of an installed package; each is opened when first needed."""

    name = LITERT

    def __init__(self, directory: Path, manifest: Manifest, *, threads: int = 1) -> None:
        """Take an installed package.

        Args:
            directory: where prefix.tflite, step.tflite and predict.tflite lie.
            manifest: the package's description.
            threads: of the runtime, per graph.
        """
        super().__init__(manifest)
        self._directory = directory
        self._threads = threads
        self._graphs: dict[str, LiteRTGraph] = {}

    def describe(self) -> str:
        """Name, version and what it runs on, for the log."""
        return f"{self.name}, {version()}, CPU, {count_of(self._threads, 'thread')}"

    def _run_prefix(self, windows: Floats) -> Floats:
        return self._graph(PREFIX_TFLITE).run({"window": windows})["features"]

    def _run_step(
        self, adapter: Floats, features: Floats, labels: NDArray[np.int64], weights: Floats
    ) -> tuple[float, Floats]:
        found = self._graph(STEP_TFLITE).run(
            {"adapter": adapter, "features": features, "labels": labels, "weights": weights}
        )
        return float(found["loss"]), found["gradient"]

    def _run_predict(self, adapter: Floats, features: Floats) -> Floats:
        return self._graph(PREDICT_TFLITE).run({"adapter": adapter, "features": features})["logits"]

    def _graph(self, member: str) -> LiteRTGraph:
        if member != PREFIX_TFLITE:
            # The prefix runs only when new windows come; meanwhile its memory is given back.
            self._graphs.pop(PREFIX_TFLITE, None)
        if member not in self._graphs:
            self._graphs[member] = LiteRTGraph((self._directory / member).read_bytes(), threads=self._threads)
            memory.release_start_up()
        return self._graphs[member]
