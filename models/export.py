"""From an adapted module to a signed model package: cut, convert, compare with torch, sign.

    adapted = adapt(module, spec, schema, window)
    data = export(adapted, schema, window, key, name="gearbox", version=1)

A package is refused when its graphs differ from torch by more than parity.LIMIT.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models import graphs, parity
from models.adapters import AdaptedModule, AdapterSpec, insert
from models.calibration import Calibration
from models.engine_artifacts import Traced, other_engines
from models.errors import ExportError
from models.folding import fold_batch_norm
from models.onnx_front import compose
from models.prefix_quantisation import accuracy_cost, quantise
from models.prefix_quantisation import features as prefix_features
from models.refusals import check_layers, check_logits
from models.tracing import Cut, cut
from models.training_step import Predict, trace_step
from protocol import channels
from protocol.input_schema import InputSchema, WindowSpec
from protocol.package import (
    ADAPTER,
    MAX_PARAMETERS,
    PREDICT,
    PREFIX,
    STEP,
    Manifest,
    Parity,
    Segment,
    format_version,
    pack,
    write_adapter,
)
from protocol.signing import PrivateKey

BATCH = 32
MAX_FEATURES = 16_000_000
"""What a manifest allows per window; a device caches this many numbers for each of its windows."""


def adapt(
    module: nn.Module, spec: AdapterSpec, schema: InputSchema, window: WindowSpec, *, seed: int = 0
) -> AdaptedModule:
    """Fold, freeze and adapt a copy of a module; the module itself stays as it is.

    Args:
        module: maps windows, float32 [batch, channels, length], or pictures, float32 [batch, channels,
            height, width], to logits, in evaluation mode.
        spec: where to put which adapter.
        schema: the sensor data that the module takes.
        window: the windows that it takes.
        seed: of the adapters' random initial values.

    Raises:
        AdapterError: a layer cannot carry the adapter.
        ExportError: the module does not take such windows, or a layer is not supported.
    """
    check_layers(module)
    copied = copy.deepcopy(module)
    example = random_windows(schema, window, 4)
    try:
        with torch.no_grad():
            logits = copied(example)
    except Exception as error:  # a user's forward may fail in any way
        raise ExportError(
            f"the module does not take windows of {list(example.shape)} [batch, channels, {_axes(schema)}]: "
            f"{error}",
            "build it for the channels and the window length, or the picture's size, of the schema",
        ) from error
    check_logits(logits, len(example))
    keep = {*spec.layers, spec.head}
    fold_batch_norm(copied, example, {name for name in keep if name})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return insert(copied, spec, example)


def random_windows(schema: InputSchema, window: WindowSpec, count: int) -> Tensor:
    """Standard normal windows or pictures, float32 [count, *input_shape], equal in every call."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(count, *schema.input_shape(window), generator=random)


def _axes(schema: InputSchema) -> str:
    return "height, width" if schema.of_images else "length"


