"""How the server makes one difference of a round's updates, and a step of that difference."""

from dataclasses import dataclass

from protocol.domains import MAX_DOMAINS
from protocol.errors import shown
from protocol.field_checks import check_range

RULES = (
    "mean",
    "bounded_mean",
    "trimmed_mean",
    "median",
    "geometric_median",
    "centered_clipping",
    "multi_krum",
)
SERVER_OPTIMIZERS = ("average", "adam")


@dataclass(frozen=True)
class AggregationPolicy:
    """Rule and server optimiser; a round keeps those that it was opened with."""

    rule: str = "bounded_mean"
    """"mean", "bounded_mean", "trimmed_mean", "median", "geometric_median", "centered_clipping" or
    "multi_krum"."""
    assumed_attackers: float = 0.2
    """Share of the updates that may be hostile: "trimmed_mean" leaves out as many at each end of every
    parameter, "multi_krum" as many altogether."""
    clipping_radius: float = 0.0
    """L2 distance from the centre beyond which "centered_clipping" pulls an update in; 0: the median distance
    of the round's updates."""
    iterations: int = 8
    """Of "geometric_median" and "centered_clipping"."""
    memory_mib: int = 64
    """MiB of decoded updates that a rule other than "mean" holds in memory; more lie in a temporary file."""
    server_optimizer: str = "average"
    """"average": the release moves by the difference; "adam": by a step of FedAdam along it."""
    learning_rate: float = 0.01
    """Of "adam"."""
    beta1: float = 0.9
    """Of "adam": what remains of the mean of the differences."""
    beta2: float = 0.99
    """Of "adam": what remains of the mean of their squares."""
    tau: float = 0.001
    """Of "adam": added to the root of the mean of squares; larger adapts less."""
    maximum_domains: int = MAX_DOMAINS
    """Most domains that the federation may be split into, where the devices' updates show that it is several;
    1: it never is."""

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule: expected one of {', '.join(RULES)}, got {shown(self.rule)}")
        if self.server_optimizer not in SERVER_OPTIMIZERS:
            raise ValueError(
                f"server_optimizer: expected average or adam, got {shown(self.server_optimizer)}"
            )
        check_range("assumed_attackers", self.assumed_attackers, 0, 0.49)
        check_range("clipping_radius", self.clipping_radius, 0, 1000)
        check_range("iterations", self.iterations, 1, 100)
        check_range("memory_mib", self.memory_mib, 1, 1 << 16)
        check_range("learning_rate", self.learning_rate, 1e-8, 10)
        check_range("beta1", self.beta1, 0, 0.9999)
        check_range("beta2", self.beta2, 0, 0.99999)
        check_range("tau", self.tau, 1e-8, 1)
        check_range("maximum_domains", self.maximum_domains, 1, MAX_DOMAINS)
