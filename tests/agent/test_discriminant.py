"""Classifiers from a handful of labels: what a fleet knows helps, and no window makes a step long."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from agent.discriminant import FRESH_ROUNDS, LONGEST_STEP, REFRESH, Discriminant, advance, fit
from protocol.discriminant import Statistics, sizes

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

CLASSES, DIMENSION, DEVICES, FEW = 4, 12, 20, 5
INITIAL = Statistics(np.eye(DIMENSION), np.zeros((CLASSES, DIMENSION)), np.ones(CLASSES))
PLANTED = np.random.Generator(np.random.PCG64(77))
ROTATION = np.linalg.qr(PLANTED.normal(size=(DIMENSION, DIMENSION)))[0]
NOISE = ROTATION * np.geomspace(1.2, 0.05, DIMENSION) @ ROTATION.T
"""What windows scatter by: far in a few directions, which are no dimensions, and little in the others."""
MEANS = 0.15 * PLANTED.normal(size=(CLASSES, DIMENSION))


def windows(device: int, count: int = FEW, seed: int = 0) -> tuple[Floats, Labels]:
    """Embedded windows of a device, `count` of each class; its class means are somewhat its own."""
    of_device = np.random.Generator(np.random.PCG64(1000 + device))
    means = MEANS + 0.3 * of_device.normal(size=MEANS.shape) @ NOISE
    random = np.random.Generator(np.random.PCG64([device, seed]))
    labels = np.repeat(np.arange(CLASSES), count)
    embedded = means[labels] + random.normal(size=(len(labels), DIMENSION)) @ NOISE
    return embedded.astype(np.float32), labels.astype(np.int64)


def federated(devices: list[int], rounds: int = FRESH_ROUNDS) -> Floats:
    """The head after some rounds of some devices, whose mean is the next one."""
    head = INITIAL.head()
    for release in range(rounds):
        steps = [advance(head, *windows(device), release).astype(np.float64) for device in devices]
        head = np.mean(steps, axis=0).astype(np.float32)
    return head


FLEET = federated(list(range(DEVICES)))


def accuracy(head: Floats, device: int) -> float:
    """Of a device that has few labels, on later windows."""
    classifier = fit(Statistics.of(head, DIMENSION), *windows(device))
    later, labels = windows(device, 100, seed=1)
    return float(np.mean(classifier.logits(later).argmax(1) == labels))


def test_scatter_that_a_fleet_shares_tells_classes_apart_where_a_few_labels_cannot() -> None:
    newcomers = range(100, 120)
    own = np.mean([accuracy(federated([device]), device) for device in newcomers])
    flat = np.mean([accuracy(INITIAL.head(), device) for device in newcomers])
    together = np.mean([accuracy(FLEET, device) for device in newcomers])
    assert together > max(own, flat) + 0.05


def test_the_gain_is_of_the_scatter_and_not_only_of_the_means() -> None:
    fleet = Statistics.of(FLEET, DIMENSION)
    newcomers = range(100, 120)
    own = []
    for device in newcomers:
        alone = Statistics.of(federated([device]), DIMENSION)
        own.append(accuracy(replace(fleet, within=alone.within).head(), device))
    assert np.mean([accuracy(FLEET, device) for device in newcomers]) > np.mean(own) + 0.05


def test_the_mean_of_the_devices_steps_is_the_step_to_the_statistics_of_all() -> None:
    head = INITIAL.head()
    steps = [advance(head, *windows(device), 0) - head for device in range(DEVICES)]
    assert max(np.linalg.norm(step) for step in steps) < LONGEST_STEP  # so none was cut
    found = Statistics.of(head + np.mean(steps, axis=0, dtype=np.float64).astype(np.float32), DIMENSION)
    scatter, means = np.zeros((DIMENSION, DIMENSION)), np.zeros((CLASSES, DIMENSION))
    for device in range(DEVICES):
        embedded, labels = windows(device)
        for label in range(CLASSES):
            mine = embedded[labels == label].astype(np.float64)
            means[label] += mine.mean(axis=0) / DEVICES
            scatter += (mine - mine.mean(axis=0)).T @ (mine - mine.mean(axis=0))
    np.testing.assert_allclose(found.within, scatter / (DEVICES * CLASSES * (FEW - 1)), atol=1e-5)
    np.testing.assert_allclose(found.means, means, atol=1e-5)
    assert found.rounds == pytest.approx(1)


def test_later_rounds_average_so_that_the_head_comes_to_rest() -> None:
    heads = [federated(list(range(5)), rounds) for rounds in (1, FRESH_ROUNDS, 2 * REFRESH)]
    first, settled, later = (Statistics.of(head, DIMENSION) for head in heads)
    assert (round(first.rounds), round(settled.rounds), round(later.rounds)) == (
        1,
        FRESH_ROUNDS,
        FRESH_ROUNDS + 1,
    )
    np.testing.assert_allclose(settled.within, first.within, atol=1e-5)  # the same windows each round
    np.testing.assert_allclose(later.means, first.means, atol=1e-5)


def test_a_head_that_has_taken_shape_hears_of_devices_in_every_tenth_release_only() -> None:
    own = windows(200)
    said = [r for r in range(4 * REFRESH) if advance(FLEET, *own, r).tobytes() != FLEET.tobytes()]
    assert said == [0, REFRESH, 2 * REFRESH, 3 * REFRESH]
    younger = Statistics.of(FLEET, DIMENSION)
    head = replace(younger, rounds=FRESH_ROUNDS - 1).head()
    assert all(advance(head, *own, release).tobytes() != head.tobytes() for release in range(REFRESH))


def test_without_labels_the_head_stays() -> None:
    embedded, labels = windows(0)
    assert advance(FLEET, embedded[:0], labels[:0], 0).tobytes() == FLEET.tobytes()


def test_a_head_is_not_changed_in_place() -> None:
    head = INITIAL.head()
    advance(head, *windows(0), 0)
    assert head.tobytes() == INITIAL.head().tobytes()


def test_one_window_of_each_class_says_nothing_of_scatter() -> None:
    found = Statistics.of(advance(INITIAL.head(), *windows(0, 1), 0), DIMENSION)
    np.testing.assert_allclose(found.within, INITIAL.within, atol=1e-6)
    assert np.abs(found.means).max() > 0.01


def test_a_device_says_nothing_of_a_class_that_it_never_saw() -> None:
    embedded, labels = windows(0)
    seen = labels != 2
    before = Statistics.of(FLEET, DIMENSION)
    after = Statistics.of(advance(FLEET, embedded[seen], labels[seen], 0), DIMENSION)
    np.testing.assert_allclose(after.means[2], before.means[2], atol=1e-6)
    assert after.between[2] == pytest.approx(before.between[2], rel=1e-6)
    assert np.abs(after.means[1] - before.means[1]).max() > 1e-3


def test_a_class_that_a_device_never_saw_is_predicted_where_the_fleet_has_it() -> None:
    fleet = Statistics.of(FLEET, DIMENSION)
    embedded, labels = windows(100)
    seen = labels != 2
    classifier = fit(fleet, embedded[seen], labels[seen])
    assert classifier.logits(fleet.means.astype(np.float32))[2].argmax() == 2
    # It is spread out as far as devices differ, which windows of a class that was seen are not.
    assert classifier.variances[2] > classifier.variances[[0, 1, 3]].max()
    later, of = windows(100, 100, seed=1)
    predicted = classifier.logits(later[of == 2]).argmax(1)
    assert np.mean(predicted == 2) > 1.5 / CLASSES


def test_with_many_labels_a_device_goes_by_its_own_means() -> None:
    embedded, labels = windows(100, 400)
    found = fit(Statistics.of(FLEET, DIMENSION), embedded, labels)
    own = np.stack([embedded[labels == label].mean(axis=0) for label in range(CLASSES)])
    np.testing.assert_allclose(found.means, own @ found.whitening, atol=0.1)


# What moves all classes of a device alike

SCALE, MOVED, APART = 0.3, 1.5, 0.3
"""How far windows scatter; relative to it, how far a device's classes are moved together, and each alone."""


