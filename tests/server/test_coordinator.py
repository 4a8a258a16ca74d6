"""The coordinator: whole rounds through real messages, and everything that may come in between."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.exc import OperationalError

from protocol.charter import StalenessPolicy, TrainingPolicy
from protocol.messages import (
    BASE_BYTES,
    Announcement,
    Chunk,
    ChunkRequest,
    DeviceState,
    Release,
    Report,
    Round,
    ServerState,
    sign_message,
    verify_message,
)
from protocol.quantisation import to_float
from protocol.release_coding import adapter_sha256, decode_keyframe, release_adapter
from server.errors import ServerError
from server.replay import PRUNED, SAME, replay_all
from server.retention import RetentionPolicy
from server.round import RoundPolicy
from tests.builders import PARAMETERS, private_key
from tests.server.databases import Database, PostgreSQL
from tests.server.federation import KEYS, NAMES, PARTS, SERVER_KEY, TOPICS, Federation, update_of

A, B, C = NAMES


@pytest.fixture
def federation(tmp_path: Path, database: Database) -> Iterator[Federation]:
    federation = Federation(tmp_path / "server", database=database)
    federation.push()
    federation.register()
    federation.coordinator.tick()
    yield federation
    federation.close()


def test_three_devices_make_a_release(federation: Federation) -> None:
    current = federation.open_round()
    assert (current.number, current.cohort) == (1, NAMES)
    first = federation.release()
    assert current.base == first.adapter_sha256
    assert (first.base, first.body, first.keyframe) == (b"", b"", None)  # the package has it
    for name, level in zip(NAMES, (0.25, 0.5, 0.75), strict=True):
        [receipt] = federation.deliver(name, update_of(name, current, level))
        assert (receipt.verdict, receipt.round) == ("counted", 1)
    release = federation.release()
    assert (release.number, release.updates, release.weight) == (1, 3, 30)
    assert release.base == current.base[:BASE_BYTES]
    assert release.metrics == {"loss_before": 0.5, "loss_after": 0.25}
    adapter = release_adapter(release, np.zeros(PARAMETERS, np.float32), PARTS, PARAMETERS)
    newest = federation.store.newest_release()
    assert newest is not None
    assert newest.adapter.tobytes() == adapter.tobytes()
    assert abs(float(np.mean(adapter + to_float(np.asarray(newest.residual)))) - 0.5) < 0.5
    [row] = federation.store.rounds()
    assert (row["outcome"], row["counted"]) == ("released", 3)


def test_the_order_of_arrival_does_not_change_the_release(tmp_path: Path, database: Database) -> None:
    hashes = set()
    for order in ((A, B, C), (C, A, B), (B, C, A)):
        federation = Federation(tmp_path / "".join(order), database=database)
        federation.push()
        federation.register()
        federation.coordinator.tick()
        current = federation.open_round()
        for name in order:
            federation.deliver(name, update_of(name, current, 0.1 * int(name[-1])))
        hashes.add(federation.release().adapter_sha256)
        federation.close()
    assert len(hashes) == 1


def test_a_repeated_update_is_receipted_again_and_counted_once(federation: Federation) -> None:
    current = federation.open_round()
    envelope = update_of(A, current)
    verdicts = [federation.deliver(A, envelope)[0].verdict for _ in range(3)]
    assert verdicts == ["counted", "duplicate", "duplicate"]
    for name in (B, C):
        federation.deliver(name, update_of(name, current))
    assert federation.release().updates == 3
    assert federation.deliver(A, envelope)[0].verdict == "duplicate"


def test_a_second_update_of_a_device_is_refused(federation: Federation) -> None:
    current = federation.open_round()
    federation.deliver(A, update_of(A, current, 0.5))
    [receipt] = federation.deliver(A, update_of(A, current, 4.0 / 6))
    assert receipt.verdict == "refused"
    assert "another update of this round is counted" in receipt.reason
    for name in (B, C):
        federation.deliver(name, update_of(name, current))
    assert federation.release().updates == 3


def test_an_update_after_the_round_is_late(federation: Federation) -> None:
    current = federation.open_round()
    for name in (A, B):
        federation.deliver(name, update_of(name, current))
    federation.clock.advance(100.0)
    federation.coordinator.tick()
    assert federation.release().number == 1
    federation.config = replace(federation.config, staleness=StalenessPolicy(maximum=0))
    federation.restart()
    [receipt] = federation.deliver(C, update_of(C, current))
    assert (receipt.verdict, receipt.reason) == ("late", "round 1 is closed")


def close_without(federation: Federation, missing: str) -> Round:
    """A round that is closed at its deadline without the update of a device."""
    current = federation.open_round()
    for name in NAMES:
        if name != missing:
            federation.deliver(name, update_of(name, current))
    federation.clock.advance(100.0)
    federation.coordinator.tick()
    return current


def test_a_late_update_is_counted_once_in_the_next_round_with_less_weight(federation: Federation) -> None:
    first = close_without(federation, C)
    late = update_of(C, first, level=0.25)
    [receipt] = federation.deliver(C, late)  # no round is open
    assert (receipt.verdict, receipt.reason) == ("counted", "1 release late, with weight 7")
    federation.restart()
    assert federation.deliver(C, late)[0].verdict == "duplicate"
    second = federation.open_round()
    for name in (A, B):
        federation.deliver(name, update_of(name, second))
    assert federation.deliver(C, late)[0].verdict == "duplicate"
    federation.restart()
    federation.deliver(C, update_of(C, second))
    release = federation.release()
    assert (release.number, release.updates, release.weight) == (2, 4, 37)
    assert {replayed.verdict for replayed in replay_all(federation.store, "pumps")} == {SAME}


def test_a_late_update_joins_the_open_round_and_does_not_stand_for_the_new_one(
    federation: Federation,
) -> None:
    first = close_without(federation, C)
    second = federation.open_round()
    for name in (A, B):
        federation.deliver(name, update_of(name, second))
    assert federation.deliver(C, update_of(C, first))[0].verdict == "counted"
    assert federation.release().number == 1  # the round waits for the device's update of this round
    assert federation.deliver(C, update_of(C, second))[0].verdict == "counted"
    assert (federation.release().updates, federation.release().weight) == (4, 37)
    assert {replayed.verdict for replayed in replay_all(federation.store, "pumps")} == {SAME}


def test_a_late_update_of_a_package_that_was_replaced_is_not_counted(federation: Federation) -> None:
    first = close_without(federation, C)
    assert federation.deliver(C, update_of(C, first))[0].verdict == "counted"  # waits for the next round
    federation.push(initial=1.0)
    federation.coordinator.tick()
    second = federation.open_round()
    for name in NAMES:
        federation.deliver(name, update_of(name, second))
    assert (federation.release().updates, federation.release().weight) == (3, 30)
    assert {replayed.verdict for replayed in replay_all(federation.store, "pumps")} == {SAME}


def test_a_round_does_not_wait_for_a_device_that_says_that_it_sends_nothing(federation: Federation) -> None:
    current = federation.open_round()
    for name in (A, B):
        federation.deliver(name, update_of(name, current))
    federation.coordinator.tick()
    assert federation.release().number == 0
    federation.say(C, waits="quiet hours")
    federation.coordinator.tick()
    assert (federation.release().number, federation.release().updates) == (1, 2)
    for name in (A, B):
        federation.say(name)
    federation.say(C, waits="quiet hours")
    federation.coordinator.tick()
    assert federation.newest(Round, "round").cohort == (A, B)


def test_a_round_of_which_everyone_waits_stays_open(federation: Federation) -> None:
    current = federation.open_round()
    for name in NAMES:
        federation.say(name, waits="bytes per day")
    federation.coordinator.tick()
    assert federation.release().number == 0
    assert federation.deliver(A, update_of(A, current))[0].verdict == "counted"
    federation.coordinator.tick()
    assert federation.release().updates == 1


def test_what_is_old_is_forgotten_and_never_counted_again(federation: Federation) -> None:
    federation.config = replace(
        federation.config,
        retention=RetentionPolicy(journal_days=1, releases=3),
        staleness=StalenessPolicy(maximum=2),
    )
    federation.restart()
    envelopes = []
    for _ in range(6):
        current = federation.open_round()
        envelopes.append(update_of(A, current))
        for name in NAMES:
            federation.deliver(name, update_of(name, current))
    federation.clock.advance(86_400 + 3600)
    federation.coordinator.tick()
    assert [row["counted"] for row in federation.store.rounds()] == [3, 3, 0, 0, 0, 0]  # newest first
    assert [row["number"] for row in federation.store.releases()] == [6, 5, 4, 3]
    verdicts = [replayed.verdict for replayed in replay_all(federation.store, "pumps")]
    assert verdicts == [SAME, SAME, PRUNED, PRUNED]
    # A policy that takes later updates does not bring back what nobody remembers.
    federation.config = replace(federation.config, staleness=StalenessPolicy(maximum=20))
    federation.restart()
    assert [federation.deliver(A, e)[0].verdict for e in envelopes] == ["late"] * 4 + ["duplicate"] * 2


def test_a_device_that_came_later_is_not_in_the_cohort(federation: Federation) -> None:
    for name in (A, B):
        federation.say(name)
    federation.clock.advance(31.0)
    federation.coordinator.tick()
    federation.clock.advance(31.0)
    federation.coordinator.tick()
    current = federation.newest(Round, "round")
    assert current.cohort == (A, B)
    [receipt] = federation.deliver(C, update_of(C, current))
    assert (receipt.verdict, receipt.reason) == ("refused", "not in the cohort of this round")
    assert federation.refusals() == ["not in the cohort of this round"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda _: b"garbage",
        lambda envelope: envelope[:-1],
        lambda envelope: envelope[:-1] + bytes([envelope[-1] ^ 1]),
        lambda envelope: envelope + b"\x00",
        lambda _: bytes(5 * 1024 * 1024),
    ],
)
def test_garbage_is_noted_and_gets_no_receipt(federation: Federation, spoil: object) -> None:
    current = federation.open_round()
    assert federation.deliver(A, spoil(update_of(A, current))) == []  # type: ignore[operator]
    assert len(federation.refusals()) == 1
    assert federation.deliver(A, update_of(A, current))[0].verdict == "counted"


def test_an_update_signed_by_another_device_is_refused(federation: Federation) -> None:
    current = federation.open_round()
    assert federation.deliver(A, update_of(B, current)) == []
    assert federation.receipts(B) == []
    assert "signature" in federation.refusals()[0]


def test_a_device_that_nobody_registered_is_refused(federation: Federation) -> None:
    current = federation.open_round()
    for kind in ("update", "get", "report", "state"):
        federation.coordinator.handle(TOPICS.up("stranger", kind), update_of(A, current))
    assert federation.refusals() == ["the device is not registered"] * 4


@pytest.mark.parametrize("topic", ["", "fl/v1/pumps/up/pump-1/receipt", "fl/v1/fans/up/pump-1/state", "#"])
def test_a_foreign_topic_is_noted(federation: Federation, topic: str) -> None:
    federation.coordinator.handle(topic, b"x")
    assert len(federation.refusals()) == 1


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_restart_in_the_middle_of_a_round_changes_no_bit(
    tmp_path: Path, after: int, database: Database
) -> None:
    hashes = []
    for restarted in (False, True):
        federation = Federation(tmp_path / str(restarted), database=database)
        federation.push()
        federation.register()
        federation.coordinator.tick()
        current = federation.open_round()
        for index, name in enumerate(NAMES):
            if restarted and index == after:
                federation.restart()
                assert federation.newest(Round, "round") == current
            verdict = federation.deliver(name, update_of(name, current, 0.2 * (index + 1)))[0].verdict
            assert verdict == "counted"
        hashes.append(federation.release().adapter_sha256)
        federation.close()
    assert hashes[0] == hashes[1]


def test_a_database_that_crashes_in_the_middle_of_a_round_changes_no_bit(
    tmp_path: Path, postgresql: PostgreSQL
) -> None:
    hashes = []
    for crashed in (False, True):
        federation = Federation(tmp_path / str(crashed), database=postgresql)
        federation.push()
        federation.register()
        federation.coordinator.tick()
        current = federation.open_round()
        federation.deliver(A, update_of(A, current, 0.2))
        if crashed:
            postgresql.crash()
            with pytest.raises(OperationalError):  # the server ends, as its lock is lost
                federation.deliver(B, update_of(B, current, 0.3))
            federation.restart()
            assert federation.deliver(A, update_of(A, current, 0.2))[0].verdict == "duplicate"
        for name, level in ((B, 0.3), (C, 0.4)):
            assert federation.deliver(name, update_of(name, current, level))[0].verdict == "counted"
        hashes.append(federation.release().adapter_sha256)
        federation.close()
    postgresql.clear()
    assert hashes[0] == hashes[1]


def releases(federation: Federation, rounds: int, *, restarted: bool) -> list[bytes]:
    """Hashes of some rounds' releases, with a restart before, in and after each round or without."""
    for number in range(rounds):
        if restarted:
            federation.restart()
        current = federation.open_round()
        for index, name in enumerate(NAMES):
            federation.deliver(name, update_of(name, current, 0.01 * (number + 1) * (index + 2)))
            if restarted:
                federation.restart()
    return [row["sha256"] for row in federation.store.releases()]


