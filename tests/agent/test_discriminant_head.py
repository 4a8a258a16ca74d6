"""A device on a package with a discriminant head: trained, gated, sent, and left alone where it should be."""

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agent import discriminant, ensemble
from agent.config import LimitsConfig
from agent.discriminant import FRESH_ROUNDS, REFRESH
from agent.resources import Resources
from agent.work import CHECKPOINT_SECONDS
from protocol import entropy_coding
from protocol.charter import SendingPolicy, TrainingPolicy
from protocol.discriminant import STEP_RATIO
from protocol.messages import Release, Report, Round, Update
from protocol.package import CLASSIFICATION, DISCRIMINANT, EMBEDDING
from protocol.quantisation import Quantised, dequantise, dither_seed, to_float
from protocol.release_coding import adapter_sha256, encode_keyframe
from tests.agent.test_device import NAME, POLICY, TOPICS, Device, heat
from tests.builders import (
    HEADED_PARAMETERS,
    INITIAL_STATISTICS,
    PARAMETERS,
    DiscriminantEngine,
    discriminant_manifest,
    discriminant_package,
    headed_adapter,
    tiny_members,
    two_levels,
    write_recording,
)

Floats = NDArray[np.float32]

PACKAGE = discriminant_package()
MANIFEST = discriminant_manifest({**tiny_members(), EMBEDDING: b"embedding"})
HEAD = MANIFEST.task_slices()[DISCRIMINANT]
LABELS = 20
TRAINED = ("local", "personal", "local_full", "personal_full", "discriminant", "discriminant_full")


class HeadedDevice(Device):
    """A device on the package with a head."""

    engine = DiscriminantEngine

    def install(self, policy: TrainingPolicy = POLICY, sending: SendingPolicy | None = None) -> None:
        self.announce(PACKAGE, policy=policy, sending=sending)
        self.serve_chunks(PACKAGE)

    def publish(self, number: int = 0, adapter: Floats | None = None, default: str = "combined") -> Release:
        adapter = headed_adapter(0.05 * number) if adapter is None else adapter
        package = hashlib.sha256(PACKAGE).digest()
        release = Release(
            number, package, b"", adapter_sha256(adapter), encode_keyframe(adapter), default=default
        )
        self.tell(TOPICS.all("release"), release)
        return release

    def kept(self, name: str) -> Floats:
        found = self.store.adapter(name)
        assert found is not None, name
        return found

    def report(self) -> Report:
        report: Report = self.said(Report, "report")[-1]
        return report

    def update(self, current: Round) -> NDArray[np.float64]:
        """What the only update says, float64 [parameters]."""
        [update] = self.said(Update, "update")
        symbols = entropy_coding.decode(update.body, HEADED_PARAMETERS)
        seed = dither_seed("pumps", NAME, current.number, current.base)
        return to_float(dequantise(Quantised(update.steps, symbols), MANIFEST.slices().values(), seed))

    def step_of(self, release: int) -> Floats:
        """The head's step by all windows that are trained on."""
        learner = self.agent._learner
        assert learner is not None
        training = learner.material().training
        head, embedded = self.kept("global")[HEAD], DiscriminantEngine().embed(training.features)
        return discriminant.advance(head, embedded, training.labels, release) - head


class WithoutEmbedding(DiscriminantEngine):
    """A runtime that runs the graphs and no embedding."""

    embedding_size = 0

    def embed(self, features: Floats) -> Floats:
        raise AssertionError(f"no embedding, asked for {len(features)} windows")


class DeviceWithoutEmbedding(HeadedDevice):
    engine = WithoutEmbedding


@pytest.fixture
def device(tmp_path: Path) -> Iterator[HeadedDevice]:
    device = HeadedDevice(tmp_path / "device")
    write_recording(device.spool / "a.csv", two_levels(LABELS))
    device.install()
    yield device
    device.close()


def assert_coded(found: NDArray[np.float64], said: Floats, ratio: float) -> None:
    """Each segment was quantised with its own step, so that it is off by half a step at most."""
    for part, of_segment in zip(MANIFEST.slices().values(), MANIFEST.step_ratios(ratio), strict=True):
        half = 0.51 * of_segment * float(np.sqrt(np.mean(said[part].astype(np.float64) ** 2)))
        np.testing.assert_allclose(found[part], said[part], atol=half)


