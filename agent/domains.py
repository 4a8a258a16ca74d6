"""Which of a release's adapters a device goes on from: the one that fits its own windows best.

As in IFCA (Ghosh et al. 2020, arXiv:2006.04088), but a device stays where it is unless another domain is
better by more than luck: with few windows the best of several would change from release to release. A device
without labels goes where the discriminant head finds its windows likeliest.
"""

import numpy as np
from numpy.typing import NDArray

from agent import discriminant, gate
from agent.dataset import Labelled
from agent.engine import Engine, Floats
from agent.objective import comparable_losses
from protocol.discriminant import Statistics
from protocol.domains import adapter_of
from protocol.evidence import chance
from protocol.package import DISCRIMINANT, Manifest

DOUBT = 0.1
"""Largest chance that another domain is better by luck alone at which the device goes over to it."""


def choose(engine: Engine, stack: Floats, windows: Labelled, held: int | None) -> int:
    """Choose a domain.

    Args:
        engine: computes on the adapters.
        stack: the release's adapters, float32 [domains * parameters].
        windows: all labelled windows of the device; without any it stays where it is.
        held: domain of the release before; None: it had none, or other domains.
    """
    count = stack.size // engine.parameters
    if count == 1 or not len(windows):
        return 0 if held is None or held >= count else held
    losses = [
        comparable_losses(
            engine.predict(adapter_of(stack, engine.parameters, domain), windows.features), windows.labels
        )
        for domain in range(count)
    ]
    return _unless_by_luck(losses, held)


def likeliest(engine: Engine, manifest: Manifest, stack: Floats, features: Floats, held: int | None) -> int:
    """Choose a domain for a device without labels: that in which its windows are what devices have.

    Args:
        engine: embeds.
        manifest: of the package, which has a discriminant head.
        stack: the release's adapters, float32 [domains * parameters].
        features: of windows, float32 [n, feature_size]; without any it stays where it is.
        held: domain of the release before; None: it had none, or other domains.
    """
    count, part = stack.size // engine.parameters, manifest.task_slices()[DISCRIMINANT]
    if count == 1 or not len(features):
        return 0 if held is None or held >= count else held
    embedded = engine.embed(features)
    losses = []
    for domain in range(count):
        head = adapter_of(stack, engine.parameters, domain)[part]
        statistics = Statistics.of(head, engine.embedding_size)
        losses.append(-discriminant.log_likelihoods(statistics, embedded) / engine.embedding_size)
    return _unless_by_luck(losses, held)


def _unless_by_luck(losses: list[NDArray[np.float64]], held: int | None) -> int:
    """The domain of least loss, of losses by domain, float64 [n]; the one held, where luck would do."""
    best = int(np.argmin([gate.mean(loss) for loss in losses]))
    if held is None or held >= len(losses) or best == held:
        return best
    return best if chance(gate.gains(losses[held], losses[best])) <= DOUBT else held
