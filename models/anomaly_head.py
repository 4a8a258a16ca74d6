"""A head for anomaly detection, put behind the adapter of a finished package.

The graphs stay as they are: the head reads the features that the prefix gives, and devices compute on it
without a graph. What the head means, agent/density.py says. No torch here.
"""

from dataclasses import replace
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from protocol.errors import ProtocolError
from protocol.package import ADAPTER, ANOMALY, MAX_PARAMETERS, Segment, pack, unpack, write_adapter
from protocol.signing import PrivateKey

INITIAL_NORM = 1e-3
"""Of each column of a head that knows nothing: no direction then counts more than another."""


def initial_head(feature_size: int, rank: int) -> NDArray[np.float32]:
    """A head that knows nothing, float32 [feature_size * rank]."""
    random = np.random.Generator(np.random.PCG64([feature_size, rank]))
    directions, _ = np.linalg.qr(random.normal(size=(feature_size, rank)))
    return np.asarray(INITIAL_NORM * directions.reshape(-1), np.float32)


def add_anomaly_head(data: bytes, rank: int, key: PrivateKey) -> bytes:
    """Write a package anew with a head for anomaly detection.

    Args:
        data: a package without one.
        rank: directions in which normal windows may vary together, below the number of features.
        key: the publisher's.

    Raises:
        ModelError: the package has such a head, is for pictures, or the head would be too large.
    """
    try:
        package = unpack(data, None)
    except ProtocolError as error:
        raise ModelError(str(error)) from error
    manifest = package.manifest
    size = manifest.feature_size * rank
    if ANOMALY in manifest.slices():
        raise ModelError(f"the package has a segment {ANOMALY!r} already", "leave --anomaly-rank out")
    if not 1 <= rank < manifest.feature_size or manifest.parameters + size > MAX_PARAMETERS:
        raise ModelError(
            f"anomaly rank: expected 1 to below {manifest.feature_size}, and at most {MAX_PARAMETERS:,} "
            f"parameters in all, got {rank} and {manifest.parameters + size:,}"
        )
    adapter = np.concatenate([package.adapter, initial_head(manifest.feature_size, rank)])
    members = {**package.members, ADAPTER: write_adapter(adapter)}
    try:
        extended = replace(
            manifest,
            segments=(*manifest.segments, Segment(ANOMALY, size)),
            tasks=(*manifest.tasks, ANOMALY),
            files={**manifest.files, ADAPTER: sha256(members[ADAPTER]).digest()},
        )
    except ValueError as error:
        raise ModelError(str(error)) from error
    return pack(extended, members, key)
