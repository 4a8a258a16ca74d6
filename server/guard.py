"""The server's guard: whether a release is worse for more of its devices than the charter allows.

Each device keeps out what is worse for it by its own gate. The guard is for the rest: a release that is bad
for most should not be what the next round starts from, nor what a newcomer gets. Devices report by how much
their held-out loss fell from the release before to this one. Two questions must both be answered with more
than luck:

* Is the share of devices that are worse off really above the charter's? Each device counts once, whatever it
  claims, so a minority that lies can withdraw nothing (an exact binomial test).
* Is the fleet worse off on the mean? (the permutation test of protocol/evidence.py, claims capped) Without
  it, a strict charter would go by the noise of few windows.

Five devices can never answer the second one, however bad their windows look.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from protocol.charter import WithdrawalPolicy
from protocol.evidence import SIGNIFICANCE, chance

SHARE_LUCK = 0.1
"""Largest accepted chance that the share is only by luck above the charter's. The other question asks for
SIGNIFICANCE; as much here would let harm pass in small fleets, and measured no better (docs/results.md)."""
CAP = 1.0
"""Nats that a device's claim counts for at most: one that boasts must not outweigh all others."""


@dataclass(frozen=True)
class Evidence:
    """What the devices say of a release, and what follows."""

    release: int
    gains: Mapping[str, float]
    """By device: fall of its held-out loss since the release before, nats, capped."""
    worse: int
    """Devices whose loss rose by more than the policy's tolerance."""
    share_chance: float
    """That so many are worse off although their share is not above the charter's."""
    loss_chance: float
    """That the mean loss rose by mere luck."""
    policy: WithdrawalPolicy

    @property
    def withdraw(self) -> bool:
        """Whether the release must go."""
        return (
            len(self.gains) >= self.policy.minimum_devices
            and self.worse > self.policy.share * len(self.gains)
            and self.share_chance <= SHARE_LUCK
            and self.loss_chance <= SIGNIFICANCE
        )

    @property
    def reason(self) -> str:
        """In a sentence, for operators."""
        mean = -float(np.mean(list(self.gains.values()) or [0.0]))
        return (
            f"worse for {self.worse} of {len(self.gains)} devices, where the charter allows a share of "
            f"{self.policy.share:g}; held-out loss {mean:+.3f} on the mean "
            f"(chance of luck {self.share_chance:.2g} and {self.loss_chance:.2g})"
        )


def judge(reports: Mapping[str, Mapping[str, Any]], release: int, policy: WithdrawalPolicy) -> Evidence:
    """Weigh what devices report on a release.

    Counted are devices that hold windows out and compared it with the release right before: an older one
    differs by more than what is judged.

    Args:
        reports: fields of Report, by device.
        release: its number.
        policy: of the charter.
    """
    gains = {
        device: float(np.clip(figures["release_gain"], -CAP, CAP))
        for device, figures in sorted(reports.items())
        if figures["holdout_windows"] and figures.get("compared_with", -1) == release - 1
    }
    worse = sum(gain < -policy.tolerance for gain in gains.values())
    losses = -np.array(list(gains.values()), np.float64)
    return Evidence(
        release,
        gains,
        worse,
        at_least(worse, len(gains), policy.share),
        chance(losses) if len(losses) else 1.0,
        policy,
    )


def at_least(successes: int, trials: int, share: float) -> float:
    """Chance of so many successes or more in independent trials that each succeed with chance `share`."""
    if successes == 0 or share >= 1:
        return 1.0
    if share <= 0:
        return 0.0
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(count + 1)
        - math.lgamma(trials - count + 1)
        + count * math.log(share)
        + (trials - count) * math.log1p(-share)
        for count in range(successes, trials + 1)
    ]
    return min(1.0, math.fsum(map(math.exp, logs)))
