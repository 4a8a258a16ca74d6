"""Members of a package for other engines than onnxruntime, each compared with torch before it is written.

The reference is the cut module, run eagerly and differentiated by autograd. That the cut is the user's module
is what parity.py shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import litert_conversion, onnxruntime_training_export
from models.adapters import AdaptedModule
from models.errors import ExportError
from models.litert_conversion import to_litert
from models.onnxruntime_training_export import write_training_artifacts
from models.parity import LIMIT, Reference, relative_error
from models.tracing import Cut
from models.training_step import Predict, trace_step, unflatten, weighted_loss
from protocol.package import (
    ENGINES,
    LITERT,
    ONNXRUNTIME,
    ONNXRUNTIME_TRAINING,
    PREDICT_TFLITE,
    PREFIX_TFLITE,
    STEP_TFLITE,
    TRAINING_CHECKPOINT,
    TRAINING_MODEL,
    Parity,
)
from runtime.litert import LiteRTGraph

CASES = 3
"""Random adapters and batches to compare on; the last batch is short."""


@dataclass(frozen=True)
class EngineArtifacts:
    """What other engines add to a package."""

    members: dict[str, bytes]
    errors: dict[str, float]
    """Largest relative L2 error of each output that the engine computes by itself, by its name."""
    engines: tuple[str, ...] = ()
    """All engines that the package is then for."""


@dataclass(frozen=True)
class Traced:
    """What the exporter knows of a module when the ONNX graphs are written."""

    module: AdaptedModule
    cut: Cut
    inputs: Tensor
    """What the cut's prefix takes, float32 [batch, ...]."""

    @property
    def shapes(self) -> list[torch.Size]:
        """Shapes of the trainable parameters, in the order of the flat adapter."""
        named = dict(self.module.named_parameters())
        return [named[name].shape for name in self.module.trainable()]


def other_engines(
    names: Sequence[str], traced: Traced, front: bytes | None, training_python: Path | None
) -> EngineArtifacts:
    """Write and check the members for other engines than onnxruntime.

    Args:
        names: of engines; onnxruntime itself may be among them.
        traced: the module.
        front: the frozen ONNX graph before it, if there is one.
        training_python: interpreter with onnxruntime-training; see onnxruntime_training_export.py.

    Raises:
        ExportError: an engine is unknown, its converter is not installed or refuses the graph, or the result
            is not what torch computes.
    """
    others = [name for name in dict.fromkeys(names) if name != ONNXRUNTIME]
    check_writers(others, training_python)
    if LITERT in others and front is not None:
        raise ExportError(
            "engine litert: the part before the cut is an ONNX graph, which is not converted to .tflite",
            "leave out --engine litert",
        )
    members: dict[str, bytes] = {}
    errors: dict[str, float] = {}
    cases = make_cases(traced) if others else []
    for name in others:
        if name == LITERT:
            written = _litert(traced, cases)
        else:
            written = _onnxruntime_training(traced, cases, training_python)
        for output, error in written.errors.items():
            if not error <= LIMIT:
                raise ExportError(
                    f"parity: expected the {output} of {name} within {LIMIT:.0e} of torch, got {error:.1e}",
                    f"leave out --engine {name}",
                )
        members |= written.members
        errors |= {f"{name}.{output}_error": error for output, error in written.errors.items()}
    return EngineArtifacts(members, errors, (ONNXRUNTIME, *others))


def check_writers(names: Sequence[str], training_python: Path | None) -> None:
    """Find out before a long pre-training whether the engines' members can be written here.

    Raises:
        ExportError: an engine is unknown, or its converter is not installed.
    """
    unknown = set(names) - set(ENGINES)
    if unknown:
        raise ExportError(f"engine {min(unknown)!r}: expected one of {', '.join(ENGINES)}")
    if LITERT in names:
        litert_conversion.check_installed()
    if ONNXRUNTIME_TRAINING in names:
        onnxruntime_training_export.check_installed(training_python)


@dataclass(frozen=True)
class Case:
    """One batch, and what torch makes of it."""

    adapter: NDArray[np.float32]
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    expected: Reference