def test_what_a_release_leaves_over_outlives_a_restart(tmp_path: Path, database: Database) -> None:
    found = []
    for restarted in (False, True):
        federation = Federation(tmp_path / str(restarted), database=database)
        federation.push()
        federation.register()
        federation.coordinator.tick()
        found.append(releases(federation, 4, restarted=restarted))
        newest = federation.store.newest_release()
        assert newest is not None
        assert np.any(newest.residual)
        federation.close()
    assert len(set(found[0])) == 5
    assert found[0] == found[1]


def test_what_is_left_over_comes_with_the_next_release(federation: Federation) -> None:
    """All that was ever counted is in the newest release and its residual, to the unit."""
    total = np.zeros(PARAMETERS, np.int64)
    for number in range(3):
        current = federation.open_round()
        counting = federation.coordinator._proceedings._counting
        assert counting is not None
        for index, name in enumerate(NAMES):
            if index == 2:
                federation.deliver(A, update_of(A, current, 0.1 * (number + 1)))  # a duplicate
            federation.deliver(name, update_of(name, current, 0.1 * (number + 1)))
        total += counting._domains[0].mean()
    newest = federation.store.newest_release()
    assert newest is not None
    sent = total - newest.residual
    assert newest.adapter.tolist() == pytest.approx(to_float(sent).tolist(), abs=1e-6)


