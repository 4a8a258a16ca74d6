"""Aggregation rules: from the updates of a round to one difference, in integers throughout.

All take int64 vectors in units of 2**-30 and give such a vector, and none depends on the order in which the
updates came: sums are sums of integers, and what chooses among updates breaks ties by their bytes. So each
rule has the same bits after a restart, in replay, and on every machine.
"""

from collections.abc import Callable, Mapping

from server.aggregation import WeightedMean
from server.rules.clipping import BoundedMean, CenteredClipping
from server.rules.coordinates import CoordinateMedian, TrimmedMean
from server.rules.geometric_median import GeometricMedian
from server.rules.krum import MultiKrum
from server.rules.policy import AggregationPolicy
from server.rules.rule import Rule

_RULES: Mapping[str, Callable[[int, AggregationPolicy], Rule]] = {
    "mean": lambda parameters, _: WeightedMean(parameters),
    "bounded_mean": BoundedMean,
    "trimmed_mean": TrimmedMean,
    "median": CoordinateMedian,
    "geometric_median": GeometricMedian,
    "centered_clipping": CenteredClipping,
    "multi_krum": MultiKrum,
}


def make(policy: AggregationPolicy, parameters: int) -> Rule:
    """Begin to aggregate a round by the rule that its policy names.

    Args:
        policy: of the round.
        parameters: of the adapter.
    """
    return _RULES[policy.rule](parameters, policy)
