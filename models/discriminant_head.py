"""A discriminant head, put behind the adapter of a finished package.

What the head means, protocol/discriminant.py says; devices compute on the embedding that embedding.py writes.
The package brings the statistics of its source devices, so that a federation has something to begin with.
"""

from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from models import embedding, graphs
from models.errors import ModelError
from models.prefix_quantisation import features as prefix_features
from protocol import discriminant
from protocol.discriminant import LARGEST_BETWEEN, Statistics
from protocol.errors import ProtocolError
from protocol.package import (
    ADAPTER,
    ANOMALY,
    DISCRIMINANT,
    EMBEDDING,
    MAX_PARAMETERS,
    PREDICT,
    PREFIX,
    Segment,
    pack,
    unpack,
    write_adapter,
)
from protocol.signing import PrivateKey

DIMENSION = 128
MOST_WINDOWS = 4096
"""Of the source devices, to measure scatter on."""


@dataclass(frozen=True, eq=False)
class Sources:
    """Labelled windows of source devices."""

    windows: NDArray[np.float32]
    """float32 [n, *input_shape], as the prefix takes them."""
    labels: NDArray[np.int64]
    """int64 [n]."""
    groups: NDArray[np.int64]
    """int64 [n]: windows of one device and class have one number."""

    def some(self) -> "Sources":
        """At most MOST_WINDOWS of them, always the same."""
        chosen = np.random.Generator(np.random.PCG64(0)).permutation(len(self.labels))[:MOST_WINDOWS]
        return Sources(self.windows[chosen], self.labels[chosen], self.groups[chosen])


def add_discriminant_head(
    data: bytes, dimension: int, key: PrivateKey, sources: Sources, where: str = embedding.FEATURES
) -> bytes:
    """Write a package anew with a discriminant head.

    Args:
        data: a package without any head behind the graphs' segments.
        dimension: of the embedding, at most.
        key: the publisher's.
        sources: labelled windows.
        where: in the network the embedding is taken from: one of embedding.FEATURES, FIRST and LAST.

    Raises:
        ModelError: the package has a head already, the windows are too few, or the head would be too large.
    """
    try:
        package = unpack(data, None)
    except ProtocolError as error:
        raise ModelError(str(error)) from error
    manifest, sources = package.manifest, sources.some()
    if {DISCRIMINANT, ANOMALY} & set(manifest.tasks):
        raise ModelError("the package has a head already", "add the discriminant head first, and once")
    if not 2 <= dimension <= discriminant.MAX_DIMENSION:
        raise ModelError(
            f"discriminant: expected 2 to {discriminant.MAX_DIMENSION} dimensions, got {dimension}"
        )
    if len(sources.labels) - len(np.unique(sources.groups)) < 2:
        raise ModelError("discriminant: expected several labelled windows of a class", "record more data")
    features = prefix_features(package.members[PREFIX], sources.windows, manifest.batch)
    found = embedding.raw(package.members[PREDICT], package.adapter, where)
    graph = embedding.finish(found, found.run(features), sources.groups, dimension)
    embedded = embedding.run_in_batches(graphs.load(graph), features, manifest.batch).astype(np.float64)
    head = initial_statistics(embedded, sources, len(manifest.schema.classes)).head()
    sizes = discriminant.sizes(embedded.shape[1], len(manifest.schema.classes))
    if manifest.parameters + len(head) > MAX_PARAMETERS:
        raise ModelError(
            f"discriminant: expected at most {MAX_PARAMETERS:,} parameters in all, got "
            f"{manifest.parameters + len(head):,}",
            "use fewer dimensions",
        )
    members = {
        **package.members,
        ADAPTER: write_adapter(np.concatenate([package.adapter, head])),
        EMBEDDING: graph,
    }
    extended = replace(
        manifest,
        segments=(*manifest.segments, *(Segment(name, size) for name, size in sizes.items())),
        tasks=(*manifest.tasks, DISCRIMINANT),
        files={name: sha256(content).digest() for name, content in members.items()},
    )
    return pack(extended, members, key)


def initial_statistics(embedded: NDArray[np.float64], sources: Sources, classes: int) -> Statistics:
    """What source devices say, where nothing is known of how far other devices' classes are off.

    Args:
        embedded: float64 [n, dimension].
        sources: whose windows they are.
        classes: how many there are; one that no source device has is put where all windows are.
    """
    scatter = embedding.deviations(embedded, sources.groups)
    means = np.zeros((classes, embedded.shape[1]))
    for label in np.unique(sources.labels):
        mine = sources.labels == label
        groups = np.unique(sources.groups[mine])
        means[label] = np.mean([embedded[sources.groups == group].mean(axis=0) for group in groups], axis=0)
    return Statistics(scatter.T @ scatter / len(scatter), means, np.full(classes, LARGEST_BETWEEN))