def test_the_step_of_a_round_is_the_one_it_was_opened_with(tmp_path: Path, database: Database) -> None:
    hashes = []
    for changed in (False, True):
        federation = Federation(tmp_path / str(changed), database=database)
        federation.push()
        federation.register()
        federation.coordinator.tick()
        current = federation.open_round()
        if changed:
            federation.config = replace(federation.config, release_step_ratio=0.5)
            federation.restart()
        for index, name in enumerate(NAMES):
            federation.deliver(name, update_of(name, current, 0.1 * (index + 1)))
        hashes.append(federation.release().adapter_sha256)
        federation.close()
    assert hashes[0] == hashes[1]


def test_a_device_pulls_the_keyframe_of_a_release(federation: Federation) -> None:
    current = federation.open_round()
    for index, name in enumerate(NAMES):
        federation.deliver(name, update_of(name, current, 0.01 * (index + 1)))
    federation.restart()
    keyframe = federation.release().keyframe
    assert keyframe is not None
    topic = TOPICS.up(A, "get")
    federation.coordinator.handle(topic, sign_message(ChunkRequest(keyframe.sha256, (0,)), KEYS[A], topic))
    down = TOPICS.down(A, "chunk")
    [chunk] = [
        verify_message(Chunk, payload, SERVER_KEY.public, down) for payload in federation.wire.take(down)
    ]
    newest = federation.store.newest_release()
    assert newest is not None
    assert decode_keyframe(chunk.data, PARAMETERS).tobytes() == newest.adapter.tobytes()


