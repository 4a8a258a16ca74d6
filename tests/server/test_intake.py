"""The intake: an honest update is counted as it was meant, every other one refused with its reason."""

import hashlib
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import entropy_coding
from protocol.charter import StalenessPolicy, TrainingPolicy
from protocol.errors import EncodingError, SignatureError
from protocol.messages import BASE_BYTES, Update, sign_message
from protocol.quantisation import dither_seed, quantise, to_float
from protocol.topics import Topics
from server.intake import Accepted, Lateness, Rejected, RoundTerms, examine, open_update
from tests.builders import PARAMETERS, private_key, tiny_manifest, tiny_members

FEDERATION, DEVICE, NUMBER, BASE = "pumps", "pump-1", 7, b"b" * 32
TOPICS, KEY, POLICY = Topics(FEDERATION), private_key(1), TrainingPolicy()
MANIFEST = tiny_manifest(tiny_members())
RELEASE = 6
CURRENT = RoundTerms(NUMBER, RELEASE, BASE, frozenset({DEVICE, "pump-2"}), POLICY)
ON_TIME = Lateness(RELEASE, StalenessPolicy())
DIFFERENCE = np.array([0.5, -0.25, 0.0, 1.0, 0.125, -0.125], np.float32)


def honest(difference: Any = DIFFERENCE, device: str = DEVICE, **changes: Any) -> Update:
    seed = dither_seed(FEDERATION, device, NUMBER, BASE)
    vector = np.asarray(difference, np.float32)
    quantised = quantise(vector, MANIFEST.slices().values(), seed, POLICY.step_ratio)
    update = Update(
        NUMBER, BASE[:BASE_BYTES], 12, quantised.steps, entropy_coding.encode(quantised.symbols), 0.75, 0.5
    )
    return replace(update, **changes)


def decide(
    update: Update,
    device: str = DEVICE,
    terms: RoundTerms | None = CURRENT,
    lateness: Lateness = ON_TIME,
) -> Accepted | Rejected:
    return examine(update, device, terms, lateness, federation=FEDERATION, manifest=MANIFEST)


def test_an_honest_update_is_accepted_within_half_a_step() -> None:
    accepted = decide(honest())
    assert isinstance(accepted, Accepted)
    assert (accepted.weight, accepted.loss_before, accepted.loss_after) == (12, 0.75, 0.5)
    error = np.abs(to_float(accepted.vector) - DIFFERENCE)
    for part in MANIFEST.slices().values():
        assert error[part].max() <= 0.505 * POLICY.step_ratio * np.sqrt(np.mean(DIFFERENCE[part] ** 2))


def test_an_update_without_change_is_accepted() -> None:
    accepted = decide(honest(np.zeros(PARAMETERS)))
    assert isinstance(accepted, Accepted)
    assert not accepted.vector.any()


@pytest.mark.parametrize(
    ("change", "verdict", "reason"),
    [
        ({"round": NUMBER - 1}, "refused", "expected round 7, got 6"),
        ({"round": NUMBER + 1}, "refused", "expected round 7, got 8"),
        ({"base": b"c" * BASE_BYTES}, "refused", "expected base 6262.*, got 6363"),
        ({"weight": POLICY.maximum_weight + 1}, "refused", "expected a weight up to 4096, got 4097"),
        ({"steps": b"\x00\x00"}, "refused", "expected 2 steps, got 1"),
        ({"steps": b"\xff\xff\xff\xff"}, "refused", "step out of range"),
        ({"steps": bytes(4)}, "refused", "no symbols in a segment without a step"),
        ({"body": b""}, "refused", "lanes"),
        ({"body": b"\x10" + bytes(50)}, "refused", "1 to 4096 distinct symbols"),
        ({"body": entropy_coding.encode(np.zeros(5000, np.int32))}, "refused", "lanes"),
        ({"body": entropy_coding.encode(np.array([1, 5, 3], np.int32))}, "refused", "the entropy-coded body"),
        (
            {"body": entropy_coding.encode(np.full(6, 1 << 20, np.int32))},
            "refused",
            "value of the update is out",
        ),
    ],
)
def test_an_update_that_does_not_fit_is_rejected_with_its_reason(
    change: dict[str, Any], verdict: str, reason: str
) -> None:
    rejected = decide(honest(**change))
    assert isinstance(rejected, Rejected)
    assert rejected.verdict == verdict
    assert re.search(reason, rejected.reason)


