"""TFLite graphs in whichever LiteRT runtime is installed: ai-edge-litert, or tflite-runtime on 32-bit Arm.

Both have the same interpreter. Inputs and outputs go by the names of the graph's signature.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUNTIMES = {"ai_edge_litert": "ai-edge-litert", "tflite_runtime": "tflite-runtime"}
"""Import name and distribution name, the maintained one first."""


def installed() -> str | None:
    """Import name of the installed runtime; None if there is none."""
    return next((name for name in RUNTIMES if importlib.util.find_spec(name) is not None), None)


def version() -> str:
    """Distribution and version of the installed runtime, e.g. `ai-edge-litert 2.3.0`."""
    name = installed()
    if name is None:
        return "no LiteRT runtime"
    distribution = RUNTIMES[name]
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:  # e.g. a build of the board's maker
        return name


class LiteRTGraph:
    """One graph with a single signature, static shapes and all its memory planned when it is opened."""

    def __init__(self, content: bytes, *, threads: int = 1) -> None:
        """Open a graph.

        Args:
            content: a .tflite file.
            threads: that run an operator.

        Raises:
            ImportError: no runtime is installed, or it does not fit the system.
            ValueError: the content is no such graph.
        """
        name = installed()
        if name is None:
            raise ImportError(f"none of {', '.join(RUNTIMES.values())} is installed")
        module = importlib.import_module(f"{name}.interpreter")
        self._interpreter: Any = module.Interpreter(model_content=content, num_threads=threads)
        self._interpreter.allocate_tensors()
        signatures = self._interpreter.get_signature_list()
        if len(signatures) != 1:
            raise ValueError(f"expected one signature, got {sorted(signatures)}")
        # The runner only knows which tensor has which name; called by itself it would plan memory anew.
        runner = self._interpreter.get_signature_runner(next(iter(signatures)))
        self.inputs: dict[str, Any] = runner.get_input_details()
        """Details of the inputs by name: index, shape, dtype."""
        self.outputs: dict[str, Any] = runner.get_output_details()

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
        """Run the graph; the outputs are copies.

        Raises:
            ValueError: an input is missing, unknown, or of another shape or type.
        """
        if set(inputs) != set(self.inputs):
            raise ValueError(f"expected inputs {sorted(self.inputs)}, got {sorted(inputs)}")
        for name, value in inputs.items():
            detail = self.inputs[name]
            if value.shape != tuple(detail["shape"]):  # the interpreter would take any of the same size
                raise ValueError(f"{name}: expected {list(detail['shape'])}, got {list(value.shape)}")
            # TFLite has no int64 labels: the converter narrows them.
            self._interpreter.set_tensor(detail["index"], value.astype(detail["dtype"], copy=False))
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(d["index"]) for name, d in self.outputs.items()}