def test_after_a_restart_an_update_from_before_is_a_duplicate(federation: Federation) -> None:
    current = federation.open_round()
    envelope = update_of(A, current)
    federation.deliver(A, envelope)
    federation.restart()
    assert federation.deliver(A, envelope)[0].verdict == "duplicate"
    for name in (B, C):
        federation.deliver(name, update_of(name, current))
    assert federation.release().updates == 3


def test_a_deadline_without_quorum_is_announced_anew(federation: Federation) -> None:
    current = federation.open_round()
    federation.deliver(A, update_of(A, current))
    federation.clock.advance(100.0)
    federation.coordinator.tick()
    later = federation.newest(Round, "round")
    assert (later.number, later.deadline) == (1, current.deadline + 100.0)
    federation.restart()
    assert federation.newest(Round, "round") == later
    assert federation.deliver(B, update_of(B, current))[0].verdict == "counted"


def test_a_device_that_was_removed_is_heard_no_more(federation: Federation) -> None:
    current = federation.open_round()
    federation.store.remove_device(C)
    assert federation.deliver(C, update_of(C, current)) == []
    for name in (A, B):
        federation.deliver(name, update_of(name, current))
    federation.clock.advance(100.0)
    federation.coordinator.tick()
    assert federation.release().updates == 2


