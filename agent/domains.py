"""Which of a release's adapters a device goes on from: the one that fits its own labelled windows best.

As in IFCA (Ghosh et al. 2020, arXiv:2006.04088), but a device stays where it is unless another domain is
better by more than luck: with few windows the best of several would change from release to release.
"""

import numpy as np

from agent import gate
from agent.dataset import Labelled
from agent.engine import Engine, Floats
from agent.objective import comparable_losses
from protocol.domains import adapter_of
from protocol.evidence import chance

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
    best = int(np.argmin([gate.mean(loss) for loss in losses]))
    if held is None or held >= count or best == held:
        return best
    return best if chance(gate.gains(losses[held], losses[best])) <= DOUBT else held