def make_cases(traced: Traced) -> list[Case]:
    """Draw random adapters, labels and weights; rows of weight 0 are padding."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        all_features = traced.cut.prefix(traced.inputs)
    rows, initial, made = len(all_features), traced.module.flat_adapter(), []
    for index in range(CASES):
        used = rows if index < CASES - 1 else max(1, rows * 2 // 3)
        features = all_features[torch.randperm(rows, generator=random)].clone()
        labels = torch.randint(0, traced.cut.classes, (rows,), generator=random)
        weights = torch.rand(rows, generator=random) + 0.5
        features[used:], weights[used:] = 0, 0
        adapter = initial + 0.05 * torch.randn(initial.shape, generator=random)
        flat = adapter.clone().requires_grad_()
        logits = traced.cut.tail(*unflatten(flat, traced.shapes), features)
        loss = weighted_loss(logits, labels, weights)
        (gradient,) = torch.autograd.grad(loss, [flat])
        expected = Reference(float(loss.detach()), gradient.numpy(), logits.detach().numpy())
        made.append(Case(adapter.numpy(), features.numpy(), labels.numpy(), weights.numpy(), expected))
    return made


def _onnxruntime_training(traced: Traced, cases: list[Case], python: Path | None) -> EngineArtifacts:
    stacked = {
        name: np.stack([getattr(case, name) for case in cases])
        for name in ("adapter", "features", "labels", "weights")
    }
    model, checkpoint, found = write_training_artifacts(
        traced.cut, traced.shapes, traced.module.flat_adapter(), stacked, python
    )
    results = [
        (np.asarray(loss, np.float32), gradient, case.expected.logits)
        for (loss, gradient), case in zip(found, cases, strict=True)
    ]
    errors = vars(_worst(cases, results))
    return EngineArtifacts(
        {TRAINING_MODEL: model, TRAINING_CHECKPOINT: checkpoint},
        {output: errors[output] for output in ("loss", "gradient")},
    )


def _litert(traced: Traced, cases: list[Case]) -> EngineArtifacts:
    shapes, first = traced.shapes, cases[0]
    values = {
        "adapter": torch.from_numpy(first.adapter),
        "features": torch.from_numpy(first.features),
        "labels": torch.from_numpy(first.labels),
        "weights": torch.from_numpy(first.weights),
    }
    step = trace_step(traced.cut, shapes, len(traced.inputs))
    members = {
        PREFIX_TFLITE: to_litert(traced.cut.prefix, {"window": traced.inputs}, ["features"]),
        STEP_TFLITE: to_litert(step, values, ["loss", "gradient"]),
        PREDICT_TFLITE: to_litert(
            Predict(traced.cut, shapes),
            {"adapter": values["adapter"], "features": values["features"]},
            ["logits"],
        ),
    }
    graphs = {name: LiteRTGraph(content) for name, content in members.items()}
    results = []
    for case in cases:
        inputs: dict[str, NDArray[np.generic]] = {"adapter": case.adapter, "features": case.features}
        found = graphs[STEP_TFLITE].run({**inputs, "labels": case.labels, "weights": case.weights})
        results.append((found["loss"], found["gradient"], graphs[PREDICT_TFLITE].run(inputs)["logits"]))
    with torch.no_grad():
        features = traced.cut.prefix(traced.inputs).numpy()
    found = graphs[PREFIX_TFLITE].run({"window": traced.inputs.numpy()})
    errors = {"features": relative_error(found["features"], features), **vars(_worst(cases, results))}
    return EngineArtifacts(members, errors)


Result = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def _worst(cases: list[Case], results: list[Result]) -> Parity:
    errors = [
        (
            relative_error(loss, np.float32(case.expected.loss)),
            relative_error(gradient, case.expected.gradient),
            relative_error(logits, case.expected.logits),
        )
        for case, (loss, gradient, logits) in zip(cases, results, strict=True)
    ]
    # max() would skip a NaN that does not come first.
    return Parity(*(float(error) for error in np.max(np.array(errors), axis=0)))