def test_a_new_package_ends_the_open_round(federation: Federation) -> None:
    current = federation.open_round()
    federation.deliver(A, update_of(A, current))
    federation.push(initial=1.0)
    federation.coordinator.tick()
    assert federation.announcement().version == 2
    release = federation.release()
    assert (release.number, release.updates, release.base, release.body) == (1, 0, b"", b"")
    assert release.adapter_sha256 == adapter_sha256(np.ones(PARAMETERS, np.float32))
    assert federation.deliver(B, update_of(B, current))[0].verdict == "late"
    following = federation.open_round()
    assert (following.number, following.package) == (2, federation.announcement().package.sha256)


def test_chunks_come_in_the_order_of_the_request(tmp_path: Path, database: Database) -> None:
    federation = Federation(tmp_path, database=database)
    data = federation.push(filler=200_000)
    federation.register()
    federation.coordinator.tick()
    artifact = federation.announcement().package
    assert len(artifact.chunk_sha256) == 4
    topic = TOPICS.up(A, "get")
    federation.coordinator.handle(topic, sign_message(ChunkRequest(artifact.sha256, (3, 0)), KEYS[A], topic))
    down = TOPICS.down(A, "chunk")
    chunks = [
        verify_message(Chunk, payload, SERVER_KEY.public, down) for payload in federation.wire.take(down)
    ]
    assert [chunk.index for chunk in chunks] == [3, 0]
    for chunk in chunks:
        start, end = artifact.chunk_range(chunk.index)
        assert chunk.data == data[start:end]
    federation.close()


@pytest.mark.parametrize("index", [-1, 1, 2**60])
def test_a_chunk_out_of_range_is_refused(federation: Federation, index: int) -> None:
    topic = TOPICS.up(A, "get")
    request = ChunkRequest(federation.announcement().package.sha256, (index,))
    federation.coordinator.handle(topic, sign_message(request, KEYS[A], topic))
    assert federation.wire.take(TOPICS.down(A, "chunk")) == []
    assert federation.refusals() == [f"expected chunks below 1, got {index}"]


def test_an_artifact_that_is_not_announced_is_refused(federation: Federation) -> None:
    topic = TOPICS.up(A, "get")
    federation.coordinator.handle(topic, sign_message(ChunkRequest(b"x" * 32, (0,)), KEYS[A], topic))
    assert "no artifact 7878" in federation.refusals()[0]


def test_a_report_is_kept(federation: Federation) -> None:
    topic = TOPICS.up(A, "report")
    federation.hand(topic, sign_message(Report(0, "personal", 8, 0.5), KEYS[A], topic))
    assert federation.store.reports(0)[A]["choice"] == "personal"


def test_open_enrolment_keeps_the_first_key(tmp_path: Path, database: Database) -> None:
    federation = Federation(tmp_path, database=database, enrolment="open")
    federation.push()
    federation.coordinator.tick()
    federation.say(A)
    assert federation.store.device_key(A) == KEYS[A].public
    topic = TOPICS.up(A, "state")
    thief = private_key(66)
    state = DeviceState(False, 99, thief.public.raw)
    federation.coordinator.handle(topic, sign_message(state, thief, topic))
    assert federation.store.device_key(A) == KEYS[A].public
    assert federation.store.devices()[0]["online"]
    assert len(federation.refusals()) == 1
    federation.close()


