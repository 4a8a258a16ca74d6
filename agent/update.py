"""From a trained adapter to the bytes of an update: difference, clip, quantise, code, sign."""

from dataclasses import dataclass

import numpy as np

from agent.engine import Floats
from protocol import entropy_coding
from protocol.charter import TrainingPolicy
from protocol.messages import BASE_BYTES, Round, Update, sign_message
from protocol.package import Manifest
from protocol.quantisation import dither_seed, quantise
from protocol.signing import PrivateKey
from protocol.topics import Topics


def clip(difference: Floats, clipping_bound: float) -> Floats:
    """Scale a vector, float32 [parameters], down to an L2 norm of at most `clipping_bound`."""
    norm = float(np.linalg.norm(difference.astype(np.float64)))
    if norm <= clipping_bound:
        return difference
    return (difference * (clipping_bound / norm)).astype(np.float32)


def without_heads(manifest: Manifest, difference: Floats) -> Floats:
    """A difference, float32 [parameters], without what it says of the heads behind the graphs' segments."""
    kept: Floats = difference.copy()
    kept[manifest.graph_parameters :] = np.float32(0)
    return kept


@dataclass(frozen=True)
class Contribution:
    """What an update tells."""

    difference: Floats
    """To the release's adapter, float32 [parameters]."""
    windows: int
    """Labelled windows trained on."""
    loss_before: float
    """Training loss of the release's adapter."""
    loss_after: float
    """Training loss of the adapter after local training."""
    domain: int = 0
    """Whose adapter in the release it started from."""


def make_update(
    current: Round,
    contribution: Contribution,
    manifest: Manifest,
    policy: TrainingPolicy,
    *,
    topics: Topics,
    device: str,
    key: PrivateKey,
) -> bytes:
    """Sign the update of a round.

    Args:
        current: the round that is answered.
        contribution: what to tell; its difference is clipped.
        manifest: of the installed package.
        policy: clipping bound and quantisation step.
        topics: of the federation.
        device: this device.
        key: the device's key.
    """
    difference = clip(contribution.difference, policy.clipping_bound)
    seed = dither_seed(topics.federation, device, current.number, current.base)
    quantised = quantise(
        difference, manifest.slices().values(), seed, manifest.step_ratios(policy.step_ratio)
    )
    update = Update(
        current.number,
        current.base[:BASE_BYTES],
        min(contribution.windows, policy.maximum_weight),
        quantised.steps,
        entropy_coding.encode(quantised.symbols),
        _short(contribution.loss_before),
        _short(contribution.loss_after),
        contribution.domain,
    )
    return sign_message(update, key, topics.up(device, "update"))


def _short(value: float) -> float:
    """Round to half precision, which CBOR writes in three bytes."""
    return float(np.float16(min(value, 60_000.0)))