def export(
    module: AdaptedModule,
    schema: InputSchema,
    window: WindowSpec,
    key: PrivateKey,
    *,
    name: str,
    version: int = 1,
    batch: int = BATCH,
    windows: Tensor | None = None,
    front: bytes | None = None,
    calibration: Calibration | None = None,
    engines: Sequence[str] = (),
    training_python: Path | None = None,
    metrics: Mapping[str, float] | None = None,
    description: str = "",
    expires: float = 0.0,
) -> bytes:
    """Write a signed model package.

    Args:
        module: in evaluation mode.
        schema: the sensor data that the module takes; its classes are the logits.
        window: the windows that it takes.
        key: the publisher's.
        name: human name of the package.
        version: grows with every package of the same name.
        batch: rows of every graph input.
        windows: real windows to measure parity on, float32 [n, *input_shape]; random ones if None.
        front: a frozen ONNX graph, "window" -> "cut", for the same batch (adapt.py); the module then takes
            the cut. None if the module takes windows.
        calibration: quantises the prefix to int8, with ranges from these windows; what it costs becomes
            part of the metrics.
        engines: other engines than onnxruntime to write members for.
        training_python: interpreter with onnxruntime-training (onnxruntime_training_export.py).
        metrics: what was measured before the export.
        description: for operators.
        expires: Unix seconds after which no device installs it; 0: never.

    Returns:
        The archive.

    Raises:
        ExportError: the module cannot be exported, or the graphs are not what torch computes.
    """
    if not 1 <= batch <= 4096:
        raise ExportError(f"batch: expected 1 to 4096, got {batch}")
    try:
        channels.check(schema, {})
    except channels.ChannelError as error:
        raise ExportError(f"schema: {error}") from error
    adapter = module.flat_adapter()
    if len(adapter) > MAX_PARAMETERS:
        raise ExportError(
            f"the adapter has {len(adapter):,} parameters, expected at most {MAX_PARAMETERS:,}",
            "use a lower rank or fewer layers",
        )
    examples = random_windows(schema, window, batch)
    if windows is not None and len(windows):
        # Real data come first; random windows fill the batch.
        examples = torch.cat([windows[:batch], examples])[:batch]
    inputs = examples if front is None else _through(front, examples)
    prefix, step, predict, parts = _build(module, inputs)
    feature_size, classes = parts.feature_size, parts.classes
    if front is not None:
        prefix = compose(front, prefix)
    if classes != len(schema.classes):
        raise ExportError(
            f"the module returns {classes} logits, the schema has {len(schema.classes)} classes",
            "replace the head (fresh_classes, --fresh-head) or correct the schema",
        )
    if feature_size > MAX_FEATURES:
        raise ExportError(
            f"the first adapter reads {feature_size:,} numbers per window, expected at most {MAX_FEATURES:,}",
            "move the adapters behind a pooling layer",
        )
    measured = parity.measure(module, (prefix, step, predict), examples, classes, inputs=inputs)
    _check(measured)
    costs: dict[str, float] = {}
    if calibration is not None:
        if "litert" in engines:
            raise ExportError(
                "an int8 prefix is for onnxruntime only, and the litert engine was asked for, too",
                "leave one of the two out",
            )
        quantised = quantise(prefix, calibration, batch)
        both = (prefix, quantised.data)
        costs = quantised.metrics | accuracy_cost(both, predict, adapter.numpy(), calibration, batch)
        prefix = quantised.data
        measured = _worst(measured, _on_int8(module, parts, (prefix, step, predict), examples))
        _check(measured)
    members = {PREFIX: prefix, STEP: step, PREDICT: predict, ADAPTER: write_adapter(adapter.numpy())}
    extra = other_engines(engines, Traced(module, parts, inputs), front, training_python)
    members |= extra.members
    files = {member: hashlib.sha256(content).digest() for member, content in members.items()}
    manifest = Manifest(
        format_version(schema),
        name,
        version,
        schema,
        window,
        _segments(module),
        batch,
        feature_size,
        files[PREFIX],
        files,
        measured,
        {**(metrics or {}), **costs, **extra.errors},
        description,
        engines=extra.engines,
        expires=expires,
    )
    return pack(manifest, members, key)


def _on_int8(
    module: AdaptedModule, parts: Cut, members: tuple[bytes, bytes, bytes], windows: Tensor
) -> Parity:
    """Compare on int8 features: how far these are from torch's is a reported cost, not an error."""
    prefix, step, predict = members
    features = prefix_features(prefix, windows.numpy(), len(windows))
    return parity.measure_step(module, parts, (step, predict), features)


def _worst(first: Parity, second: Parity) -> Parity:
    # np.maximum keeps a NaN, which max() may not.
    return Parity(*(float(np.maximum(getattr(first, name), error)) for name, error in vars(second).items()))


def _check(measured: Parity) -> None:
    for output, error in vars(measured).items():
        if not error <= parity.LIMIT:
            raise ExportError(
                f"parity: expected the {output} within {parity.LIMIT:.0e} of torch, got {error:.1e}",
                "look for layers that mix the samples of a batch, or for values beyond the range of float32",
            )


def _through(front: bytes, windows: Tensor) -> Tensor:
    (inputs,) = graphs.run(graphs.load(front), window=windows.numpy())
    return torch.from_numpy(inputs)


def _build(module: AdaptedModule, windows: Tensor) -> tuple[bytes, bytes, bytes, Cut]:
    """Return prefix, step and predict as ONNX, and the cut that they are made of."""
    batch = len(windows)
    names = module.trainable()
    named = dict(module.named_parameters())
    shapes = [named[name].shape for name in names]
    parts = cut(module, names, windows)
    adapter, features = module.flat_adapter(), torch.zeros(batch, parts.feature_size)
    labels, weights = torch.zeros(batch, dtype=torch.int64), torch.ones(batch)
    return (
        graphs.to_onnx(parts.prefix, (windows,), ["window"], ["features"]),
        graphs.to_onnx(
            trace_step(parts, shapes, batch),
            (adapter, features, labels, weights),
            ["adapter", "features", "labels", "weights"],
            ["loss", "gradient"],
        ),
        graphs.to_onnx(Predict(parts, shapes), (adapter, features), ["adapter", "features"], ["logits"]),
        parts,
    )


def _segments(module: AdaptedModule) -> tuple[Segment, ...]:
    named = dict(module.named_parameters())
    return tuple(
        Segment(segment.name, sum(named[name].numel() for name in segment.parameters))
        for segment in module.segments
    )
