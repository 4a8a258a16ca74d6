"""A whole device against a server that is nothing but a key: from a folder of recordings to a receipt."""

import hashlib
import math
import sqlite3
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent import ensemble
from agent.config import AgentConfig, LimitsConfig, SourceConfig
from agent.device import DeviceAgent
from agent.installation import MANIFEST_FILE
from agent.keyring import Keyring
from agent.outbox import RESEND_SECONDS
from agent.reporting import REPEAT_SECONDS
from agent.resources import READ_SECONDS, Resources
from agent.store import Store
from agent.work import CHECKPOINT_SECONDS
from protocol import entropy_coding
from protocol.artifacts import describe
from protocol.charter import SendingPolicy, TrainingPolicy
from protocol.messages import (
    BASE_BYTES,
    Announcement,
    Chunk,
    ChunkRequest,
    DeviceState,
    Receipt,
    Release,
    Report,
    Round,
    Update,
    adapter_bytes,
    sign_message,
    verify_message,
)
from protocol.package import ADAPTER
from protocol.quantisation import Quantised, dequantise, dither_seed, to_float
from protocol.release_coding import adapter_sha256, encode_keyframe
from protocol.signing import PrivateKey
from protocol.topics import Topics
from tests.builders import (
    PARAMETERS,
    PUBLISHER,
    Clock,
    LogisticEngine,
    Wire,
    identity_of,
    private_key,
    tiny_manifest,
    tiny_members,
    tiny_package,
    trust,
    two_levels,
    write_recording,
)

SERVER, DEVICE_KEY, NAME, TOPICS = private_key(100), private_key(1), "pump-1", Topics("pumps")
PACKAGE = tiny_package(filler=150_000)
POLICY = TrainingPolicy(learning_rate=0.1)
UP = {kind: TOPICS.up(NAME, kind) for kind in ("state", "update", "report", "get")}


class Device:
    """A device on a folder; `restart` kills it and starts another one on the same folder."""

    engine: type[LogisticEngine] = LogisticEngine

    def __init__(self, folder: Path, publishers: tuple[str, ...] = ()) -> None:
        self.folder, self.clock, self.wire = folder, Clock(), Wire()
        self.traffic = (11, 22)
        self.spool = folder / "spool"
        self.spool.mkdir(parents=True)
        self.resources = Resources(
            LimitsConfig(), self.clock, slice_seconds=math.inf, system=folder / "no-sensors"
        )
        source = SourceConfig(str(self.spool))
        self.config = AgentConfig(
            NAME, "pumps", SERVER.public.raw.hex(), source, str(folder / "state"), publishers
        )
        (folder / "state").mkdir()
        self.start()

    def start(self) -> None:
        self.store = Store(self.folder / "state" / "agent.sqlite")
        self.agent = DeviceAgent(
            self.config,
            self.store,
            self.wire,
            self.clock,
            identity=identity_of(self.folder / "state", NAME, DEVICE_KEY),
            keyring=Keyring(self.store, "pumps", self.clock, server_key=SERVER.public.raw.hex()),
            make_engine=lambda *_: self.engine(),
            traffic=lambda: self.traffic,
            resources=self.resources,
        )

        self.tell(TOPICS.all("trust"), trust())

    def close(self) -> None:
        self.store.close()

    def restart(self) -> None:
        self.close()
        self.wire.published.clear()
        self.start()

    def tell(self, topic: str, message: Any, key: PrivateKey = SERVER) -> None:
        self.agent.handle(topic, sign_message(message, key, topic))

    def announce(
        self,
        data: bytes = PACKAGE,
        version: int = 1,
        policy: TrainingPolicy = POLICY,
        sending: SendingPolicy | None = None,
    ) -> None:
        announcement = Announcement(version, "tiny", describe(data), policy, sending or SendingPolicy())
        self.tell(TOPICS.all("announcement"), announcement)

    def serve_chunks(self, data: bytes = PACKAGE, rounds: int = 100) -> None:
        """Answer the device's requests for chunks until there are none."""
        artifact = describe(data)
        for _ in range(rounds):
            requests = [request.indices for request in self.said(ChunkRequest, "get")]
            if not requests:
                return
            for index in [index for indices in requests for index in indices]:
                start, end = artifact.chunk_range(index)
                chunk = Chunk(artifact.sha256, index, data[start:end])
                self.tell(TOPICS.down(NAME, "chunk"), chunk)

    def release(
        self, number: int = 0, level: float = 0.0, data: bytes = PACKAGE, default: str = "local"
    ) -> Release:
        adapter = np.full(PARAMETERS, level, np.float32)
        package = hashlib.sha256(data).digest()
        body = encode_keyframe(adapter)
        release = Release(number, package, b"", adapter_sha256(adapter), body, default=default)
        self.tell(TOPICS.all("release"), release)
        return release

    def open_round(self, number: int, release: Release, cohort: tuple[str, ...] = (NAME,)) -> Round:
        current = Round(number, release.package, release.adapter_sha256, cohort, 0.0)
        self.tell(TOPICS.all("round"), current)
        return current

    def said(self, kind: type, topic: str) -> list[Any]:
        """What the device published of a kind since the last look."""
        return [
            verify_message(kind, payload, DEVICE_KEY.public, UP[topic])
            for payload in self.wire.take(UP[topic])
        ]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path / "device")
    write_recording(device.spool / "a.csv", two_levels(20))
    yield device
    device.store.close()