def test_a_head_is_trained_and_gated_and_the_update_carries_its_step(device: HeadedDevice) -> None:
    release = device.publish()
    report = device.report()
    assert report.choice == device.store.text("choice") == "combined"  # 12 windows show no difference
    assert report.holdout_windows == 12
    assert (report.combined_gain, report.discriminant_gain) != (0.0, 0.0)
    assert report.gain == report.combined_gain
    current = device.open_round(1, release)
    said = device.kept("personal") - device.kept("global")
    np.testing.assert_allclose(said[HEAD], device.step_of(0), atol=1e-7)
    assert np.abs(said[HEAD]).max() > 0.01
    assert MANIFEST.step_ratios(POLICY.step_ratio)[-1] == STEP_RATIO < POLICY.step_ratio
    assert_coded(device.update(current), said, POLICY.step_ratio)


def test_what_is_used_is_the_same_after_a_restart_and_on_a_single_window(device: HeadedDevice) -> None:
    device.publish()
    engine = DiscriminantEngine()
    windows = np.array([[-2, 0.01], [-1, 0.01], [1, 0.01], [2, 0.01]], np.float32)

    def predicted() -> NDArray[np.float64]:
        used = ensemble.in_use(device.store)
        assert used is not None
        assert [member.discriminant for member in used.members] == [False, False, False, True]
        assert used.members[3].vector.tobytes() == device.kept("discriminant_full").tobytes()
        found = used.logits(engine, windows)
        for index in range(len(windows)):
            alone = used.logits(engine, windows[index : index + 1])
            np.testing.assert_allclose(alone[0], found[index], rtol=1e-5)
        return found

    before = predicted()
    assert before.argmax(1).tolist() == [0, 0, 1, 1]
    device.restart()
    assert predicted().tobytes() == before.tobytes()


def test_only_what_is_sent_says_something_of_the_head_and_no_gradient_moves_it(device: HeadedDevice) -> None:
    device.install(replace(POLICY, weight_decay=0.5))
    device.publish()
    base = device.kept("global")
    for name in ("local", "local_full", "personal_full"):
        assert device.kept(name)[HEAD].tobytes() == base[HEAD].tobytes()
        assert device.kept(name)[:PARAMETERS].any()
    expected = base[HEAD] + device.step_of(0)
    np.testing.assert_allclose(device.kept("personal")[HEAD], expected, atol=1e-7)


@pytest.mark.parametrize("finished", [0, 1, 2, 3])
def test_a_power_cut_in_a_training_with_a_head_changes_no_bit(
    device: HeadedDevice, tmp_path: Path, finished: int
) -> None:
    device.publish(3)
    other = HeadedDevice(tmp_path / "other")
    write_recording(other.spool / "a.csv", two_levels(LABELS))
    other.resources = Resources(LimitsConfig(), other.clock, slice_seconds=1e-9, system=other.folder / "none")
    other.restart()
    other.install()
    other.publish(3)
    while float(other.store.text("progress") or 0) < (finished + 0.3) / 4:
        other.clock.advance(CHECKPOINT_SECONDS)
        assert other.agent.tick() is not None
    assert other.store.state().base == b""
    other.resources._slice = math.inf
    other.restart()
    current = other.open_round(1, other.publish(3))
    assert {name: other.kept(name).tobytes() for name in TRAINED} == {
        name: device.kept(name).tobytes() for name in TRAINED
    }
    device.open_round(1, device.publish(3))
    assert other.update(current).tobytes() == device.update(current).tobytes()
    other.close()


@pytest.mark.parametrize("default", ["combined", "discriminant"])
def test_an_engine_without_embedding_goes_back_to_the_ensemble(tmp_path: Path, default: str) -> None:
    device = DeviceWithoutEmbedding(tmp_path / "device")
    write_recording(device.spool / "a.csv", two_levels(LABELS))
    device.install()
    current = device.open_round(1, device.publish(default=default))
    report = device.report()
    assert report.choice == "ensemble"
    assert (report.combined_gain, report.discriminant_gain) == (0.0, 0.0)
    assert not device.update(current)[HEAD].any()
    used = ensemble.in_use(device.store)
    assert used is not None
    assert not any(member.discriminant for member in used.members)
    device.close()


