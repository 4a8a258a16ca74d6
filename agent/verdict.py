"""What the gate says of the adapters that came out of a release, on the windows that they did not see.

The gate judges adapters that were trained without the held-out windows; the device uses those that were
trained on all of them. A few more windows rarely change which way of learning is better, and with few labels
the windows that a gate keeps for itself are worth more than its choice.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from agent import ensemble, gate
from agent.dataset import Labelled
from agent.engine import Engine, Floats
from agent.ensemble import Ensemble
from agent.objective import comparable_losses

WORSE = 0.01
"""Share of the held-out windows. Who has more of them wrong than training alone has does without the fleet:
a default needs no proof, but it must not be seen to hurt."""


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, and on what."""

    decision: gate.Decision
    gains: Mapping[str, float]
    """By choice, the mean held-out loss of training alone minus that of the choice."""
    scales: Mapping[str, float]
    """By name, what the logits are divided by of each adapter that is used in the ensemble."""

    def used(self, adapters: Mapping[str, Floats]) -> Ensemble:
        """What the device uses, of adapters by name, float32 [parameters] each."""
        return ensemble.together(ensemble.names_in_use(self.decision.choice), adapters, self.scales)


def judge(
    engine: Engine,
    adapters: Mapping[str, Floats],
    training: Labelled,
    holdout: Labelled,
    default: str,
) -> Verdict:
    """Compare the candidates.

    Args:
        engine: predicts.
        adapters: "initial", "global", and "local" and "personal" with windows held out and in full, float32
            [parameters] each; with a discriminant head also the classifier, both ways.
        training: windows that measure the spread of logits where none is held out.
        holdout: windows that the gate decides on.
        default: what it keeps without evidence; the ensemble where the device lacks what that needs.
    """
    features = (holdout if len(holdout) else training).features
    candidates = ensemble.choices(adapters)
    default = default if default in candidates else "ensemble"
    largest = "combined" if "combined" in candidates else "ensemble"
    full = ensemble.names_in_use(largest)
    scales = ensemble.spreads(engine, {*candidates[largest], *full}, adapters, features)
    logits = {
        choice: ensemble.together(names, adapters, scales).logits(engine, holdout.features)
        for choice, names in candidates.items()
    }
    losses = {choice: comparable_losses(found, holdout.labels) for choice, found in logits.items()}
    right = {choice: int((found.argmax(1) == holdout.labels).sum()) for choice, found in logits.items()}
    decision = gate.decide(losses, default)
    if right[decision.choice] < right["local"] - WORSE * len(holdout):
        decision = gate.Decision("local", 0.0)
    return Verdict(
        decision,
        {choice: gate.mean(gate.gains(losses["local"], found)) for choice, found in losses.items()},
        {name: scales[name] for name in full},
    )