@pytest.fixture
def trained(device: Device) -> Device:
    """A device that has installed the package and adopted its first release."""
    device.announce()
    device.serve_chunks()
    device.release()
    return device


def test_from_an_announcement_to_a_cleared_outbox(device: Device) -> None:
    device.agent.connected()
    [state] = device.said(DeviceState, "state")
    assert (state.online, state.package, state.release, state.labelled_windows) == (True, b"", -1, 0)
    device.announce()
    device.serve_chunks()
    assert device.said(DeviceState, "state")[-1].labelled_windows == 28  # of 40, without those held out
    release = device.release()
    state = device.said(DeviceState, "state")[-1]
    assert (state.package, state.release) == (release.package, 0)
    [report] = device.said(Report, "report")
    assert (report.release, report.labelled_windows, report.holdout_windows) == (0, 40, 12)
    assert report.choice == "local"  # the default: 12 windows show no difference
    assert (report.bytes_up, report.bytes_down, report.problems) == (11, 22, ())
    current = device.open_round(1, release)
    [envelope] = device.wire.take(UP["update"])
    update = verify_message(Update, envelope, DEVICE_KEY.public, UP["update"])
    assert (update.round, update.base, update.weight) == (1, current.base[:BASE_BYTES], 28)
    assert update.loss_after < update.loss_before
    assert [entry.envelope for entry in device.store.outbox()] == [envelope]
    receipt = Receipt(hashlib.sha256(envelope).digest(), 1, "counted")
    device.tell(TOPICS.down(NAME, "receipt"), receipt)
    assert device.store.outbox() == []


def test_a_release_is_reported_beside_the_one_before(trained: Device) -> None:
    [first] = trained.said(Report, "report")
    assert (first.compared_with, first.release_gain) == (-1, 0.0)  # before it there was none
    better, worse = np.float32([-1, 1, 0, 0, 0, 0]), np.float32([1, -1, 0, 0, 0, 0])

    def adopt(number: int, adapter: np.ndarray, withdraws: int = -1) -> Report:
        release = trained.release(number)
        body = encode_keyframe(adapter)
        trained.tell(
            TOPICS.all("release"),
            replace(
                release,
                number=number + 1,
                adapter_sha256=adapter_sha256(adapter),
                body=body,
                withdraws=withdraws,
            ),
        )
        [_, report] = trained.said(Report, "report")
        return report

    good = adopt(1, better)
    assert (good.release, good.compared_with, good.release_gain > 0.1) == (2, 1, True)
    bad = adopt(3, worse)
    assert (bad.release, bad.compared_with, bad.release_gain < -0.1) == (4, 3, True)
    trained.restart()
    trained.agent.connected()
    again = trained.said(Report, "report")[-1]
    assert (again.compared_with, again.release_gain) == (bad.compared_with, bad.release_gain)


def test_what_was_learned_from_a_withdrawn_release_is_not_carried_over(trained: Device) -> None:
    trained.announce(sending=SendingPolicy(minimum_relative_norm=10, maximum_wait_hours=0))
    good = trained.release(1, level=1.0)
    trained.release(2, level=3.0)
    withheld = trained.store.adapter("withheld")
    assert withheld is not None  # learned from release 1, and not sent
    trained.tell(TOPICS.all("release"), replace(good, number=3, withdraws=2))
    assert trained.store.state().release == 3
    np.testing.assert_array_equal(trained.store.adapter("withheld"), withheld)
    trained.release(4, level=1.5)  # one that withdraws nothing
    assert not np.array_equal(trained.store.adapter("withheld"), withheld)


