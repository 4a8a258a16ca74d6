"""Writes onnxruntime-training's artefacts, in an interpreter that has this package in onnxruntime's place.

    PYTHON -I models/onnxruntime_training_artifacts.py FOLDER

FOLDER holds loss.onnx and cases.npz; training_model.onnx, checkpoint and results.npz (loss and gradient of
every case, by the training session) are written beside them. Without FOLDER it only looks whether it could.
Needs onnx and numpy there, and no torch.
"""

import importlib
import sys
from pathlib import Path

import numpy as np

TRAINING_MODEL, CHECKPOINT = "training_model.onnx", "checkpoint"
"""As onnxruntime-training names them."""
LOSS, CASES, RESULTS = "loss.onnx", "cases.npz", "results.npz"
CASE_INPUTS = ("adapter", "features", "labels", "weights")


def check() -> None:
    """Import what is needed.

    Raises:
        ImportError: this interpreter has no onnxruntime-training, or no onnx.
    """
    import_training = importlib.import_module("runtime.onnxruntime_training").import_training
    import_training()
    importlib.import_module("onnx")
    importlib.import_module("onnxruntime.training.artifacts")


def write(folder: Path) -> None:
    """Generate the artefacts in a folder and run them once per case.

    Raises:
        ImportError: as of `check`.
        RuntimeError: an operator has no gradient in onnxruntime-training.
    """
    check()
    import onnx  # noqa: PLC0415 - in this interpreter only
    from onnxruntime.training import artifacts  # noqa: PLC0415

    from runtime.onnxruntime_training import PARAMETER, TrainingStep  # noqa: PLC0415 - the path is set below

    model = onnx.load(folder / LOSS)
    _complete_normalisations(model)
    artifacts.generate_artifacts(model, requires_grad=[PARAMETER], artifact_directory=folder)
    step = TrainingStep(folder / TRAINING_MODEL, folder / CHECKPOINT)
    results = {}
    with np.load(folder / CASES) as cases:
        for index in range(len(cases["adapter"])):
            loss, gradient = step.run(*(cases[name][index] for name in CASE_INPUTS))
            results[f"loss{index}"], results[f"gradient{index}"] = np.float32(loss), gradient
    np.savez(folder / RESULTS, **results)


def _complete_normalisations(model: "onnx.ModelProto") -> None:  # type: ignore[name-defined] # noqa: F821
    """Give every LayerNormalization its optional outputs, which its gradient reads."""
    for index, node in enumerate(model.graph.node):
        if node.op_type == "LayerNormalization":
            names = [f"normalisation{index}.{part}" for part in ("output", "mean", "deviation")]
            node.output.extend(names[len(node.output) :])


if __name__ == "__main__":
    # Behind this interpreter's own packages, so that only the project's rooms are found there.
    sys.path.append(str(Path(__file__).parent.parent))
    if len(sys.argv) > 1:
        write(Path(sys.argv[1]))
    else:
        check()