def test_a_device_outside_the_cohort_is_refused() -> None:
    assert decide(honest(), "pump-9") == Rejected("refused", "not in the cohort of this round")


def test_an_update_of_a_round_that_nobody_knows_is_late() -> None:
    assert decide(honest(), terms=None) == Rejected("late", "round 7 is closed")


@pytest.mark.parametrize(("staleness", "weight"), [(0, 12), (1, 8), (3, 6), (4, 5)])
def test_a_late_update_weighs_less_with_every_release(staleness: int, weight: int) -> None:
    """12 / sqrt(1 + staleness), rounded down."""
    accepted = decide(honest(), lateness=Lateness(RELEASE + staleness, StalenessPolicy()))
    assert isinstance(accepted, Accepted)
    assert (accepted.weight, accepted.staleness) == (weight, staleness)


def test_a_late_update_counts_with_the_dither_and_bound_of_its_own_round() -> None:
    on_time, late = decide(honest()), decide(honest(), lateness=Lateness(RELEASE + 2, StalenessPolicy()))
    assert isinstance(on_time, Accepted)
    assert isinstance(late, Accepted)
    np.testing.assert_array_equal(on_time.vector, late.vector)


@pytest.mark.parametrize(
    ("maximum", "reason"), [(4, "closed for 5 releases; .* up to 4 releases"), (0, "round 7 is closed$")]
)
def test_an_update_that_is_too_late_is_not_counted(maximum: int, reason: str) -> None:
    rejected = decide(honest(), lateness=Lateness(RELEASE + 5, StalenessPolicy(maximum)))
    assert isinstance(rejected, Rejected)
    assert rejected.verdict == "late"
    assert re.search(reason, rejected.reason)


def test_an_update_longer_than_the_bound_is_scaled_to_it() -> None:
    boastful = quantise(
        np.full(PARAMETERS, 3.5, np.float32),
        MANIFEST.slices().values(),
        dither_seed(FEDERATION, DEVICE, NUMBER, BASE),
        0.01,
    )
    policy = replace(POLICY, clipping_bound=0.5)
    update = replace(honest(), steps=boastful.steps, body=entropy_coding.encode(boastful.symbols))
    accepted = decide(update, terms=replace(CURRENT, policy=policy))
    assert isinstance(accepted, Accepted)
    bound = 0.5 * (1 + POLICY.step_ratio / 2)
    assert 0.9 * bound < np.linalg.norm(to_float(accepted.vector)) <= 1.0001 * bound


def test_an_update_is_opened_only_as_its_device_signed_it() -> None:
    envelope = sign_message(honest(), KEY, TOPICS.up(DEVICE, "update"))
    assert open_update(envelope, KEY.public, TOPICS, DEVICE, 4096) == honest()
    with pytest.raises(SignatureError):
        open_update(envelope, KEY.public, TOPICS, "pump-2", 4096)
    with pytest.raises(SignatureError):
        open_update(envelope, private_key(2).public, TOPICS, DEVICE, 4096)
    with pytest.raises(EncodingError):
        open_update(envelope, KEY.public, TOPICS, DEVICE, 20)


def test_the_same_update_gives_the_same_integers() -> None:
    digests = set()
    for _ in range(3):
        accepted = decide(honest())
        assert isinstance(accepted, Accepted)
        digests.add(hashlib.sha256(accepted.vector.tobytes()).digest())
    assert len(digests) == 1


@settings(max_examples=200)
@given(st.binary(max_size=8), st.binary(max_size=40), st.integers(1, 1 << 16))
def test_hostile_steps_and_bodies_are_bounded_or_refused(steps: bytes, body: bytes, weight: int) -> None:
    decision = decide(honest(steps=steps, body=body, weight=weight))
    if isinstance(decision, Accepted):
        assert decision.weight <= POLICY.maximum_weight
        bound = POLICY.clipping_bound * (1 + POLICY.step_ratio / 2)
        assert np.linalg.norm(to_float(decision.vector)) <= bound + 1e-4