def test_the_update_is_what_was_learned(trained: Device) -> None:
    release = trained.release(1, level=0.25)
    current = trained.open_round(1, release)
    [update] = trained.said(Update, "update")
    personal, base = trained.store.adapter("personal"), trained.store.adapter("global")
    assert personal is not None
    assert base is not None
    symbols = entropy_coding.decode(update.body, PARAMETERS)
    parts = tiny_manifest(tiny_members()).slices().values()
    seed = dither_seed("pumps", NAME, 1, current.base)
    vector = to_float(dequantise(Quantised(update.steps, symbols), parts, seed))
    for part in parts:
        step = POLICY.step_ratio * np.sqrt(np.mean((personal - base)[part].astype(np.float64) ** 2))
        assert np.abs(vector - (personal - base))[part].max() <= 0.51 * step


def test_a_round_is_answered_once_and_resent_until_its_receipt(trained: Device) -> None:
    release = trained.release(1)
    current = trained.open_round(1, release)
    [first] = trained.wire.take(UP["update"])
    trained.tell(TOPICS.all("round"), current)
    assert trained.wire.take(UP["update"]) == []
    trained.clock.advance(RESEND_SECONDS)
    trained.agent.tick()
    assert trained.wire.take(UP["update"]) == [first]
    trained.agent.connected()
    assert trained.wire.take(UP["update"]) == [first]
    trained.restart()
    trained.agent.connected()
    assert trained.wire.take(UP["update"]) == [first]
    trained.tell(TOPICS.down(NAME, "receipt"), Receipt(hashlib.sha256(first).digest(), 1, "late", "closed"))
    trained.agent.connected()
    assert trained.wire.take(UP["update"]) == []


def test_an_update_made_offline_is_sent_at_the_next_connection(trained: Device) -> None:
    trained.wire.connected = False
    trained.open_round(1, trained.release(1))
    trained.wire.connected = True
    trained.agent.connected()
    assert len(trained.wire.take(UP["update"])) == 1


@pytest.mark.parametrize("key", [DEVICE_KEY, PUBLISHER, private_key(99)])
def test_what_another_key_signed_is_ignored(trained: Device, key: PrivateKey) -> None:
    before = trained.store.state()
    release = Release(9, before.package, b"", b"h" * 32, b"")
    trained.tell(TOPICS.all("release"), release, key)
    trained.tell(TOPICS.all("round"), Round(9, before.package, before.base, (NAME,), 0.0), key)
    trained.tell(TOPICS.all("announcement"), Announcement(9, "evil", describe(b"x"), POLICY), key)
    trained.wire.published.clear()
    trained.agent.tick()
    assert trained.store.state() == before
    assert [topic for topic, _, _ in trained.wire.published if topic != UP["state"]] == []


@pytest.mark.parametrize("payload", [b"", b"garbage", b"\xd2\x84", bytes(1000)])
def test_garbage_is_ignored_on_every_topic(trained: Device, payload: bytes) -> None:
    before = trained.store.state()
    for topic in [*trained.agent.subscriptions, TOPICS.down("pump-2", "receipt"), "elsewhere", ""]:
        trained.agent.handle(topic, payload)
    assert trained.store.state() == before


def test_a_message_moved_to_another_topic_is_ignored(trained: Device) -> None:
    release = trained.release(1)
    current = Round(1, release.package, release.adapter_sha256, (NAME,), 0.0)
    foreign = Topics("fans").all("round")
    trained.agent.handle(TOPICS.all("round"), sign_message(current, SERVER, foreign))
    assert trained.wire.take(UP["update"]) == []


def test_a_forged_receipt_clears_nothing(trained: Device) -> None:
    trained.open_round(1, trained.release(1))
    [envelope] = trained.wire.take(UP["update"])
    receipt = Receipt(hashlib.sha256(envelope).digest(), 1, "counted")
    trained.tell(TOPICS.down(NAME, "receipt"), receipt, private_key(99))
    elsewhere = TOPICS.down("pump-2", "receipt")
    trained.agent.handle(TOPICS.down(NAME, "receipt"), sign_message(receipt, SERVER, elsewhere))
    assert len(trained.store.outbox()) == 1


