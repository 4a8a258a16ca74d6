"""Anomaly detection on a device, without labels: what is normal, what is learned, which head is used.

The first windows of every recording are taken as normal: a machine is started up, looked at and left to run.
The last of them are held out. They decide which head the device uses, as held-out labels do for
classification, and above which score a window is an anomaly. The density itself is in density.py; messages,
caches and the classifier are not handled here.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agent import gate
from agent.density import Density, Doubles, advance, standardise
from agent.engine import Floats

QUANTILE = 0.95
"""Of the held-out windows' scores, above which a window is an anomaly."""
MINIMUM_REFERENCE = 4
"""Fewer first windows than this say nothing of a recording."""
DEFAULT = "mixed"
"""The head that is used without evidence: half the fleet's and half the device's own step from it. It stands
for the mean of both second moments."""


@dataclass(frozen=True)
class References:
    """The first windows of a device's recordings, as deviations from the earliest of them."""

    training: tuple[Doubles, ...]
    """By recording, float64 [n, feature_size]."""
    held_out: tuple[Doubles, ...]
    """The later ones, float64 [m, feature_size]."""

    @classmethod
    def of(cls, recordings: Sequence[Floats], holdout_fraction: float) -> "References":
        """Divide the first windows of each recording by time.

        Args:
            recordings: by recording, its first windows, float32 [n, feature_size]; too short ones are left
                out.
            holdout_fraction: share of each that is held out, the latest.
        """
        training, held = [], []
        for windows in recordings:
            if len(windows) < MINIMUM_REFERENCE:
                continue
            count = max(2, len(windows) - int(holdout_fraction * len(windows)))
            deviations = standardise(windows, windows[:count])
            training.append(deviations[:count])
            held.append(deviations[count:])
        return cls(tuple(training), tuple(held))

    def __len__(self) -> int:
        """Windows that are trained on."""
        return sum(map(len, self.training))

    def advance(self, head: Floats) -> Floats:
        """Train a head, float32 [feature_size * rank]; without recordings it stays."""
        return advance(head, self.training) if self.training else head

    def choose(self, heads: Mapping[str, Floats], default: str) -> str:
        """Name the head that explains the held-out windows best; the default without evidence.

        Args:
            heads: "local" and others, float32 [feature_size * rank] each.
            default: one of them.
        """
        if not self.held_out:
            return default
        held = np.concatenate(self.held_out)
        losses = {name: Density.of(head, held.shape[1]).losses(held) for name, head in heads.items()}
        return gate.decide(losses, default).choice

    def threshold(self, head: Floats) -> float:
        """The score above which a window is an anomaly; infinite where nothing is held out."""
        held = np.concatenate(self.held_out) if self.held_out else np.zeros((0, 1))
        if not len(held):
            return np.inf
        return float(np.quantile(Density.of(head, held.shape[1]).scores(held), QUANTILE))


NO_REFERENCES = References((), ())


def scores(head: Floats, features: Floats, reference_windows: int) -> Doubles | None:
    """How unusual each window of one recording is, float64 [n]; None: it is too short to tell.

    Args:
        head: float32 [feature_size * rank].
        features: of the recording's windows in order of time, float32 [n, feature_size].
        reference_windows: first windows that are taken as normal.
    """
    reference = features[:reference_windows]
    if len(reference) < MINIMUM_REFERENCE:
        return None
    return Density.of(head, features.shape[1]).scores(standardise(features, reference))


def with_head(adapter: Floats, part: slice, head: Floats) -> Floats:
    """An adapter, float32 [parameters], with another head at `part`; a copy."""
    changed: Floats = adapter.copy()
    changed[part] = head
    return changed


def fingerprint(known: str, recordings: Sequence[Floats]) -> str:
    """Name what a device learns from: its labelled windows, as they are named, and its first windows."""
    digest = hashlib.sha256(known.encode())
    for windows in recordings:
        digest.update(windows.tobytes())
    return digest.hexdigest()