def test_open_enrolment_takes_no_key_that_did_not_sign(tmp_path: Path, database: Database) -> None:
    federation = Federation(tmp_path, database=database, enrolment="open")
    topic = TOPICS.up(A, "state")
    for payload in (
        sign_message(DeviceState(True, 1, KEYS[A].public.raw), KEYS[B], topic),
        b"x",
        b"\xd2\x84",
    ):
        federation.coordinator.handle(topic, payload)
    assert federation.store.devices() == []
    assert len(federation.refusals()) == 3
    federation.close()


def test_a_cleared_state_is_nothing(federation: Federation) -> None:
    federation.coordinator.handle(TOPICS.up(A, "state"), b"")
    assert federation.refusals() == []


def test_only_devices_with_labels_and_the_newest_release_are_ready(federation: Federation) -> None:
    federation.say(A, labelled_windows=0)
    federation.say(B, release=-1)
    federation.say(C, online=False)
    for _ in range(5):
        federation.coordinator.tick()
        federation.clock.advance(1000.0)
    assert federation.everything(Round, "round") == []


def test_without_a_package_nothing_happens_and_nothing_breaks(tmp_path: Path, database: Database) -> None:
    federation = Federation(tmp_path, database=database)
    federation.register()
    federation.coordinator.tick()
    for name in NAMES:
        federation.say(name)
    envelope = update_of(A, Round(1, b"p" * 32, b"b" * 32, NAMES, 0.0))
    assert federation.deliver(A, envelope) == []
    federation.coordinator.tick()
    assert federation.everything(Announcement, "announcement") == []
    federation.close()


def test_what_was_lost_offline_is_published_at_the_next_connection(federation: Federation) -> None:
    federation.wire.connected = False
    for name in NAMES:
        federation.say(name)
    federation.coordinator.tick()
    assert federation.everything(Round, "round") == []
    federation.wire.connected = True
    federation.wire.published.clear()
    federation.coordinator.connected()
    retained = [topic for topic, _, retain in federation.wire.published if retain]
    kinds = ("trust", "announcement", "release", "round")
    expected = [TOPICS.server_state(), *(TOPICS.all(kind) for kind in kinds)]
    assert retained == expected
    assert federation.newest(Release, "release").number == 0


def test_the_will_says_that_the_server_is_gone(federation: Federation) -> None:
    topic, payload = federation.coordinator.will()
    assert verify_message(ServerState, payload, SERVER_KEY.public, topic) == ServerState(False, 1_000_000)
    assert federation.coordinator.subscriptions[0] == "fl/v1/pumps/up/+/state"


def test_after_the_last_round_devices_rest(tmp_path: Path, database: Database) -> None:
    federation = Federation(
        tmp_path, database=database, round_policy=RoundPolicy(minimum_devices=3, rounds=2)
    )
    federation.push()
    federation.register()
    federation.coordinator.tick()
    for number in (1, 2):
        current = federation.open_round()
        assert current.number == number
        for name in NAMES:
            federation.deliver(name, update_of(name, current))
    federation.restart()
    for name in NAMES:
        federation.say(name)
    federation.coordinator.tick()
    assert federation.everything(Round, "round") == []
    assert federation.release().number == 2
    federation.close()


def test_a_package_that_changed_on_disk_is_not_served(federation: Federation) -> None:
    path = federation.store.package_path(federation.announcement().package.sha256)
    other = Federation(path.parent.parent.parent / "other")
    data = other.push(initial=5.0)
    other.close()
    path.write_bytes(data)
    assert hashlib.sha256(data).hexdigest() != path.stem
    federation.close()
    with pytest.raises(ServerError, match="changed on disk; push it again"):
        federation.start()


def test_a_policy_that_names_a_segment_that_is_not_there_is_said(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    training = TrainingPolicy(learning_rate_factors={"weight": 0.0, "haed": 0.5})
    federation.config = replace(federation.config, training=training)
    federation.restart()
    said = [record.message for record in caplog.records if "learning_rate_factors" in record.message]
    assert said == [
        "training.learning_rate_factors: package tiny 1 has no segment 'haed'; it has weight, bias"
    ]