def test_an_old_release_or_package_is_not_taken_again(trained: Device) -> None:
    trained.release(5, level=0.5)
    before = trained.store.state()
    trained.release(4, level=0.75)
    trained.announce(tiny_package(filler=7), version=1)
    assert trained.store.state() == before
    assert trained.said(ChunkRequest, "get") == []


def test_a_download_goes_on_after_a_restart(device: Device) -> None:
    device.announce()
    [request] = device.said(ChunkRequest, "get")
    assert request.indices == (0, 1, 2)
    artifact = describe(PACKAGE)
    start, end = artifact.chunk_range(1)
    device.tell(TOPICS.down(NAME, "chunk"), Chunk(artifact.sha256, 1, PACKAGE[start:end]))
    device.restart()
    device.announce()
    [request] = device.said(ChunkRequest, "get")
    assert request.indices == (0, 2)


@pytest.mark.parametrize("damage", ["the manifest is empty", "a member has another byte", "a member is gone"])
def test_a_package_that_a_power_cut_damaged_is_fetched_anew(trained: Device, damage: str) -> None:
    """As whoever was never in the federation, but for what must not be taken twice or go back."""
    trained.announce(version=2)
    trained.open_round(4, trained.release(3, level=0.5))
    [update] = trained.said(Update, "update")
    before = trained.store.state()
    [folder] = (trained.folder / "state" / "packages").iterdir()
    victim = folder / (MANIFEST_FILE if damage == "the manifest is empty" else ADAPTER)
    if damage == "the manifest is empty":
        victim.write_bytes(b"")
    elif damage == "a member is gone":
        victim.unlink()
    else:
        content = bytearray(victim.read_bytes())
        content[-1] ^= 1
        victim.write_bytes(content)
    trained.restart()
    trained.said(Update, "update")
    trained.announce(version=1)
    assert trained.said(ChunkRequest, "get") == []  # what is older is refused as before
    trained.announce(version=2)
    trained.serve_chunks()
    trained.release(2, level=0.75)
    assert trained.store.state().release == 2  # the one held is to come again: no older one
    trained.open_round(4, trained.release(3, level=0.5))
    after = trained.store.state()
    assert (after.package, after.version, after.release) == (before.package, before.version, 3)
    assert [again.round for again in trained.said(Update, "update") if again != update] == []
    trained.open_round(5, trained.release(4, level=0.6))
    assert [made.round for made in trained.said(Update, "update")][-1:] == [5]


def test_chunks_that_do_not_come_are_asked_for_again(device: Device) -> None:
    device.announce()
    device.said(ChunkRequest, "get")
    device.agent.tick()
    assert device.said(ChunkRequest, "get") == []
    device.clock.advance(10.0)
    device.agent.tick()
    assert [request.indices for request in device.said(ChunkRequest, "get")] == [(0, 1, 2)]
    device.agent.connected()
    device.agent.tick()
    assert [request.indices for request in device.said(ChunkRequest, "get")] == [(0, 1, 2)]


def test_a_chunk_with_other_bytes_is_refused(device: Device) -> None:
    device.announce()
    device.tell(TOPICS.down(NAME, "chunk"), Chunk(describe(PACKAGE).sha256, 0, b"evil"))
    assert list((device.folder / "state" / "packages").iterdir()) == []


def test_a_package_of_an_unknown_publisher_is_not_installed(tmp_path: Path) -> None:
    device = Device(tmp_path / "device", (private_key(9).public.raw.hex(),))
    device.announce()
    device.serve_chunks()
    assert device.store.state().package == b""
    device.store.close()


def test_a_release_and_round_before_the_package_are_taken_up_after_it(device: Device) -> None:
    package, base = hashlib.sha256(PACKAGE).digest(), adapter_bytes(np.zeros(PARAMETERS, np.float32))
    current = Round(1, package, hashlib.sha256(base).digest(), (NAME,), 0.0)
    device.tell(TOPICS.all("round"), current)
    device.release()
    device.announce()
    device.serve_chunks()
    assert device.store.state().release == 0
    assert len(device.said(Update, "update")) == 1


def test_a_new_package_starts_anew(trained: Device) -> None:
    other = tiny_package((1.0,) * PARAMETERS, filler=5)
    trained.announce(other, version=2)
    trained.serve_chunks(other)
    state = trained.store.state()
    assert (state.version, state.package, state.base) == (2, hashlib.sha256(other).digest(), b"")
    assert trained.said(DeviceState, "state")[-1].release in {-1, 0}
    trained.release(1, level=1.0, data=other)
    assert trained.store.state().release == 1
    folders = [path.name for path in (trained.folder / "state" / "packages").iterdir()]
    assert folders == [hashlib.sha256(other).hexdigest()]


