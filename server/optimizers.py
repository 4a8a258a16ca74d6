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


def step(
    policy: AggregationPolicy, difference: NDArray[np.int64], moments: Moments | None
) -> tuple[NDArray[np.int64], Moments | None]:
    """Turn the aggregate of a round into what the release moves by.

    Args:
        policy: of the round.
        difference: the aggregate, int64 [parameters] in units of 2**-30.
        moments: of the release before; None: there are none, it starts with them.

    Returns:
        What to add, int64 [parameters] in units of 2**-30, and the moments to keep; None: there are none.
    """
    if policy.server_optimizer == "average":
        return difference, None
    gradient = to_float(difference)
    if moments is None:
        moments = np.stack([np.zeros(difference.size), np.full(difference.size, policy.tau * policy.tau)])
    first = policy.beta1 * moments[0] + (1 - policy.beta1) * gradient
    second = policy.beta2 * moments[1] + (1 - policy.beta2) * (gradient * gradient)
    moved = policy.learning_rate * first / (np.sqrt(second) + policy.tau)
    fixed = np.rint(np.ldexp(moved, FRACTION_BITS))
    return np.clip(fixed, -_LARGEST, _LARGEST).astype(np.int64), np.stack([first, second])
