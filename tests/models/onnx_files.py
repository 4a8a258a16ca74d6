"""ONNX files for the tests: exported by both of torch's exporters, or built node by node."""

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from models import graphs


class Residual(nn.Module):
    """A depthwise convolution as in MobileNet, then a residual block as in ResNet; pictures [1, 16, 16]."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.lower = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6(),
            nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False), nn.BatchNorm2d(width), nn.Hardswish(),
        )  # fmt: skip
        self.first = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1)
        self.head = nn.Linear(width, 4)

    def forward(self, picture: Tensor) -> Tensor:
        lower = self.lower(picture)
        upper = self.second(torch.relu(self.norm(self.first(lower))))
        pooled = functional.adaptive_avg_pool2d(torch.relu(lower + upper), 1).flatten(1)
        logits: Tensor = self.head(pooled)
        return logits


class LongShort(nn.Module):
    """A recurrent network."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(3, 6, 3, padding=1)
        self.memory = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, window: Tensor) -> Tensor:
        states, _ = self.memory(torch.relu(self.mix(window)).transpose(1, 2))
        logits: Tensor = self.head(states[:, -1])
        return logits


def exported(
    module: nn.Module,
    shape: Sequence[int],
    file: Path,
    *,
    opset: int = 18,
    dynamo: bool = True,
    batch: int | None = None,
) -> Path:
    """Export a module as its author would; with an open batch, or for a fixed one."""
    example = torch.zeros(batch or 2, *shape)
    options: dict[str, object] = {}
    if batch is None and dynamo:
        options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    elif batch is None:
        options["dynamic_axes"] = {"window": {0: "batch"}, "logits": {0: "batch"}}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # torch deprecates its older exporter, and parts of its newer one
        torch.onnx.export(
            module, (example,), str(file), input_names=["window"], output_names=["logits"],
            opset_version=opset, dynamo=dynamo, verbose=False, external_data=False, **options,
        )  # fmt: skip
    return file


def built(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    shape: Sequence[int | str | None],
    file: Path,
    *,
    output: str = "logits",
    opset: int = 18,
    kind: int = TensorProto.FLOAT,
) -> Path:
    """Write a graph of some nodes that maps "window" to `output`."""
    model = helper.make_model(
        helper.make_graph(
            list(nodes),
            "built",
            [helper.make_tensor_value_info("window", kind, list(shape))],
            [helper.make_tensor_value_info(output, kind, None)],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )
    model = onnx.shape_inference.infer_shapes(model)
    if not model.graph.output[0].type.tensor_type.HasField("shape"):
        # onnx knows no shapes of some operators, but wants one declared.
        window = np.ones([size if isinstance(size, int) else 2 for size in shape], np.float32)
        (value,) = graphs.run(graphs.load(model.SerializeToString()), window=window)
        declared = helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * value.ndim)
        model.graph.output[0].CopyFrom(declared)
    onnx.save(model, file)
    return file


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Random weights, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