def test_a_new_policy_of_the_same_package_is_used(trained: Device) -> None:
    policy = TrainingPolicy("sgd", learning_rate=0.01)
    trained.announce(version=1, policy=policy)
    assert trained.store.policy() == policy
    trained.restart()
    assert trained.store.policy() == policy


def test_new_recordings_are_told_to_the_server(trained: Device) -> None:
    trained.said(DeviceState, "state")
    trained.agent.tick()
    assert trained.said(DeviceState, "state") == []
    write_recording(trained.spool / "b.csv", two_levels(3))
    trained.clock.advance(60.0)
    trained.agent.tick()
    [state] = trained.said(DeviceState, "state")
    assert state.labelled_windows == 34


def test_labels_that_came_since_the_release_are_learned_from(trained: Device) -> None:
    release = trained.release(1)
    before = trained.store.adapter("personal")
    write_recording(trained.spool / "b.csv", two_levels(20))
    trained.open_round(1, release)
    assert len(trained.said(Update, "update")) == 1
    assert before is not None


def test_a_bad_recording_is_reported_to_the_server(device: Device) -> None:
    (device.spool / "b.csv").write_text("x,label\n1.0,unknown\n")
    device.announce()
    device.serve_chunks()
    device.release()
    [report] = device.said(Report, "report")
    assert len(report.problems) == 1
    assert "b.csv: line 2: column 'label': expected a class (low, high)" in report.problems[0]


def test_a_damaged_release_is_dropped(trained: Device) -> None:
    before = trained.store.state()
    damaged = Release(8, before.package, b"", b"h" * 32, zlib.compress(bytes(4 * PARAMETERS)))
    trained.tell(TOPICS.all("release"), damaged)
    assert trained.store.state() == before
    trained.release(8)
    assert trained.store.state().release == 8


def test_the_will_says_that_the_device_is_gone(device: Device) -> None:
    topic, payload = device.agent.will()
    state = verify_message(DeviceState, payload, DEVICE_KEY.public, topic)
    assert (topic, state.online, state.session) == (UP["state"], False, 1_000_000)
    assert state.public_key == DEVICE_KEY.public.raw


def heat(device: Device, celsius: int) -> None:
    zone = device.folder / "no-sensors" / "class" / "thermal" / "thermal_zone0"
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "temp").write_text(f"{celsius * 1000}\n")
    device.clock.advance(READ_SECONDS)


def test_a_hot_device_stays_reachable_and_trains_when_it_has_cooled(trained: Device) -> None:
    heat(trained, 90)
    release = trained.release(1, level=0.1)
    assert trained.store.state().release == 0
    trained.agent.tick()
    trained.agent.connected()
    assert trained.said(DeviceState, "state")[-1].release == 0
    trained.open_round(1, release)
    assert trained.said(Update, "update") == []
    heat(trained, 60)
    trained.agent.tick()
    assert trained.store.state().release == 1
    assert len(trained.said(Update, "update")) == 1


def test_releases_that_came_while_a_device_was_hot_are_not_all_trained(trained: Device) -> None:
    heat(trained, 90)
    trained.said(Report, "report")
    for number in (1, 2, 3, 4):
        trained.release(number, level=number / 10)
    heat(trained, 60)
    for _ in range(3):
        trained.agent.tick()
    assert [report.release for report in trained.said(Report, "report")] == [1, 4]
    assert trained.store.state().release == 4


def test_a_training_that_was_cut_off_goes_on_after_the_restart(trained: Device) -> None:
    whole = trained.store.adapter("personal")
    other = Device(trained.folder / "other")
    write_recording(other.spool / "a.csv", two_levels(20))
    other.resources = Resources(LimitsConfig(), other.clock, slice_seconds=0.0, system=other.folder / "none")
    other.restart()
    other.announce()
    other.serve_chunks()
    engine_slices = 25
    other.resources._slice = 1e-9  # one batch per slice
    other.release()
    for _ in range(engine_slices):
        other.clock.advance(CHECKPOINT_SECONDS)
        assert other.agent.tick() is not None
    assert other.store.checkpoint() is not None
    assert other.store.text("progress") not in {"", "0.0"}
    other.resources._slice = math.inf
    other.restart()
    other.release()
    assert other.store.state().release == 0
    assert other.store.checkpoint() is None
    personal = other.store.adapter("personal")
    assert whole is not None
    assert personal is not None
    assert personal.tobytes() == whole.tobytes()
    other.close()


