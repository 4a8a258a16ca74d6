"""An ONNX file with adapters and a new head, where the PyTorch source is gone.

    file = onnx_file.read(Path("backbone.onnx"))
    adapted = adapt(file, Placement(at="/pool/GlobalAveragePool_output_0"), schema, window, batch=32)
    data = export(adapted.module, schema, window, key, name="gearbox", front=adapted.front)

What stands before the cut stays ONNX. What stands behind is imported into torch, compared with the file, and
frozen; adapters and head go in as into any module, and the export is that of any module.
"""

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import graphs
from models.adapters import LOW_RANK, AdaptedModule, AdapterSpec, insert
from models.errors import AdapterError, ExportError
from models.export import BATCH, random_windows
from models.folding import fold_batch_norm
from models.onnx_cut import Tail, cut, opened
from models.onnx_file import OnnxFile
from models.onnx_front import Arrangement, arrange, fixed_front
from models.onnx_graph import Graph, classifier, connect, unknown_tensor
from models.onnx_import import ImportedTail, channels_first
from models.parity import LIMIT, relative_error
from protocol.input_schema import InputSchema, WindowSpec

HEAD = "head"
"""Name of the new head, as a layer and as a segment."""


@dataclass(frozen=True)
class Placement:
    """Where a file is cut, and what goes in behind the cut."""

    at: str
    """The tensor to cut at."""
    kind: str = "bottleneck"
    """bottleneck, lora or head."""
    layers: tuple[str, ...] = ()
    """Bottleneck: tensors behind the cut that are adapted, too. LoRA: the only layers to adapt; if empty,
    every linear and every ordinary convolution behind the cut."""
    rank: int = 16
    freeze_a: bool = False
    """LoRA only: keep the random projection fixed."""
    keep_head: bool = False
    """Train the file's own classifier, and do not put a new one in its place."""
    features: str | None = None
    """What the new head reads; if None, what the old classifier reads, or else the output."""
    logits: str | None = None
    """Output of the file that holds the logits; needed where it has several."""


@dataclass(frozen=True, eq=False)
class AdaptedFile:
    """What export() takes."""

    module: AdaptedModule
    """From the tensor at the cut to the logits."""
    front: bytes
    """From windows to the tensor at the cut, as ONNX."""
    error: float
    """Largest relative L2 distance of the import from the file."""


class ImportedNetwork(ImportedTail):
    """The imported tail and a head on it; until the head is set, what the tail stops with."""

    def __init__(self, tail: Tail) -> None:
        super().__init__(tail, reserved=(HEAD, "pooled"))
        self.pooled: int | None = None
        """The dimension of the features, where others are averaged away."""
        self.head: nn.Module = nn.Identity()

    def forward(self, value: Tensor) -> Tensor:
        """Map the tensor at the cut to logits, float32 [batch, classes]."""
        features = super().forward(value)
        if self.pooled is not None:
            # The mean over time or space, as networks without a classifier are commonly used.
            features = features.movedim(self.pooled, -1).flatten(1, -2).mean(1)
        logits: Tensor = self.head(features)
        return logits


def adapt(
    file: OnnxFile,
    placement: Placement,
    schema: InputSchema,
    window: WindowSpec,
    *,
    batch: int = BATCH,
    seed: int = 0,
) -> AdaptedFile:
    """Cut a file, import what is behind the cut, and put adapters and a head in.

    Args:
        file: as read by onnx_file.
        placement: where to cut, and what goes in.
        schema: the sensor data that the package takes.
        window: the windows that it takes.
        batch: rows of every graph of the package.
        seed: of the adapters' and the head's initial values.

    Raises:
        AdapterError: a layer cannot carry the adapter.
        ExportError: the file cannot be cut or imported; the message names the tensor or operator.
    """
    arrangement = arrange(schema.input_shape(window), file.input_shape[1:])
    graph = connect(opened(file, arrangement.taken), placement.logits)
    stop = _stop(graph, placement)
    parts = cut(graph, placement.at, stop)
    network = ImportedNetwork(parts).eval()
    front = fixed_front(parts, arrangement, batch)
    windows = random_windows(schema, window, batch)
    (example,) = (torch.from_numpy(value) for value in graphs.run(graphs.load(front), window=windows.numpy()))
    error = _compare(file, network, arrangement, windows.numpy(), example)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = _head(network, graph, example, len(schema.classes), placement)
        layers = _layers(network, placement, head)
        fold_batch_norm(network, example, {*layers, head})
        spec = AdapterSpec(placement.kind, layers, head, placement.rank, placement.freeze_a)
        adapted = insert(network, spec, example)
    return AdaptedFile(adapted, front, error)


