"""What a device has to learn from, as its feature caches hand it over."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from agent.dataset import Labelled


@dataclass(frozen=True)
class Inventory:
    """The windows, or pictures, of a device at one moment."""

    labelled: Labelled
    unlabelled_windows: int
    fingerprint: str
    """Changes when the labelled windows change."""


def fingerprint(labelled: Labelled, names: Iterable[str]) -> str:
    """Name a set of labelled windows by their labels, their places and the names of where they come from."""
    digest = hashlib.sha256()
    for array in (labelled.labels, labelled.recording, labelled.start):
        digest.update(array.tobytes())
    digest.update("".join(names).encode())
    return digest.hexdigest()