def moved(device: int, count: int = FEW, seed: int = 0) -> tuple[Floats, Labels]:
    """Windows of a device whose sensor is mounted in its own way."""
    of_device = np.random.Generator(np.random.PCG64(3000 + device))
    offset = MOVED * of_device.normal(size=DIMENSION) + APART * of_device.normal(size=MEANS.shape)
    random = np.random.Generator(np.random.PCG64([device, seed]))
    labels = np.repeat(np.arange(CLASSES), count)
    embedded = 3 * MEANS[labels] + SCALE * (offset[labels] + random.normal(size=(len(labels), DIMENSION)))
    return embedded.astype(np.float32), labels.astype(np.int64)


def of_moved_fleet() -> Statistics:
    head = INITIAL.head()
    for release in range(FRESH_ROUNDS):
        steps = [advance(head, *moved(device), release).astype(np.float64) for device in range(40)]
        head = np.mean(steps, axis=0).astype(np.float32)
    return Statistics.of(head, DIMENSION)


MOVED_FLEET = of_moved_fleet()


def test_a_fleet_learns_how_far_devices_are_moved_as_a_whole_and_how_far_class_by_class() -> None:
    assert MOVED_FLEET.shared == pytest.approx(MOVED**2, rel=0.25)
    assert float(MOVED_FLEET.between.mean()) == pytest.approx(MOVED**2 + APART**2, rel=0.25)
    assert Statistics.of(FLEET, DIMENSION).shared < 0.1  # where each class moves by itself, nothing is shared


def test_labels_of_two_classes_tell_where_the_others_of_a_moved_device_are() -> None:
    def unseen(statistics: Statistics) -> float:
        right = []
        for device in range(200, 220):
            embedded, labels = moved(device)
            seen = labels < 2
            later, of = moved(device, 50, seed=1)
            logits = fit(statistics, embedded[seen], labels[seen]).logits(later)
            right.append(np.mean(logits.argmax(1)[of >= 2] == of[of >= 2]))
        return float(np.mean(right))

    assert unseen(MOVED_FLEET) > unseen(replace(MOVED_FLEET, shared=0.0)) + 0.05


