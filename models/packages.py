"""Model packages from the outside: what a package says of itself, and whether it holds.

Verification does what a device does before it trusts a package, and more: it runs every graph once.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import onnx

from models import graphs
from models.errors import ModelError
from protocol.errors import ProtocolError, SignatureError
from protocol.package import EMBEDDING, PREDICT, PREFIX, STEP, Manifest, ModelPackage, unpack
from protocol.signing import PublicKey

DOMAINS = ("", "ai.onnx")
"""Operator sets that every onnxruntime has."""


def describe(data: bytes, publisher: PublicKey | None) -> dict[str, Any]:
    """Return what a package says of itself, as plain data for a table or JSON.

    Args:
        data: the archive.
        publisher: whose signature to check; None leaves it unchecked.

    Raises:
        ModelError: the archive is malformed.
    """
    signature = "not checked (no publisher given)"
    try:
        package = unpack(data, None)
        if publisher is not None:
            unpack(data, publisher)
            signature = f"good, by {publisher.raw.hex()}"
    except SignatureError as error:
        signature = f"BAD: {error}"
    except ProtocolError as error:
        raise ModelError(str(error)) from error
    manifest = package.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "description": manifest.description,
        "sha256": package.sha256.hex(),
        "bytes": len(data),
        "signature": signature,
        "schema": {name: value for name, value in asdict(manifest.schema).items() if value is not None},
        "window": {**vars(manifest.window)},
        "parameters": manifest.parameters,
        "segments": {segment.name: segment.size for segment in manifest.segments},
        "tasks": manifest.tasks,
        "batch": manifest.batch,
        "feature_size": manifest.feature_size,
        "backbone_sha256": manifest.backbone_sha256.hex(),
        "engines": manifest.engines,
        "expires": manifest.expires or None,
        "members": {name: len(content) for name, content in sorted(package.members.items())},
        "parity": {**vars(manifest.parity)},
        "metrics": dict(sorted(manifest.metrics.items())),
    }


def verify(data: bytes, publisher: PublicKey) -> ModelPackage:
    """Check a package's signature, hashes and graphs, and run every graph once.

    Raises:
        ModelError: something does not hold; the message says what.
    """
    try:
        package = unpack(data, publisher)
    except ProtocolError as error:
        raise ModelError(str(error)) from error
    sessions = {}
    for member, _, _ in _expected(package.manifest):
        try:
            model = onnx.load_from_string(package.members[member])
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:  # hostile bytes: protobuf and the checker raise all kinds
            raise ModelError(f"{member}: not a valid ONNX graph: {_first_line(error)}") from error
        foreign = {node.domain for node in model.graph.node} - set(DOMAINS)
        if foreign or model.functions:
            raise ModelError(f"{member}: expected standard operators only, got {sorted(foreign)}")
        try:
            sessions[member] = graphs.load(package.members[member])
        except Exception as error:
            raise ModelError(f"{member}: onnxruntime refuses it: {_first_line(error)}") from error
    for member, inputs, outputs in _expected(package.manifest):
        _run(member, sessions[member], inputs, outputs)
    return package


Shapes = dict[str, tuple[str, tuple[int, ...]]]


def _expected(manifest: Manifest) -> list[tuple[str, Shapes, Shapes]]:
    """Inputs and outputs of every graph, with types and shapes, as protocol/package.py defines them."""
    batch, width = manifest.batch, manifest.graph_parameters
    classes = len(manifest.schema.classes)
    adapter: Shapes = {"adapter": ("float32", (width,))}
    features: Shapes = {"features": ("float32", (batch, manifest.feature_size))}
    rows: Shapes = {"labels": ("int64", (batch,)), "weights": ("float32", (batch,))}
    window: Shapes = {"window": ("float32", (batch, *manifest.input_shape))}
    embedding: Shapes = {"embedding": ("float32", (batch, manifest.embedding_size))}
    return [
        (PREFIX, window, features),
        (STEP, adapter | features | rows, {"loss": ("float32", ()), "gradient": ("float32", (width,))}),
        (PREDICT, adapter | features, {"logits": ("float32", (batch, classes))}),
        *([(EMBEDDING, features, embedding)] if manifest.embedding_size else []),
    ]


def _run(member: str, session: Any, inputs: Shapes, outputs: Shapes) -> None:
    found = {value.name for value in session.get_inputs()}, {value.name for value in session.get_outputs()}
    if found != (set(inputs), set(outputs)):
        raise ModelError(
            f"{member}: expected inputs {sorted(inputs)} and outputs {sorted(outputs)}, "
            f"got {sorted(found[0])} and {sorted(found[1])}"
        )
    values = {name: np.zeros(shape, dtype) for name, (dtype, shape) in inputs.items()}
    try:
        results = session.run(list(outputs), values)
    except Exception as error:
        raise ModelError(f"{member}: does not run: {_first_line(error)}") from error
    for (name, (dtype, shape)), result in zip(outputs.items(), results, strict=True):
        if result.dtype != dtype or result.shape != shape:
            raise ModelError(
                f"{member}: {name}: expected {dtype} {list(shape)}, got {result.dtype} {list(result.shape)}"
            )
        if not np.isfinite(result).all():
            raise ModelError(f"{member}: {name}: NaN or infinite for zero inputs and zero weights")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
