"""What every training engine offers, and what all of them share: fixed batches and checked shapes.

The graphs have a fixed batch; a short one is padded. Weights of 0 make padding rows count nothing, so a
short batch has exactly the loss and gradient of its own rows. They see the adapter up to the last segment of
theirs: the loss does not depend on the heads that come behind, so their gradient is zero.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.errors import EngineError
from protocol.package import Manifest

Floats = NDArray[np.float32]


class Engine(Protocol):
    """A model package, ready to train."""

    batch: int
    """Rows that the graphs take."""
    feature_size: int
    parameters: int
    classes: int
    embedding_size: int
    """Width of an embedding; 0: the package has none, or this engine does not run it."""

    def features(self, windows: Floats) -> Floats:
        """Run the frozen part: float32 [n, *input_shape] -> float32 [n, feature_size]."""

    def loss_and_gradient(
        self, adapter: Floats, features: Floats, labels: NDArray[np.int64], weights: Floats
    ) -> tuple[float, Floats]:
        """Weighted mean cross-entropy over at most `batch` rows, and its gradient float32 [parameters]."""

    def predict(self, adapter: Floats, features: Floats) -> Floats:
        """Logits float32 [n, classes] of any number of rows."""

    def embed(self, features: Floats) -> Floats:
        """Run the frozen embedding: float32 [n, feature_size] -> float32 [n, embedding_size]."""


class PackageEngine(ABC):
    """An engine over the graphs of an installed package; a runtime adds how to run one full batch."""

    name: str
    """As in the package's manifest and the agent's configuration."""
    embeds = False
    """Whether it runs embedding.onnx."""

    def __init__(self, manifest: Manifest) -> None:
        self.batch = manifest.batch
        self.feature_size = manifest.feature_size
        self.parameters = manifest.parameters
        self._graph_parameters = manifest.graph_parameters
        self.classes = len(manifest.schema.classes)
        self.embedding_size = manifest.embedding_size if self.embeds else 0
        self._input_shape = manifest.input_shape

    def features(self, windows: Floats) -> Floats:
        """Run the frozen part: float32 [n, *input_shape] -> float32 [n, feature_size].

        Raises:
            EngineError: windows of another shape, or the runtime refuses the graph.
        """
        if windows.shape[1:] != self._input_shape:
            raise EngineError(f"expected windows {list(self._input_shape)}, got {list(windows.shape[1:])}")
        out = np.empty((len(windows), self.feature_size), np.float32)
        for index, (rows, count) in enumerate(batched(_floats(windows), self.batch)):
            result = self._checked("features", self._run_prefix, rows)
            out[index * self.batch : index * self.batch + count] = result[:count]
        return out

    def loss_and_gradient(
        self, adapter: Floats, features: Floats, labels: NDArray[np.int64], weights: Floats
    ) -> tuple[float, Floats]:
        """Weighted mean cross-entropy over at most `batch` rows, and its gradient float32 [parameters].

        Raises:
            EngineError: shapes that do not belong together, or the runtime refuses the graph.
        """
        self._check(adapter, features)
        if not len(features) == len(labels) == len(weights) or labels.ndim != 1 or weights.ndim != 1:
            raise EngineError(
                f"expected labels and weights [{len(features)}], as many as features, "
                f"got {list(labels.shape)} and {list(weights.shape)}"
            )
        loss, gradient = self._checked(
            "training step",
            self._run_step,
            self._of_graphs(adapter),
            pad(_floats(features), self.batch),
            pad(np.ascontiguousarray(labels, np.int64), self.batch),
            pad(_floats(weights), self.batch),
        )
        behind = self.parameters - self._graph_parameters
        return float(loss), np.pad(gradient, (0, behind)) if behind else gradient

    def predict(self, adapter: Floats, features: Floats) -> Floats:
        """Logits float32 [n, classes] of any number of rows.

        Raises:
            EngineError: shapes that do not belong together, or the runtime refuses the graph.
        """
        self._check(adapter, features)
        adapter = self._of_graphs(adapter)
        out = np.empty((len(features), self.classes), np.float32)
        for index, (rows, count) in enumerate(batched(_floats(features), self.batch)):
            logits = self._checked("prediction", self._run_predict, adapter, rows)
            out[index * self.batch : index * self.batch + count] = logits[:count]
        return out

    def embed(self, features: Floats) -> Floats:
        """Run the frozen embedding: float32 [n, feature_size] -> float32 [n, embedding_size].

        Raises:
            EngineError: there is none, features of another shape, or the runtime refuses the graph.
        """
        if not self.embedding_size:
            raise EngineError(f"{self.name}: expected a package with an embedding that this engine runs")
        self._check_features(features)
        out = np.empty((len(features), self.embedding_size), np.float32)
        for index, (rows, count) in enumerate(batched(_floats(features), self.batch)):
            result = self._checked("embedding", self._run_embedding, rows)
            out[index * self.batch : index * self.batch + count] = result[:count]
        return out

    @abstractmethod
    def describe(self) -> str:
        """Name, version and what it runs on, for the log."""

    @abstractmethod
    def _run_prefix(self, windows: Floats) -> Floats:
        """Run the frozen part on exactly `batch` windows."""

    @abstractmethod
    def _run_step(
        self, adapter: Floats, features: Floats, labels: NDArray[np.int64], weights: Floats
    ) -> tuple[float, Floats]:
        """Run the training step on exactly `batch` rows; the gradient is the caller's to keep."""

    @abstractmethod
    def _run_predict(self, adapter: Floats, features: Floats) -> Floats:
        """Run the prediction on exactly `batch` rows."""

    def _run_embedding(self, features: Floats) -> Floats:
        """Run the embedding on exactly `batch` rows, where the engine does."""
        raise NotImplementedError

    def _check(self, adapter: Floats, features: Floats) -> None:
        if adapter.shape != (self.parameters,):
            raise EngineError(f"expected an adapter [{self.parameters}], got {list(adapter.shape)}")
        self._check_features(features)

    def _check_features(self, features: Floats) -> None:
        if features.ndim != 2 or features.shape[1] != self.feature_size:
            raise EngineError(f"expected features [n, {self.feature_size}], got {list(features.shape)}")

    def _of_graphs(self, adapter: Floats) -> Floats:
        return _floats(adapter[: self._graph_parameters])

    def _checked(self, what: str, run: Any, *inputs: NDArray[np.generic]) -> Any:
        try:
            return run(*inputs)
        except EngineError:
            raise
        except Exception as error:  # the errors of the runtimes share no narrower root
            raise EngineError(f"{self.name}: {what}: {error}") from error


def batched(array: NDArray[np.generic], batch: int) -> Iterator[tuple[NDArray[np.generic], int]]:
    """Cut an array into batches of exactly `batch` rows, the last one padded with zeros; (batch, rows)."""
    for start in range(0, len(array), batch):
        rows = array[start : start + batch]
        yield pad(rows, batch), len(rows)


def pad(rows: NDArray[np.generic], batch: int) -> NDArray[np.generic]:
    """Pad with zero rows up to `batch` rows.

    Raises:
        EngineError: more rows than that.
    """
    if len(rows) > batch:
        raise EngineError(f"expected at most {batch} rows, got {len(rows)}")
    if len(rows) == batch:
        return rows
    padded = np.zeros((batch, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return padded


def count_of(number: int, thing: str) -> str:
    """Number and noun, for the log: 1 thread, 2 threads."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _floats(array: NDArray[np.generic]) -> Floats:
    """As the runtimes take it, float32 and contiguous; a view where it is that already."""
    return np.ascontiguousarray(array, np.float32)
