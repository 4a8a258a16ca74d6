"""The laboratory: methods are compared on the same devices, and what they are made of does what it says."""

from collections.abc import Iterator
from importlib import resources

import numpy as np
import pytest

from benchmarks import unlabelled
from benchmarks.laboratory import Laboratory
from benchmarks.methods import METHODS, attention, local
from simulation import vibration
from simulation.machines import machines


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Three of the demo's machines with five labels per class."""
    directory = tmp_path_factory.mktemp("laboratory")
    chosen = tuple(machine for machine in machines(0) if machine.id in ("pump-1", "fan-1", "gearbox-1"))
    vibration.write_fleet(directory, 0, chosen)
    package = (resources.files("simulation") / "demo" / "vibration.zip").read_bytes()
    laboratory = Laboratory(directory, package, 0, 5)
    yield laboratory
    laboratory.close()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_every_device_an_adapter_that_was_trained_on_something(
    lab: Laboratory, name: str
) -> None:
    before = lab.steps
    adapters = METHODS[name](lab)
    accuracy = lab.accuracy(adapters)
    assert accuracy.shape == (3,)
    assert (lab.steps > before) == (name != "backbone")
    if name != "backbone":
        assert accuracy.mean() > lab.accuracy(lab.initial).mean()


def test_training_is_the_same_each_time_it_is_asked_for(lab: Laboratory) -> None:
    first, second = local(lab), local(lab)
    assert all(first[name].tobytes() == second[name].tobytes() for name in lab.devices)


def test_a_device_holds_nothing_out_of_what_it_is_tested_on(lab: Laboratory) -> None:
    for bench in lab.devices.values():
        assert len(bench.training) + len(bench.holdout) <= len(bench.labelled)
        assert len(bench.holdout)
        known = {row.tobytes() for row in bench.labelled.features}
        assert not any(row.tobytes() in known for row in bench.test_features)


def test_attention_listens_to_those_who_are_alike() -> None:
    random = np.random.Generator(np.random.PCG64(0))
    kinds = np.array([0, 0, 0, 1, 1, 1])
    centres = random.normal(size=(2, 50))
    differences = centres[kinds] + 0.1 * random.normal(size=(6, 50))
    shares = attention(differences, np.ones(6))
    np.testing.assert_allclose(shares.sum(1), 1)
    alike = kinds[:, None] == kinds[None, :]
    assert shares[alike].min() > 100 * shares[~alike].max()


def test_a_device_with_more_windows_is_listened_to_more() -> None:
    shares = attention(np.eye(3), np.array([1.0, 1.0, 4.0]))
    assert shares[0, 2] > shares[0, 1]


def test_windows_without_labels_are_those_that_are_not_labelled(lab: Laboratory) -> None:
    for name, bench in lab.devices.items():
        others = lab.unlabelled(name)
        assert others.shape == (len(others), lab.engine.feature_size)
        known = {row.tobytes() for row in bench.labelled.features}
        assert len(others) > len(known)
        assert not any(row.tobytes() in known for row in others)


def test_every_way_to_use_them_is_measured_beside_not_using_them(lab: Laboratory) -> None:
    found = unlabelled.measure(lab)
    assert len(found) == 2 + len(unlabelled.WAYS) + 4
    chance = 100 / lab.engine.classes
    assert all(chance < accuracy <= 100 for accuracy in found.values())
    assert max(abs(found[f"classifier + {way}"] - found["classifier"]) for way in unlabelled.WAYS) > 0