TRAINED = ("local", "personal", "local_full", "personal_full")


def adapters_of(device: Device) -> dict[str, bytes]:
    """What the device trained, by name."""
    found = {name: device.store.adapter(name) for name in TRAINED}
    return {name: adapter.tobytes() for name, adapter in found.items() if adapter is not None}


@pytest.mark.parametrize("finished", [1, 2, 3])
def test_a_power_cut_between_two_of_the_four_trainings_changes_no_bit(trained: Device, finished: int) -> None:
    other = Device(trained.folder / "other")
    write_recording(other.spool / "a.csv", two_levels(20))
    other.resources = Resources(LimitsConfig(), other.clock, slice_seconds=1e-9, system=other.folder / "none")
    other.restart()
    other.announce()
    other.serve_chunks()
    other.release()
    while float(other.store.text("progress") or 0) < finished / len(TRAINED):
        other.clock.advance(CHECKPOINT_SECONDS)
        assert other.agent.tick() is not None
    assert float(other.store.text("progress")) < (finished + 0.1) / len(TRAINED)
    assert other.store.state().base == b""
    other.resources._slice = math.inf
    other.restart()
    other.release()
    found = adapters_of(other)
    assert len(set(found.values())) == len(TRAINED)
    assert found == adapters_of(trained)
    other.close()


