"""What a device keeps of an adopted release in figures: for its report, its status and its next start."""

from collections.abc import Mapping

from agent import ensemble
from agent.learner import Learned, Material
from protocol.messages import Release


def facts(release: Release, domain: int, material: Material, learned: Learned) -> Mapping[str, str]:
    """By name, texts for the store.

    Args:
        release: that was adopted.
        domain: the one of its adapters that the device went on from.
        material: what it was trained and judged on.
        learned: what came out.
    """
    verdict = learned.verdict
    return {
        "domain": str(domain),
        "domains": str(release.domains),
        "fingerprint": material.fingerprint,
        "windows": str(learned.personal.windows),
        "loss_before": repr(learned.personal.loss_before),
        "loss_after": repr(learned.personal.loss_after),
        "labelled_windows": str(len(material.labelled)),
        "unlabelled_windows": str(material.unlabelled_windows),
        "holdout_windows": str(len(material.holdout)),
        "gain": repr(verdict.decision.gain),
        # What was said of a choice that the device does not have any more must not stay.
        **{f"{choice}_gain": repr(verdict.gains.get(choice, 0.0)) for choice in ensemble.MEMBERS},
        **ensemble.as_facts(verdict.scales),
    }
