"""From an adapted module to a signed model package: cut, convert, compare with torch, sign.

    adapted = adapt(module, spec, schema, window)
    data = export(adapted, schema, window, key, name="gearbox", version=1)

A package is refused when its graphs differ from torch by more than parity.LIMIT.
"""

import copy
import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models import graphs, parity
from models.adapters import AdaptedModule, AdapterSpec, insert
from models.errors import ExportError
from models.folding import fold_batch_norm
from models.refusals import check_layers, check_logits
from models.tracing import cut
from models.training_step import Predict, trace_step
from protocol.input_schema import InputSchema, WindowSpec
from protocol.package import (
    ADAPTER,
    FORMAT_VERSION,
    MAX_PARAMETERS,
    PREDICT,
    PREFIX,
    STEP,
    Manifest,
    Segment,
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
        module: maps windows, float32 [batch, channels, length], to logits, in evaluation mode.
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
            f"the module does not take windows of {list(example.shape)} [batch, channels, length]: {error}",
            "build it for the channels and the window length of the schema",
        ) from error
    check_logits(logits, len(example))
    keep = {*spec.layers, spec.head}
    fold_batch_norm(copied, example, {name for name in keep if name})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return insert(copied, spec, example)


def random_windows(schema: InputSchema, window: WindowSpec, count: int) -> Tensor:
    """Standard normal windows, float32 [count, channels, length], equal in every call."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(count, len(schema.channels), window.length, generator=random)


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
    metrics: Mapping[str, float] | None = None,
    description: str = "",
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
        windows: real windows to measure parity on, float32 [n, channels, length]; random ones if None.
        metrics: what was measured before the export.
        description: for operators.

    Returns:
        The archive.

    Raises:
        ExportError: the module cannot be exported, or the graphs are not what torch computes.
    """
    if not 1 <= batch <= 4096:
        raise ExportError(f"batch: expected 1 to 4096, got {batch}")
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
    prefix, step, predict, feature_size, classes = _build(module, examples)
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
    measured = parity.measure(module, (prefix, step, predict), examples, classes)
    for output, error in vars(measured).items():
        if not error <= parity.LIMIT:
            raise ExportError(
                f"parity: expected the {output} within {parity.LIMIT:.0e} of torch, got {error:.1e}",
                "look for layers that mix the samples of a batch, or for values beyond the range of float32",
            )
    members = {PREFIX: prefix, STEP: step, PREDICT: predict, ADAPTER: write_adapter(adapter.numpy())}
    files = {member: hashlib.sha256(content).digest() for member, content in members.items()}
    manifest = Manifest(
        FORMAT_VERSION,
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
        dict(metrics or {}),
        description,
    )
    return pack(manifest, members, key)


def _build(module: AdaptedModule, windows: Tensor) -> tuple[bytes, bytes, bytes, int, int]:
    """Return prefix, step and predict as ONNX, the feature size and the number of logits."""
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
        parts.feature_size,
        parts.classes,
    )


def _segments(module: AdaptedModule) -> tuple[Segment, ...]:
    named = dict(module.named_parameters())
    return tuple(
        Segment(segment.name, sum(named[name].numel() for name in segment.parameters))
        for segment in module.segments
    )