def test_a_device_with_one_label_of_each_class_holds_nothing_out_and_trains_nothing_twice(
    tmp_path: Path,
) -> None:
    device = Device(tmp_path / "device")
    write_recording(device.spool / "a.csv", two_levels(1))
    engine, steps = LogisticEngine(), 0
    real = engine.loss_and_gradient

    def counted(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        return real(*arguments)

    engine.loss_and_gradient = counted  # type: ignore[method-assign]
    device.announce()
    device.serve_chunks()
    device.agent._learner._engine = engine  # type: ignore[union-attr]
    device.release(default="ensemble")
    [report] = device.said(Report, "report")
    assert (report.holdout_windows, report.choice, report.ensemble_gain) == (0, "ensemble", 0.0)
    assert steps == 2 * POLICY.epochs
    found = adapters_of(device)
    assert found["local"] == found["local_full"]
    assert found["personal"] == found["personal_full"]
    used = ensemble.in_use(device.store)
    assert used is not None
    predicted = used.logits(engine, np.array([[-1, 0], [1, 0]], np.float32)).argmax(1)
    assert predicted.tolist() == [0, 1]
    # More labels come: now windows are held out, and the chains part.
    write_recording(device.spool / "b.csv", two_levels(20))
    device.release(1)
    found = adapters_of(device)
    assert found["local"] != found["local_full"]
    device.close()


def test_training_alone_on_all_labels_goes_on_from_itself_whatever_the_fleet_does(trained: Device) -> None:
    other = Device(trained.folder / "other")
    write_recording(other.spool / "a.csv", two_levels(20))
    other.announce()
    other.serve_chunks()
    other.release()
    before = adapters_of(trained)["local_full"]
    trained.release(1, level=0.3)
    other.release(1, level=-7.0)
    assert adapters_of(trained)["local_full"] == adapters_of(other)["local_full"] != before
    assert adapters_of(trained)["personal_full"] != adapters_of(other)["personal_full"]
    other.close()


def test_the_default_of_the_release_is_what_a_device_with_few_labels_uses_and_says(tmp_path: Path) -> None:
    device = Device(tmp_path / "device")
    write_recording(device.spool / "a.csv", two_levels(5))
    device.announce()
    device.serve_chunks()
    device.release(level=0.25, default="ensemble")
    [report] = device.said(Report, "report")
    assert (report.choice, device.store.text("choice"), report.holdout_windows) == ("ensemble", "ensemble", 2)
    assert report.gain == report.ensemble_gain
    device.restart()
    used = ensemble.in_use(device.store)
    assert used is not None
    kept = [device.store.adapter(name) for name in ("local_full", "global", "personal_full")]
    assert [member.vector.tolist() for member in used.members] == [a.tolist() for a in kept if a is not None]
    device.close()


def test_where_training_stops_early_it_stops_in_full_after_as_many_epochs(trained: Device) -> None:
    policy = replace(POLICY, epochs=40, learning_rate=0.5, early_stopping=2)
    learner = trained.agent._learner
    assert learner is not None
    learner.policy = policy
    start = {"local": np.zeros(PARAMETERS, np.float32), "local_full": np.zeros(PARAMETERS, np.float32)}
    material = learner.material()
    wrong = replace(material, holdout=replace(material.holdout, labels=1 - material.holdout.labels))
    found = learner.begin(5, start, wrong)
    while not found.finished:
        found.step()
    once = {}
    for epochs in (1, 2):
        learner.policy = replace(policy, early_stopping=0, epochs=epochs)
        learning = learner.begin(5, start, material)
        while not learning.finished:
            learning.step()
        once[epochs] = learning.adapters["local_full"].tobytes()
    assert found.adapters["local_full"].tobytes() == once[1] != once[2]


def test_a_store_in_which_a_mean_of_adapters_was_in_use_goes_on(trained: Device) -> None:
    mean = np.full(PARAMETERS, 0.125, np.float32)
    local = trained.store.adapter("local")
    assert local is not None
    path = trained.folder / "state" / "agent.sqlite"
    trained.store.close()
    database = sqlite3.connect(path)  # as version 2 left it
    database.execute("DELETE FROM adapters WHERE name IN ('local_full', 'personal_full')")
    database.execute("DELETE FROM facts WHERE name LIKE 'scale%' OR name = 'ensemble_gain'")
    database.execute("INSERT INTO adapters VALUES ('adopted', ?)", (mean.tobytes(),))
    database.execute("UPDATE facts SET value = ? WHERE name = 'choice'", (b"mixed",))
    database.execute("INSERT INTO facts VALUES ('mixed_gain', ?)", (b"0.25",))
    database.execute("PRAGMA user_version = 2")
    database.commit()
    database.close()
    trained.wire.published.clear()
    trained.start()
    trained.agent.connected()
    [report] = trained.said(Report, "report")
    assert (report.choice, report.ensemble_gain) == ("personal", 0.0)
    used = ensemble.in_use(trained.store)
    assert used is not None
    assert [member.vector.tolist() for member in used.members] == [mean.tolist()]
    found = trained.store.adapter("local_full")
    assert found is not None
    assert found.tolist() == local.tolist()
    current = trained.open_round(1, trained.release(1))
    assert trained.said(Report, "report")[-1].choice == "local"
    assert [update.round for update in trained.said(Update, "update")] == [current.number]


def test_a_round_that_is_announced_again_while_new_labels_are_learned_is_answered_once(
    trained: Device,
) -> None:
    release = trained.release(1)
    write_recording(trained.spool / "b.csv", two_levels(20))
    heat(trained, 90)
    current = trained.open_round(1, release)
    trained.tell(TOPICS.all("round"), current)
    heat(trained, 60)
    for _ in range(3):
        trained.agent.tick()
    assert [update.round for update in trained.said(Update, "update")] == [1]


def test_a_release_that_equals_the_one_before_does_not_swallow_its_round(trained: Device) -> None:
    heat(trained, 90)
    release = trained.release(1)  # the same adapter as release 0
    trained.open_round(1, release)
    assert [update.round for update in trained.said(Update, "update")] == [1]


def decoded(update: Update, base: bytes) -> np.ndarray:
    """What an update says, within half a step."""
    symbols = entropy_coding.decode(update.body, PARAMETERS)
    parts = tiny_manifest(tiny_members()).slices().values()
    seed = dither_seed("pumps", NAME, update.round, base)
    return to_float(dequantise(Quantised(update.steps, symbols), parts, seed))


def learned(device: Device) -> np.ndarray:
    """What the device learned from the release that it holds."""
    personal, base = device.store.adapter("personal"), device.store.adapter("global")
    assert personal is not None
    assert base is not None
    return personal - base


FINE = TrainingPolicy(learning_rate=0.1, step_ratio=0.25, clipping_bound=15)


def test_in_quiet_hours_an_update_waits_and_goes_with_the_first_round_after_them(trained: Device) -> None:
    hour = time.localtime(trained.clock()).tm_hour
    quiet = SendingPolicy(quiet_hours=(f"{hour:02}:00-{(hour + 2) % 24:02}:00",))
    trained.announce(policy=FINE, sending=quiet)
    assert trained.said(DeviceState, "state")[-1].waits == "quiet hours"
    all_that_was_learned = learned(trained)
    trained.open_round(1, trained.release(1, level=0.25))
    assert trained.wire.take(UP["update"]) == []
    all_that_was_learned += learned(trained)
    current = trained.open_round(2, trained.release(2, level=0.5))
    all_that_was_learned += learned(trained)
    assert trained.wire.take(UP["update"]) == []
    trained.restart()  # the night has power cuts, too
    trained.agent.connected()
    trained.tell(TOPICS.all("round"), current)
    trained.clock.advance(2 * 3600)
    trained.agent.tick()
    assert trained.said(DeviceState, "state")[-1].waits == ""
    [update] = trained.said(Update, "update")
    assert update.round == 2
    half_a_step = 0.15 * np.abs(all_that_was_learned).max()
    np.testing.assert_allclose(decoded(update, current.base), all_that_was_learned, atol=half_a_step)
    # What was sent is not carried on.
    third = trained.open_round(3, trained.release(3, level=0.75))
    [update] = trained.said(Update, "update")
    now = learned(trained)
    np.testing.assert_allclose(decoded(update, third.base), now, atol=0.15 * np.abs(now).max())


def test_a_device_that_used_up_the_bytes_of_its_day_waits_until_they_are_a_day_old(trained: Device) -> None:
    trained.announce(sending=SendingPolicy(bytes_per_day=10_000))
    trained.open_round(1, trained.release(1))
    [first] = trained.wire.take(UP["update"])
    trained.tell(TOPICS.down(NAME, "receipt"), Receipt(hashlib.sha256(first).digest(), 1, "counted"))
    trained.traffic = (5_000, 5_000)
    trained.clock.advance(10)
    trained.agent.tick()
    assert trained.said(DeviceState, "state")[-1].waits == "bytes per day"
    current = trained.open_round(2, trained.release(2, level=0.25))
    assert trained.wire.take(UP["update"]) == []
    trained.clock.advance(86_400)
    trained.agent.tick()
    assert [update.round for update in trained.said(Update, "update")] == [current.number]


def test_an_update_too_small_to_matter_waits_until_it_matters_or_long_enough(trained: Device) -> None:
    trained.announce(sending=SendingPolicy(minimum_relative_norm=10, maximum_wait_hours=5))
    for number in (1, 2):
        trained.open_round(number, trained.release(number, level=1.0 + number))
        assert trained.wire.take(UP["update"]) == []
        assert trained.said(DeviceState, "state")[-1].waits == "small update"
    trained.clock.advance(5 * 3600)
    trained.agent.tick()
    assert trained.said(DeviceState, "state")[-1].waits == ""
    assert [update.round for update in trained.said(Update, "update")] == [2]
    trained.open_round(3, trained.release(3, level=5.0))
    assert trained.said(DeviceState, "state")[-1].waits == "small update"


def test_a_device_without_receipts_makes_no_further_updates(trained: Device) -> None:
    trained.announce(sending=SendingPolicy(maximum_outstanding=2))
    for number in (1, 2, 3):
        trained.open_round(number, trained.release(number, level=0.25 * number))
        trained.clock.advance(10)
        trained.agent.tick()
    assert [entry.round for entry in trained.store.outbox()] == [1, 2]
    assert trained.said(DeviceState, "state")[-1].waits == "no receipts"
    for entry in trained.store.outbox():
        trained.tell(TOPICS.down(NAME, "receipt"), Receipt(entry.sha256, entry.round, "counted"))
    trained.clock.advance(10)
    trained.agent.tick()
    assert [entry.round for entry in trained.store.outbox()] == [3]


def test_the_owner_can_be_stricter_than_the_charter(trained: Device) -> None:
    trained.config = replace(trained.config, sending=SendingPolicy(bytes_per_day=1))
    trained.restart()
    trained.traffic = (100, 100)
    trained.clock.advance(10)
    trained.agent.tick()
    assert trained.said(DeviceState, "state")[-1].waits == "bytes per day"
    trained.open_round(1, trained.release(1))
    assert trained.wire.take(UP["update"]) == []


def test_what_a_full_queue_may_have_dropped_is_said_again_a_few_times_a_day(trained: Device) -> None:
    trained.wire.published.clear()
    for _ in range(2):
        trained.clock.advance(REPEAT_SECONDS)
        trained.agent.tick()
        [state], [report] = trained.said(DeviceState, "state"), trained.said(Report, "report")
        assert (state.release, report.release) == (0, 0)
        trained.agent.tick()
        assert not trained.said(DeviceState, "state")
