"""A release of several adapters: the device goes on from the one that fits its windows, and stays with it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.dataset import Labelled
from agent.discriminant import log_likelihoods
from agent.domains import choose, likeliest
from protocol.discriminant import Statistics
from protocol.domains import MAX_DOMAINS, adapter_of, restacked, stacked
from protocol.errors import ArtifactError
from protocol.messages import Release, Report, Update
from protocol.release_coding import (
    adapter_sha256,
    add_difference,
    decode_difference,
    encode_difference,
    encode_keyframe,
)
from tests.agent.test_device import TOPICS, Device
from tests.agent.test_discriminant_head import HeadedDevice
from tests.builders import (
    DIMENSION,
    PARAMETERS,
    DiscriminantEngine,
    LogisticEngine,
    discriminant_manifest,
    headed_adapter,
    tiny_manifest,
    tiny_members,
    two_levels,
    write_recording,
)

RIGHT = np.array([-2, 2, 0, 0, 0, 0], np.float32)
"""Calls high levels high."""
WRONG = -RIGHT


def windows(count: int, noise: float = 0.0, seed: int = 0) -> Labelled:
    """Windows of two levels as features [mean, spread], the classes in turns."""
    labels = np.arange(count, dtype=np.int64) % 2
    random = np.random.Generator(np.random.PCG64(seed))
    level = np.where(labels == 1, 1.0, -1.0) + noise * random.normal(size=count)
    features = np.stack([level, np.full(count, 0.1)], axis=1).astype(np.float32)
    return Labelled(features, labels, np.zeros(count, np.int64), np.arange(count))


def stack(*adapters: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate(adapters)


def test_the_domain_that_fits_is_chosen() -> None:
    assert choose(LogisticEngine(), stack(WRONG, RIGHT), windows(4), None) == 1
    assert choose(LogisticEngine(), stack(RIGHT, WRONG), windows(4), None) == 0


def test_a_device_leaves_its_domain_on_evidence_only() -> None:
    engine = LogisticEngine()
    assert choose(engine, stack(WRONG, RIGHT), windows(20), 0) == 1
    assert choose(engine, stack(WRONG, RIGHT), windows(2), 0) == 0  # two windows can be luck
    alike = (RIGHT * np.float32(1.001) + np.array([0, 0, 0, 0, 0.01, 0])).astype(np.float32)
    held = [choose(engine, stack(RIGHT, alike), windows(20, 1.0, seed), 1) for seed in range(20)]
    assert held.count(1) >= 15


def test_without_labels_it_stays_where_it_is() -> None:
    engine = LogisticEngine()
    assert choose(engine, stack(WRONG, RIGHT), windows(0), None) == 0
    assert choose(engine, stack(WRONG, RIGHT), windows(0), 1) == 1


@pytest.mark.parametrize("held", [2, 7])
def test_a_domain_that_is_gone_is_left(held: int) -> None:
    assert choose(LogisticEngine(), stack(WRONG, RIGHT), windows(2), held) == 1
    assert choose(LogisticEngine(), stack(RIGHT), windows(2), held) == 0


def test_stacks_and_their_parts() -> None:
    both = stack(WRONG, RIGHT)
    np.testing.assert_array_equal(adapter_of(both, PARAMETERS, 1), RIGHT)
    np.testing.assert_array_equal(restacked(RIGHT, PARAMETERS, 2), stack(RIGHT, RIGHT))
    assert restacked(both, PARAMETERS, 2) is both
    assert stacked([slice(0, 4), slice(4, 6)], 6, 2) == [
        slice(0, 4),
        slice(4, 6),
        slice(6, 10),
        slice(10, 12),
    ]
    with pytest.raises(ArtifactError, match="expected a base of 6 or 18 parameters, got 12"):
        restacked(both, PARAMETERS, 3)
    for domain in (-1, 2):
        with pytest.raises(ArtifactError, match="expected a domain up to 1"):
            adapter_of(both, PARAMETERS, domain)


# A device without labels

ENGINE = DiscriminantEngine()
MANIFEST = discriminant_manifest({**tiny_members(), "embedding.onnx": b"embedding"})


def domain_at(*levels: float, within: float = 0.01) -> NDArray[np.float32]:
    """An adapter whose head says that the classes' windows are at these levels."""
    features = np.stack([np.array(levels), np.full(2, 0.1)], axis=1).astype(np.float32)
    means = ENGINE.embed(features).astype(np.float64)
    return headed_adapter(0.0, Statistics(within * np.eye(DIMENSION), means, np.full(2, 0.5)))


def test_without_labels_a_device_goes_where_its_windows_are_what_devices_have() -> None:
    far, near = domain_at(5.0, 9.0), domain_at(-1.0, 1.0)
    unlabelled = windows(8, 0.1).features
    assert likeliest(ENGINE, MANIFEST, stack(far, near), unlabelled, None) == 1
    assert likeliest(ENGINE, MANIFEST, stack(near, far), unlabelled, 1) == 0


def test_without_labels_it_changes_its_domain_on_evidence_only() -> None:
    near, alike = domain_at(-1.0, 1.0), domain_at(-1.001, 1.0)
    assert likeliest(ENGINE, MANIFEST, stack(near, alike), windows(6, 0.1).features, 0) == 0
    assert likeliest(ENGINE, MANIFEST, stack(near, alike), windows(6, 0.1).features, 1) == 1
    assert likeliest(ENGINE, MANIFEST, stack(near, domain_at(5.0, 9.0)), windows(2).features, 1) == 1
    nothing = windows(0).features
    assert likeliest(ENGINE, MANIFEST, stack(near, alike), nothing, 1) == 1
    assert likeliest(ENGINE, MANIFEST, stack(near, alike), nothing, None) == 0


