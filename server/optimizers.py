"""The server's optimiser: how far a release moves along the aggregate of its round.

FedAdam (Reddi et al. 2021, arXiv:2003.00295, algorithm 2) in float64. Each operation is on single numbers,
which IEEE 754 rounds alike everywhere, and nothing is summed over parameters: so the same rounds give the
same bits.
"""

import numpy as np
from numpy.typing import NDArray

from protocol.quantisation import FRACTION_BITS, VALUE_BITS, to_float
from server.rules.policy import AggregationPolicy

Moments = NDArray[np.float64]
"""float64 [2, parameters]: mean of the differences and of their squares."""
_LARGEST = (1 << (VALUE_BITS - 1)) - 1


def moments(policy: AggregationPolicy, parameters: int, before: Moments | None) -> Moments | None:
    """What an optimiser starts a round with; None: it keeps nothing.

    Args:
        policy: of the round.
        parameters: of the adapter.
        before: what the release before kept; None: nothing.
    """
    if policy.server_optimizer == "average":
        return None
    if before is not None:
        return before
    return np.stack([np.zeros(parameters), np.full(parameters, policy.tau * policy.tau)])


def step(
    policy: AggregationPolicy, difference: NDArray[np.int64], before: Moments | None
) -> tuple[NDArray[np.int64], Moments | None]:
    """Turn the aggregate of a round into what the release moves by.

    Args:
        policy: of the round.
        difference: the aggregate, int64 [parameters] in units of 2**-30.
        before: moments of the release before; None: there are none, it starts with them.

    Returns:
        What to add, int64 [parameters] in units of 2**-30, and the moments to keep; None: there are none.
    """
    held = moments(policy, difference.size, before)
    if held is None:
        return difference, None
    gradient = to_float(difference)
    first = policy.beta1 * held[0] + (1 - policy.beta1) * gradient
    second = policy.beta2 * held[1] + (1 - policy.beta2) * (gradient * gradient)
    moved = policy.learning_rate * first / (np.sqrt(second) + policy.tau)
    fixed = np.rint(np.ldexp(moved, FRACTION_BITS))
    return np.clip(fixed, -_LARGEST, _LARGEST).astype(np.int64), np.stack([first, second])