def _stop(graph: Graph, placement: Placement) -> str:
    """Return the tensor at which the import ends."""
    last = classifier(graph)
    if placement.keep_head:
        if last is None or placement.features is not None:
            raise ExportError(
                "--keep-head: the logits do not come from a Gemm, or MatMul and Add, with constant weights"
                if last is None
                else "--keep-head and --features exclude each other",
                "leave --keep-head out for a new head",
            )
        return graph.output
    if placement.features is not None:
        if placement.features not in graph.dependent:
            raise unknown_tensor(placement.features, sorted(graph.dependent))
        return placement.features
    return graph.output if last is None else last.features


def _head(network: ImportedNetwork, graph: Graph, example: Tensor, classes: int, placement: Placement) -> str:
    """Put a new head on, or keep the file's; return the name of the layer that is the head."""
    last = classifier(graph)
    if placement.keep_head and last is not None:
        if last.classes != classes:
            raise ExportError(
                f"--keep-head: the file has {last.classes} logits, the schema has {classes} classes",
                "leave --keep-head out for a new head",
            )
        return network.layer(last.output)
    with torch.no_grad():
        features = network(example)
    if features.dim() < 2 or len(features) != len(example) or features.dtype != torch.float32:
        raise ExportError(
            f"the head reads {network.stop!r}, {list(features.shape)}, expected one row per window, "
            "[batch, features] or [batch, channels, ...]",
            "name another tensor with --features",
        )
    if features.dim() > 2:
        network.pooled = 1 if features.dim() == 4 or channels_first(graph, network.stop) else -1
    network.head = nn.Linear(features.shape[-1 if network.pooled is None else network.pooled], classes)
    return HEAD


def _layers(tail: ImportedNetwork, placement: Placement, head: str) -> tuple[str, ...]:
    named = [tail.layer(name) for name in placement.layers]
    if placement.kind == "head":
        if named:
            raise AdapterError("head: only the head is trained", "leave --layer out")
        return ()
    if placement.kind == "bottleneck":
        entry = tail.entry
        return (entry, *(name for name in named if name != entry))
    if named:
        return tuple(named)
    fitting = [
        name for name in tail.layers_of(*LOW_RANK) if getattr(tail.get_submodule(name), "groups", 1) == 1
    ]
    found = tuple(name for name in fitting if name != head)
    if not found:
        raise AdapterError(
            f"lora: there is no linear layer or convolution behind {placement.at!r}",
            "cut further in front, or use --adapter bottleneck",
        )
    return found


def _compare(
    file: OnnxFile,
    tail: ImportedNetwork,
    arrangement: Arrangement,
    windows: NDArray[np.float32],
    example: Tensor,
) -> float:
    """Run the file as it was written, and the two parts; refuse an import that computes something else."""
    with torch.no_grad():
        found = tail(example).numpy()
    expected = _original(file, tail.stop, arrangement(windows))
    error = relative_error(found, expected) if found.shape == expected.shape else float("inf")
    if not error <= LIMIT:
        raise ExportError(
            f"import: expected {tail.stop!r} within {LIMIT:.0e} of the file, got {error:.1e}",
            "the file was exported for one batch size, or uses an operator in an unusual way; "
            "export it with an open batch dimension, or cut further behind (--at)",
        )
    return error


def _original(file: OnnxFile, wanted: str, windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run the file's own graph, at its own batch size, and return one of its tensors."""
    model = onnx.ModelProto()
    model.CopyFrom(file.original)
    if wanted not in [value.name for value in model.graph.output]:
        model.graph.output.append(onnx.ValueInfoProto(name=wanted))
    rows = file.batch or len(windows)
    filled = np.concatenate([windows, windows[: -len(windows) % rows]])
    if len(filled) % rows:  # a batch larger than twice the windows
        filled = np.resize(windows, (rows, *windows.shape[1:]))
    try:
        session = graphs.load(model.SerializeToString())
        parts = [
            session.run([wanted], {file.input: filled[start : start + rows]})[0]
            for start in range(0, len(filled), rows)
        ]
    except Exception as error:  # onnxruntime's own errors share no narrower root
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"onnxruntime cannot run the file: {reason}") from error
    return np.concatenate(parts)[: len(windows)]