def test_a_device_with_one_class_does_not_know_what_classes_have_in_common() -> None:
    embedded, labels = moved(0)
    held = replace(MOVED_FLEET, rounds=0.0)
    after = Statistics.of(advance(held.head(), embedded[:FEW], labels[:FEW], 0), DIMENSION)
    assert after.shared == pytest.approx(held.shared, rel=1e-5)


def test_without_any_label_a_classifier_goes_by_the_fleet_alone() -> None:
    embedded, labels = moved(0)
    found = fit(MOVED_FLEET, embedded[:0], labels[:0])
    np.testing.assert_allclose(found.means, MOVED_FLEET.means @ found.whitening, atol=1e-9)


# Hostile windows and heads

hostile = arrays.arrays(
    np.float32,
    (8, 3),
    elements=st.floats(width=32) | st.floats(-10, 10, width=32) | st.sampled_from([np.nan, np.inf, -np.inf]),
)
any_labels = arrays.arrays(np.int64, 8, elements=st.integers(0, 1))
heads = arrays.arrays(
    np.float32, sum(sizes(3, 2).values()), elements=st.floats(-64, 64, width=32)
)  # what updates add up to


@given(heads, hostile, any_labels, st.integers(0, 40))
def test_no_window_makes_a_step_long_or_anything_but_finite(
    head: Floats, embedded: Floats, labels: Labels, release: int
) -> None:
    after = advance(head, embedded, labels, release)
    assert after.dtype == np.float32
    assert np.isfinite(after).all()
    assert np.linalg.norm(after.astype(np.float64) - head) <= LONGEST_STEP + 1e-3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_windows_that_are_no_numbers_cost_their_device_only_themselves(value: float) -> None:
    embedded, labels = windows(0)
    broken = np.concatenate([embedded, np.full((1, DIMENSION), value, np.float32)])
    with_broken = np.append(labels, 1)
    assert advance(FLEET, broken, with_broken, 0).tobytes() == advance(FLEET, embedded, labels, 0).tobytes()
    statistics = Statistics.of(FLEET, DIMENSION)
    found, expected = fit(statistics, broken, with_broken), fit(statistics, embedded, labels)
    assert found.vector().tobytes() == expected.vector().tobytes()
    assert advance(FLEET, np.full_like(embedded, value), labels, 0).tobytes() == FLEET.tobytes()


def test_a_far_window_moves_a_head_by_one_step_and_no_more() -> None:
    embedded, labels = windows(0)
    embedded[0] = 1e6
    step = advance(FLEET, embedded, labels, 0) - FLEET
    assert np.linalg.norm(step) == pytest.approx(LONGEST_STEP, rel=1e-3)


@given(
    heads,
    arrays.arrays(np.float32, (8, 3), elements=st.floats(-100, 100, width=32)),
    arrays.arrays(np.int64, 8, elements=st.integers(0, 1)),
)
def test_whatever_a_head_says_its_classifier_is_finite(
    head: Floats, embedded: Floats, labels: Labels
) -> None:
    classifier = fit(Statistics.of(head, 3), embedded, labels)
    assert np.isfinite(classifier.vector()).all()
    assert (classifier.variances >= 1).all()
    assert np.isfinite(Discriminant.of(classifier.vector(), 2).logits(embedded)).all()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_head_that_is_no_number_is_not_stepped_from(broken: float) -> None:
    head = FLEET.copy()
    head[3] = broken
    assert advance(head, *windows(0), 0).tobytes() == head.tobytes()


# In the device's store


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 1 << 32))
def test_a_classifier_comes_out_of_the_store_as_it_went_in(dimension: int, classes: int, seed: int) -> None:
    random = np.random.Generator(np.random.PCG64(seed))
    made = Discriminant(
        random.normal(size=(dimension, dimension)),
        random.normal(size=(classes, dimension)),
        random.uniform(1, 3, classes),
    )
    vector = made.vector()
    assert vector.dtype == np.float32
    assert vector.size == dimension**2 + classes * (dimension + 1)
    found = Discriminant.of(vector, classes)
    assert found.vector().tobytes() == vector.tobytes()
    embedded = random.normal(size=(5, dimension)).astype(np.float32)
    np.testing.assert_allclose(found.logits(embedded), made.logits(embedded), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [0, 1, 9, 19, 21, 400])
def test_a_vector_of_another_size_is_no_classifier(size: int) -> None:
    assert Discriminant.of(np.ones(3 * 3 + 2 * 4, np.float32), 2).means.shape == (2, 3)
    with pytest.raises(ValueError, match=f"expected a classifier of 2 classes, got {size} values"):
        Discriminant.of(np.ones(size, np.float32), 2)


def test_logits_have_mean_zero_so_that_members_of_an_ensemble_can_be_summed() -> None:
    classifier = fit(Statistics.of(FLEET, DIMENSION), *windows(100))
    logits = classifier.logits(windows(100, 10, seed=1)[0])
    np.testing.assert_allclose(logits.mean(axis=1), 0, atol=1e-9)
