"""What a row of the ledger holds: packages, rounds and releases, and how a release becomes a row."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sql
from numpy.typing import NDArray

from protocol.messages import adapter_bytes
from protocol.release_coding import Difference
from protocol.signing import PublicKey
from server.errors import ServerError


@dataclass(frozen=True)
class PackageRecord:
    """A package that was pushed."""

    version: int
    sha256: bytes
    name: str
    pushed_at: float
    rollback: bytes | None = None
    """Signed order to go back to it from a newer version (see protocol/rollback.py)."""


@dataclass(frozen=True)
class ReleaseRecord:
    """A release."""

    number: int
    package_version: int
    round: int | None
    parent: bytes
    sha256: bytes
    adapter: NDArray[np.float32]
    """Of all domains, stacked, float32 [domains * parameters]."""
    created_at: float
    updates: int
    weight: int
    metrics: Mapping[str, float]
    default_choice: str = "local"
    difference: Difference | None = None
    """To the adapter of `parent`, as devices decode it; None: a package's initial adapter."""
    residual: NDArray[np.int64] | int = 0
    """What the difference leaves over for the next one, int64 [domains * parameters] in units of 2**-30; 0:
    nothing."""
    moments: NDArray[np.float64] | None = None
    """Of the server's optimiser, float64 [2, domains * parameters]; None: it keeps none."""
    withdraws: int | None = None
    """Number of the release before, which this one withdraws: it is the one before that once more."""
    restores: int | None = None
    """Number of the release whose adapter this is once more."""
    domains: int = 1
    """Adapters that it holds."""
    placement: Mapping[str, int] | None = None
    """Domain of each device whose updates split the federation with this release; None: it split nothing."""


@dataclass(frozen=True)
class RoundRecord:
    """A round, open while `closed_at` is None."""

    number: int
    package_version: int
    base_release: int
    cohort: tuple[str, ...]
    opened_at: float
    deadline: float
    closed_at: float | None = None
    outcome: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the TrainingPolicy that its updates are held to."""
    release_step_ratio: float = 1.5
    """Quantisation step of its release in root mean squares of the difference."""
    staleness: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the StalenessPolicy that it takes late updates by."""
    aggregation: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the AggregationPolicy that makes its release."""
    pruned_at: float | None = None
    """When its updates were forgotten; none of it is accepted from then on."""


class JournalledUpdate(NamedTuple):
    """An update that was accepted."""

    device: str
    envelope: bytes
    key: PublicKey
    """That it was accepted under, whatever became of the device since."""
    round: int
    """The round that it answers; it may be counted in a later one."""


def release_row(release: ReleaseRecord) -> dict[str, Any]:
    """The columns of a release."""
    values = {field.name: getattr(release, field.name) for field in fields(release)}
    difference, residual = values.pop("difference"), np.asarray(values.pop("residual"), "<i8")
    moments = values.pop("moments")
    return {
        **values,
        "adapter": adapter_bytes(release.adapter),
        "metrics": dict(release.metrics),
        "placement": sql.null() if release.placement is None else dict(release.placement),
        "steps": difference.steps if difference else None,
        "body": difference.body if difference else None,
        # Most of its bytes are those of small numbers' signs.
        "residual": zlib.compress(residual.tobytes(), 1) if residual.ndim else None,
        "moments": np.asarray(moments, "<f8").tobytes() if moments is not None else None,
    }


def round_record(row: Mapping[str, Any]) -> RoundRecord:
    """The round of a row."""
    return RoundRecord(**{**row, "cohort": tuple(row["cohort"])})


def release_record(row: Mapping[str, Any]) -> ReleaseRecord:
    """The release of a row.

    Raises:
        ServerError: its adapter, residual or moments are not readable.
    """
    values = dict(row)
    steps, body, residual = values.pop("steps"), values.pop("body"), values.pop("residual")
    moments = values.pop("moments")
    try:
        return ReleaseRecord(
            **{**values, "adapter": np.frombuffer(row["adapter"], "<f4")},
            difference=Difference(steps, body) if steps is not None else None,
            residual=np.frombuffer(zlib.decompress(residual), "<i8") if residual is not None else 0,
            moments=_moments(moments, len(row["adapter"])),
        )
    except (ValueError, zlib.error) as error:
        raise ServerError(f"release {row['number']} is damaged in the database: {error}") from error


def _moments(data: bytes | None, adapter_bytes: int) -> NDArray[np.float64] | None:
    """Raises ValueError: they are not two vectors of the adapter's size."""
    if data is None:
        return None
    if len(data) != 4 * adapter_bytes:
        raise ValueError(f"expected moments of {4 * adapter_bytes} bytes, got {len(data)}")
    return np.frombuffer(data, "<f8").reshape(2, -1)