def test_a_device_without_labels_uses_the_ensemble_and_leaves_the_head(tmp_path: Path) -> None:
    device = HeadedDevice(tmp_path / "device")
    write_recording(device.spool / "a.csv", [("", level) for _, level in two_levels(5)])
    device.install()
    device.open_round(1, device.publish())
    assert (device.report().choice, device.said(Update, "update")) == ("ensemble", [])
    assert device.kept("personal").tobytes() == device.kept("global").tobytes()
    # Once it has labels, the next release is what they are combined with.
    write_recording(device.spool / "b.csv", two_levels(5))
    device.publish(1)
    assert device.report().choice == "combined"
    device.close()


def test_a_charter_without_the_task_switches_the_head_off_and_on_again(device: HeadedDevice) -> None:
    device.install(replace(POLICY, tasks=(CLASSIFICATION,)))
    current = device.open_round(1, device.publish(1, headed_adapter()))
    report = device.report()
    assert (report.choice, report.combined_gain, report.discriminant_gain) == ("ensemble", 0.0, 0.0)
    assert device.store.adapter("discriminant") is None
    update = device.update(current)
    assert not update[HEAD].any()
    assert update[:PARAMETERS].any()
    device.install(replace(POLICY, tasks=(CLASSIFICATION, DISCRIMINANT)))
    device.publish(2)
    report = device.report()
    assert report.choice in ("combined", "discriminant")
    assert report.combined_gain != 0.0


def test_a_head_that_has_taken_shape_is_not_in_the_update_but_for_every_tenth_release(
    device: HeadedDevice,
) -> None:
    shaped = headed_adapter(0.0, replace(INITIAL_STATISTICS, rounds=float(FRESH_ROUNDS)))
    for number, said in ((REFRESH + 1, False), (2 * REFRESH - 1, False), (2 * REFRESH, True)):
        current = device.open_round(number, device.publish(number, shaped))
        assert device.update(current)[HEAD].any() == said
        assert device.report().choice == "combined"  # it is used all the same


FINE = TrainingPolicy(learning_rate=0.1, step_ratio=0.25, clipping_bound=15)


def test_the_step_of_a_head_that_was_withheld_is_not_carried_over(device: HeadedDevice) -> None:
    hour = time.localtime(device.clock()).tm_hour
    quiet = SendingPolicy(quiet_hours=(f"{hour:02}:00-{(hour + 2) % 24:02}:00",))
    device.install(FINE, quiet)
    device.open_round(1, device.publish(1))
    learned = device.kept("personal") - device.kept("global")
    assert learned[HEAD].any()
    current = device.open_round(2, device.publish(2))
    assert device.said(Update, "update") == []
    withheld = device.kept("withheld")
    assert not withheld[HEAD].any()
    assert withheld[:PARAMETERS].tolist() == learned[:PARAMETERS].tolist()
    device.clock.advance(2 * 3600)
    device.agent.tick()
    now = device.kept("personal") - device.kept("global")
    np.testing.assert_allclose(now[HEAD], device.step_of(2), atol=1e-7)
    assert_coded(device.update(current), now + withheld, FINE.step_ratio)


def test_labels_that_came_since_the_release_are_in_the_step_of_the_head(device: HeadedDevice) -> None:
    release = device.publish(1)
    before = device.step_of(1)
    write_recording(device.spool / "b.csv", two_levels(9))
    heat(device, 90)
    current = device.open_round(1, release)
    heat(device, 60)
    device.agent.tick()
    after = device.step_of(1)
    assert np.abs(after - before).max() > 1e-4
    found, half = device.update(current)[HEAD], 0.51 * STEP_RATIO * float(np.abs(after).max())
    np.testing.assert_allclose(found, after, atol=half)


def test_a_head_that_was_switched_off_is_not_reported_with_the_gains_it_once_had(
    device: HeadedDevice,
) -> None:
    device.publish(1)
    assert device.report().combined_gain != 0.0
    device.install(replace(POLICY, tasks=(CLASSIFICATION,)))
    device.publish(2)
    report = device.report()
    assert (report.combined_gain, report.discriminant_gain) == (0.0, 0.0)