def test_a_spread_that_fits_is_likelier_than_one_that_covers_everything() -> None:
    tight, wide = domain_at(-1.0, 1.0), domain_at(-1.0, 1.0, within=100.0)
    assert likeliest(ENGINE, MANIFEST, stack(wide, tight), windows(20, 0.05).features, None) == 1


@pytest.mark.parametrize("broken", [np.nan, 1e30])
def test_windows_that_are_no_numbers_choose_no_domain(broken: float) -> None:
    unlabelled = np.full((8, 2), broken, np.float32)
    near = domain_at(-1.0, 1.0)
    assert likeliest(ENGINE, MANIFEST, stack(near, near), unlabelled, 1) == 1
    some = np.concatenate([windows(8, 0.1).features, unlabelled[:1]])
    assert likeliest(ENGINE, MANIFEST, stack(domain_at(5.0, 9.0), near), some, None) == 1
    found = log_likelihoods(Statistics.of(near[PARAMETERS:], DIMENSION), ENGINE.embed(some))
    assert found.shape == (8,)
    assert np.isfinite(found).all()


# A device


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path / "device")
    write_recording(device.spool / "a.csv", two_levels(20))
    device.announce()
    device.serve_chunks()
    device.release()
    yield device
    device.close()


def release(
    device: Device, number: int, adapters: NDArray[np.float32], base: NDArray[np.float32] | None = None
) -> Release:
    """Publish a release of several adapters, as keyframe or as the difference to one that the device has."""
    package = device.store.state().package
    domains = adapters.size // PARAMETERS
    if base is None:
        body, steps, name = encode_keyframe(adapters), b"", b""
    else:
        parts = stacked(tiny_manifest(tiny_members()).slices().values(), PARAMETERS, domains)
        start = restacked(base, PARAMETERS, domains)
        target = np.ldexp((adapters - start).astype(np.float64), 30).astype(np.int64)
        difference = encode_difference(target, parts, 1 / 64)
        adapters = add_difference(start, decode_difference(difference, parts, target.size))
        body, steps, name = difference.body, difference.steps, adapter_sha256(base)[:8]
    found = Release(number, package, name, adapter_sha256(adapters), body, steps=steps, domains=domains)
    device.tell(TOPICS.all("release"), found)
    return found


def test_a_split_release_is_made_of_the_one_adapter_that_the_device_has(device: Device) -> None:
    base = np.zeros(PARAMETERS, np.float32)
    found = release(device, 1, stack(WRONG, RIGHT), base)
    received = device.store.adapter("received")
    assert received is not None
    np.testing.assert_allclose(received, stack(WRONG, RIGHT), atol=0.05)
    assert device.store.state().base == found.adapter_sha256
    chosen = device.store.adapter("global")
    assert chosen is not None
    np.testing.assert_array_equal(chosen, adapter_of(received, PARAMETERS, 1))
    assert device.said(Report, "report")[-1].domain == 1


def test_the_update_names_its_domain_and_is_relative_to_that(device: Device) -> None:
    found = release(device, 1, stack(WRONG, RIGHT))
    device.open_round(1, found)
    [update] = device.said(Update, "update")
    assert update.domain == 1
    personal, start = device.store.adapter("personal"), device.store.adapter("global")
    assert personal is not None
    assert start is not None
    assert np.linalg.norm(personal - start) < np.linalg.norm(personal - WRONG)


def test_a_release_of_one_adapter_again_is_taken(device: Device) -> None:
    release(device, 1, stack(WRONG, RIGHT))
    release(device, 2, RIGHT)
    assert device.said(Report, "report")[-1].domain == 0
    chosen = device.store.adapter("global")
    assert chosen is not None
    np.testing.assert_array_equal(chosen, RIGHT)


@pytest.mark.parametrize("domains", [0, MAX_DOMAINS + 1])
def test_a_release_of_no_or_too_many_domains_cannot_be_made(domains: int) -> None:
    with pytest.raises(ValueError, match="domains: expected 1 to 8"):
        Release(1, bytes(32), b"", bytes(32), b"", domains=domains)


def test_a_keyframe_of_another_size_than_its_domains_is_refused(device: Device) -> None:
    package = device.store.state().package
    whole = stack(WRONG, RIGHT)
    bad = Release(1, package, b"", adapter_sha256(whole), encode_keyframe(whole), domains=3)
    device.tell(TOPICS.all("release"), bad)
    assert device.store.state().release == 0


def test_a_device_without_a_single_label_goes_on_from_the_domain_of_its_windows(tmp_path: Path) -> None:
    device = HeadedDevice(tmp_path / "device")
    write_recording(device.spool / "a.csv", [("", level) for _, level in two_levels(20)])
    device.install()
    device.publish()
    levels = [level for _, level in two_levels(1)]
    both = stack(domain_at(50.0, 90.0), domain_at(*levels, within=1.0))
    package = device.store.state().package
    found = Release(1, package, b"", adapter_sha256(both), encode_keyframe(both), domains=2)
    device.tell(TOPICS.all("release"), found)
    device.agent.tick()
    assert (device.store.number("domain", -1), device.store.state().release) == (1, 1)
    device.close()
