"""The training half of onnxruntime-training, without torch: a step from a training model and its checkpoint.

Importing `onnxruntime.training` the usual way imports torch. A bare package module with that folder as its
path lets `onnxruntime.training.api` in alone.
"""

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PARAMETER = "adapter"
"""Name of the one trainable parameter: the flat adapter vector."""


def installed() -> bool:
    """Whether the onnxruntime here is a training build."""
    return _folder() is not None


def import_training() -> None:
    """Make `onnxruntime.training.api` and `.artifacts` importable.

    Raises:
        ImportError: the onnxruntime here is no training build.
    """
    folder = _folder()
    if folder is None:
        raise ImportError("expected a training build of onnxruntime: onnxruntime-training-cpu 1.19.2")
    if "onnxruntime.training" not in sys.modules:
        module = types.ModuleType("onnxruntime.training")
        module.__path__ = [str(folder)]
        sys.modules["onnxruntime.training"] = module


class TrainingStep:
    """`(adapter, features, labels, weights) -> (loss, gradient)`, differentiated by onnxruntime-training."""

    def __init__(self, model: Path, checkpoint: Path, *, threads: int = 1) -> None:
        """Open the artefacts.

        Args:
            model: training_model.onnx.
            checkpoint: its parameters: one, named "adapter".
            threads: per operator.

        Raises:
            ImportError: the onnxruntime here is no training build.
            RuntimeError: the artefacts are malformed.
            ValueError: they have other parameters or inputs.
        """
        import_training()
        import onnxruntime  # noqa: PLC0415 - only where this engine is asked for
        from onnxruntime.training.api import CheckpointState, Module  # noqa: PLC0415

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._state: Any = CheckpointState.load_checkpoint(str(checkpoint))
        self._module: Any = Module(str(model), self._state, session_options=options)
        trainable = [name for name, parameter in self._state.parameters if parameter.requires_grad]
        if trainable != [PARAMETER]:
            raise ValueError(f"expected one trainable parameter, {PARAMETER}, got {trainable}")
        inputs = self._module.input_names()
        if inputs != ["features", "labels", "weights"]:
            raise ValueError(f"expected the inputs features, labels, weights, got {', '.join(inputs)}")

    def run(
        self,
        adapter: NDArray[np.float32],
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        weights: NDArray[np.float32],
    ) -> tuple[float, NDArray[np.float32]]:
        """Loss and gradient, float32 [parameters], of one full batch; shapes as in protocol/package.py."""
        self._module.lazy_reset_grad()  # gradients add up otherwise
        self._state.parameters[PARAMETER] = adapter
        loss = self._module(features, labels, weights)
        # A view of the session's own buffer, which the next step writes to.
        gradient: NDArray[np.float32] = self._state.parameters[PARAMETER].grad.copy()
        return float(loss), gradient


def _folder() -> Path | None:
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "training"
    return folder if (folder / "api").is_dir() else None
