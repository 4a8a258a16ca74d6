"""From a trained adapter to an update that the server really counts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.update import Contribution, clip, make_update
from protocol.charter import StalenessPolicy, TrainingPolicy
from protocol.messages import Round, Update, verify_message
from protocol.quantisation import to_float
from protocol.topics import Topics
from server.intake import Accepted, Lateness, RoundTerms, examine, open_update
from tests.builders import PARAMETERS, private_key, tiny_manifest, tiny_members

TOPICS, KEY, MANIFEST, POLICY = (
    Topics("pumps"),
    private_key(1),
    tiny_manifest(tiny_members()),
    TrainingPolicy(),
)
CURRENT = Round(3, b"p" * 32, b"b" * 32, ("pump-1", "pump-2"), 0.0)
OPEN = RoundTerms(3, 2, b"b" * 32, frozenset(CURRENT.cohort), POLICY)
ON_TIME = Lateness(2, StalenessPolicy())
BASE = np.linspace(-1, 1, PARAMETERS, dtype=np.float32)


def envelope(difference: object, device: str = "pump-1", windows: int = 12, loss: float = 0.5) -> bytes:
    trained = BASE + np.asarray(difference, np.float32)
    return make_update(
        CURRENT,
        Contribution(trained - BASE, windows, loss, 0.25),
        MANIFEST,
        POLICY,
        topics=TOPICS,
        device=device,
        key=KEY,
    )


def examined(envelope: bytes, device: str = "pump-1") -> Accepted:
    update = open_update(envelope, KEY.public, TOPICS, device, 4096)
    decision = examine(update, device, OPEN, ON_TIME, federation="pumps", manifest=MANIFEST)
    assert isinstance(decision, Accepted), decision
    return decision


def test_a_short_vector_is_not_clipped() -> None:
    vector = np.array([0.6, -0.8], np.float32)
    assert clip(vector, 1.0) is vector or clip(vector, 1.0).tolist() == pytest.approx([0.6, -0.8])
    assert clip(vector, 2.0) is vector


def test_a_long_vector_is_scaled_to_the_bound() -> None:
    clipped = clip(np.array([30.0, -40.0], np.float32), 1.0)
    assert clipped.tolist() == pytest.approx([0.6, -0.8])
    assert clipped.dtype == np.float32


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20).map(
        lambda v: np.array(v, np.float32)
    ),
    st.floats(1e-4, 15),
)
def test_no_vector_is_longer_than_the_bound_after_clipping(vector: np.ndarray, bound: float) -> None:
    clipped = clip(vector, bound)
    assert np.linalg.norm(clipped.astype(np.float64)) <= bound * (1 + 1e-6)


def test_what_a_device_makes_the_server_counts() -> None:
    difference = np.array([0.5, -0.25, 0.0, 1.0, 0.125, -0.125])
    accepted = examined(envelope(difference))
    assert (accepted.weight, accepted.loss_before, accepted.loss_after) == (12, 0.5, 0.25)
    error = np.abs(to_float(accepted.vector) - difference)
    for part in MANIFEST.slices().values():
        assert error[part].max() <= 0.505 * POLICY.step_ratio * np.sqrt(np.mean(difference[part] ** 2))


@settings(max_examples=60)
@given(
    st.lists(st.floats(-3, 3, width=32), min_size=PARAMETERS, max_size=PARAMETERS),
    st.sampled_from(["pump-1", "pump-2"]),
    st.integers(1, 10**6),
    st.floats(0, 1e9),
)
def test_any_honest_training_is_counted(
    difference: list[float], device: str, windows: int, loss: float
) -> None:
    accepted = examined(envelope(difference, device, windows, loss), device)
    assert accepted.weight == min(windows, POLICY.maximum_weight)
    clipped = clip((BASE + np.float32(difference)) - BASE, POLICY.clipping_bound)
    error = np.abs(to_float(accepted.vector) - clipped)
    for part in MANIFEST.slices().values():
        step = POLICY.step_ratio * np.sqrt(np.mean(clipped[part].astype(np.float64) ** 2))
        assert error[part].max() <= 0.505 * step + 1e-3


def test_training_that_changed_nothing_is_counted_as_that() -> None:
    assert not examined(envelope(np.zeros(PARAMETERS))).vector.any()


def test_the_mean_of_many_rounds_is_what_was_learned() -> None:
    """Quantisation adds noise but no bias, so that many devices or rounds average it out."""
    difference = np.array([0.5, -0.25, 0.1, 1.0, 0.125, -0.3])
    vectors = []
    for number in range(1, 301):
        current = Round(number, CURRENT.package, CURRENT.base, CURRENT.cohort, 0.0)
        envelope = make_update(
            current,
            Contribution(difference.astype(np.float32), 1, 0.0, 0.0),
            MANIFEST,
            POLICY,
            topics=TOPICS,
            device="pump-1",
            key=KEY,
        )
        update = verify_message(Update, envelope, KEY.public, TOPICS.up("pump-1", "update"))
        opened = replace(OPEN, number=number)
        accepted = examine(update, "pump-1", opened, ON_TIME, federation="pumps", manifest=MANIFEST)
        assert isinstance(accepted, Accepted)
        vectors.append(to_float(accepted.vector))
    assert np.abs(np.mean(vectors, axis=0) - difference).max() < 0.2
