"""Several adapters in one release: one per domain, stacked in one vector.

A domain is a group of devices whose data are alike. A release holds the adapters of all domains one after
another, so it has one number, one hash and one difference to the release before, and a device that changes
its domain needs nothing more. A release of one adapter that is the base of a release of several stands for
all of them: that is how a federation is split.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ArtifactError

MAX_DOMAINS = 8


def stacked(segments: Iterable[slice], parameters: int, domains: int) -> list[slice]:
    """Segments of a stacked vector: those of one adapter, `domains` times.

    Args:
        segments: of one adapter.
        parameters: of one adapter.
        domains: how many are stacked.
    """
    parts = list(segments)
    return [
        slice(part.start + domain * parameters, part.stop + domain * parameters)
        for domain in range(domains)
        for part in parts
    ]


def restacked(base: NDArray[np.float32], parameters: int, domains: int) -> NDArray[np.float32]:
    """The base of a release of `domains` adapters, float32 [domains * parameters].

    Args:
        base: as many adapters, or one that stands for all.
        parameters: of one adapter.
        domains: how many the release holds.

    Raises:
        ArtifactError: it has another size.
    """
    if base.size == parameters * domains:
        return base
    if base.size != parameters:
        raise ArtifactError(
            f"expected a base of {parameters} or {parameters * domains} parameters, got {base.size}"
        )
    return np.tile(base, domains)


def adapter_of(stack: NDArray[np.float32], parameters: int, domain: int) -> NDArray[np.float32]:
    """The adapter of a domain in a stacked vector, float32 [parameters].

    Raises:
        ArtifactError: there is no such domain.
    """
    if not 0 <= domain < stack.size // parameters:
        raise ArtifactError(f"expected a domain up to {stack.size // parameters - 1}, got {domain}")
    return stack[domain * parameters : (domain + 1) * parameters]
