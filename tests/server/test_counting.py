"""An open round of two tasks: who trains one task has no say in the other."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.anomaly_head import add_anomaly_head
from protocol.charter import StalenessPolicy, TrainingPolicy
from protocol.package import Manifest, unpack
from protocol.quantisation import FRACTION_BITS
from protocol.release_coding import adapter_sha256
from server.counting import Counting
from server.intake import Accepted, Lateness, RoundTerms
from server.ledger_records import ReleaseRecord
from server.rules.policy import RULES, AggregationPolicy
from tests.builders import FEATURES, PARAMETERS, PUBLISHER, tiny_package

ONE = unpack(tiny_package(), None).manifest
TWO = unpack(add_anomaly_head(tiny_package(), 1, PUBLISHER), None).manifest
CLASSIFIER = np.array([1.0, -1.0, 0.5, 0.25, 0.0, 2.0])
HEAD = np.array([0.5, 0.25])
NO_CLASSIFIER, NO_HEAD = np.zeros(PARAMETERS), np.zeros(FEATURES)


def released(
    manifest: Manifest, updates: list[tuple[NDArray[np.float64], int]], rule: str = "bounded_mean"
) -> ReleaseRecord:
    adapter = np.zeros(manifest.parameters, np.float32)
    base = ReleaseRecord(0, 1, None, b"", adapter_sha256(adapter), adapter, 0.0, 0, 0, {})
    policy = TrainingPolicy()
    counting = Counting(
        RoundTerms(1, 0, base.sha256, frozenset({"a"}), policy),
        Lateness(0, StalenessPolicy()),
        manifest,
        1 / 64,
        AggregationPolicy(rule=rule),
    )
    for vector, weight in updates:
        fixed = np.round(np.ldexp(vector, FRACTION_BITS)).astype(np.int64)
        counting.add("a", Accepted(fixed, weight, loss_before=1.0, loss_after=0.5))
    return counting.release(base, [], 1.0)


def both(classifier: NDArray[np.float64], head: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([classifier, head])


@pytest.mark.parametrize("rule", RULES)
def test_devices_without_labels_change_no_bit_of_the_classifier(rule: str) -> None:
    alone = released(ONE, [(CLASSIFIER, 5), (CLASSIFIER * 1.5, 3), (CLASSIFIER * 0.9, 4)], rule)
    labelled = [(both(CLASSIFIER * factor, HEAD), w) for factor, w in ((1, 5), (1.5, 3), (0.9, 4))]
    unlabelled = [(both(NO_CLASSIFIER, HEAD), 100)] * 20
    release = released(TWO, labelled + unlabelled, rule)
    assert np.array_equal(release.adapter[:PARAMETERS], alone.adapter)
    assert release.updates == 23


def test_a_boasting_head_does_not_push_the_classifiers_out_of_their_bound() -> None:
    # Under one bound for the whole vector the round's median norm would be that of the long heads.
    honest = [(both(CLASSIFIER, NO_HEAD), 5)] * 2 + [(both(-8 * CLASSIFIER, NO_HEAD), 5)]
    alone = released(TWO, honest)
    shouting = [(both(NO_CLASSIFIER, HEAD * 50), 5)] * 7
    assert np.array_equal(released(TWO, honest + shouting).adapter[:PARAMETERS], alone.adapter[:PARAMETERS])


def test_a_task_that_nobody_trained_stays_where_it_is() -> None:
    release = released(TWO, [(both(NO_CLASSIFIER, HEAD), 3)])
    assert not release.adapter[:PARAMETERS].any()
    assert np.allclose(release.adapter[PARAMETERS:], HEAD, atol=0.02)


def test_the_losses_are_those_of_the_devices_with_labels() -> None:
    release = released(TWO, [(both(CLASSIFIER, HEAD), 2), (both(NO_CLASSIFIER, HEAD), 6)])
    assert release.metrics == {"loss_before": 1.0, "loss_after": 0.5}
    assert release.weight == 8


def test_a_device_whose_classifier_did_not_move_still_counts_where_there_is_one_task() -> None:
    release = released(ONE, [(CLASSIFIER, 1), (NO_CLASSIFIER, 1)], "mean")
    assert np.allclose(release.adapter, CLASSIFIER / 2, atol=0.02)
