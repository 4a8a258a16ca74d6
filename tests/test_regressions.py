"""Regressions: a situation each that once stopped a program, lost an update or used memory without bound."""

import contextlib
import json
import struct
import tracemalloc
from dataclasses import replace

import cbor2
import numpy as np
import pytest

from agent import gate, participant
from agent.config import load as load_agent
from agent.store import Store
from protocol import entropy_coding, records
from protocol.charter import TrainingPolicy
from protocol.errors import ArtifactError, EncodingError, ProtocolError, SchemaError
from protocol.messages import ChunkRequest, DeviceState, Report, Update, sign_message
from protocol.package import ADAPTER, Segment, read_adapter, unpack
from protocol.quantisation import Quantised, dequantise, dither_seed, quantise, to_float
from protocol.signing import sign, verify
from protocol.topics import context
from runtime.errors import SetupError
from runtime.keys import load_or_make
from server.aggregation import MAX_TOTAL_WEIGHT
from server.broker import BrokerSupervisor
from server.errors import ServerError
from server.round import RoundPolicy
from tests.agent.test_command_line import Owner
from tests.agent.test_device import Device, device, trained  # noqa: F401 - fixtures
from tests.agent.test_participant import installed, open_round, release
from tests.builders import (
    PARAMETERS,
    LogisticEngine,
    private_key,
    repacked,
    tiny_manifest,
    tiny_members,
    two_levels,
    write_recording,
)
from tests.server.federation import KEYS, NAMES, TOPICS, Federation, update_of

A, B, C = NAMES
SEED = dither_seed("f", "d", 1, b"")


@pytest.fixture
def federation(tmp_path):
    federation = Federation(tmp_path / "server")
    federation.push()
    federation.register()
    federation.coordinator.tick()
    yield federation
    federation.close()


# 1 server stops: push, then an update that completes the round before the next tick (IntegrityError)
def test_an_update_between_push_and_tick(federation):
    current = federation.open_round()
    for name in (A, B):
        federation.deliver(name, update_of(name, current))
    federation.push(initial=1.0)
    assert federation.deliver(C, update_of(C, current))[0].verdict == "late"
    federation.coordinator.tick()
    assert federation.announcement().version == 2


# 2 server cannot start: a device counted in the open round was registered anew with another key
def test_a_restart_after_a_device_got_a_new_key(federation):
    current = federation.open_round()
    federation.deliver(A, update_of(A, current))
    federation.store.remove_device(A)
    federation.store.register_device(A, private_key(77).public, 1.0)
    federation.restart()


# 3 server stops: one device's signed state or report with a number beyond 63 bits (OverflowError)
@pytest.mark.parametrize("number", [2, 6, 7])
@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
def test_a_state_with_a_huge_number(federation, number, value):
    state = DeviceState(True, 1, KEYS[A].public.raw, "1", b"", 1, 2)
    payload = cbor2.dumps({**records.to_numbered(state), number: value}, canonical=True)
    topic = TOPICS.up(A, "state")
    federation.coordinator.handle(topic, sign(payload, KEYS[A], context(topic)))
    assert federation.store.refusals()[0]["device"] == A


def test_a_report_with_a_huge_number(federation):
    topic = TOPICS.up(A, "report")
    payload = cbor2.dumps({**records.to_numbered(Report(1, "local")), 1: 2**63}, canonical=True)
    federation.hand(topic, sign(payload, KEYS[A], context(topic)))
    assert federation.store.refusals()[0]["device"] == A


# 4 server stops (and again at each restart): total weight beyond the sum's range, after the receipt
def test_more_weight_than_a_round_can_sum(federation):
    current = federation.open_round()
    federation.coordinator._proceedings._counting._weight = MAX_TOTAL_WEIGHT - 5
    [receipt] = federation.deliver(A, update_of(A, current))
    assert receipt.verdict == "refused"


# 5 server stops: the package's file is gone when a chunk is asked for (FileNotFoundError)
def test_a_chunk_of_a_package_that_is_gone(federation):
    sha256 = federation.announcement().package.sha256
    federation.store.package_path(sha256).unlink()
    topic = TOPICS.up(A, "get")
    federation.coordinator.handle(topic, sign_message(ChunkRequest(sha256, (0,)), KEYS[A], topic))


# 6 the release depends on a restart: a removed device's counted update stays live, goes with a restart
def test_a_removed_device_and_a_restart(federation):
    current = federation.open_round()
    for name in (A, B):
        federation.deliver(name, update_of(name, current))
    federation.store.remove_device(A)
    federation.restart()
    federation.deliver(C, update_of(C, current))
    federation.clock.advance(101.0)
    federation.coordinator.tick()
    assert federation.release().updates == 3  # as it is without the restart


# 7 a device whose clock went back (no RTC) is never heard again
def test_a_device_whose_clock_went_back(tmp_path):
    with contextlib.closing(Store(tmp_path / "agent.sqlite")) as store:
        assert store.next_session(1_700_000_000_000) == 1_700_000_000_000
    with contextlib.closing(Store(tmp_path / "agent.sqlite")) as store:
        assert store.next_session(5) == 1_700_000_000_001


# 8 federation stands still: the same package pushed again, the device ends without a base for ever
def test_the_same_package_pushed_again(trained):
    trained.announce(version=2)
    trained.release(1)
    trained.serve_chunks()
    trained.agent.connected()
    trained.release(1)
    assert trained.store.state().base != b""


# 9 federation stands still: labels came after the release, the device is in the cohort and never answers
def test_labels_that_come_after_the_first_release(tmp_path):
    with contextlib.closing(Device(tmp_path / "device")) as device:
        device.announce()
        device.serve_chunks()
        first = device.release()
        write_recording(device.spool / "a.csv", two_levels(20))
        device.clock.advance(60.0)
        device.agent.tick()
        device.open_round(1, first)
        assert len(device.wire.take(TOPICS.up("pump-1", "update"))) == 1


# 9b the same cause: weight and losses of the update are those of the adoption, not of the training
def test_the_weight_counts_the_labels_that_came_since(trained):
    first = trained.release(1)
    write_recording(trained.spool / "b.csv", two_levels(200))
    trained.open_round(1, first)
    [update] = trained.said(Update, "update")
    assert update.weight > 100


# 10 agent stops, again at each round: training that diverged (NaN)
def test_training_that_diverges(trained):
    class Diverging(LogisticEngine):
        def loss_and_gradient(self, *_):
            return float("nan"), np.full(PARAMETERS, np.nan, np.float32)

    trained.agent._learner._engine = Diverging()
    trained.open_round(1, trained.release(1))
    for name in ("local", "local_full", "personal", "personal_full"):
        assert np.isfinite(trained.store.adapter(name)).all()


def test_a_default_with_nan_losses_is_replaced():
    losses = {"local": np.full(20, np.nan), "personal": np.full(20, 0.1)}
    assert gate.decide(losses).choice == "personal"


# 11 agent stops: an empty member (nothing is written for it)
def test_an_empty_member():
    members = tiny_members()
    data = repacked(tiny_manifest(members), ADAPTER, b"", members)
    with pytest.raises(ArtifactError):
        unpack(data, None)


def test_an_empty_member_on_a_device(tmp_path):
    members = tiny_members()
    data = repacked(tiny_manifest(members), ADAPTER, b"", members)
    with contextlib.closing(Device(tmp_path / "device")) as device:
        device.announce(data)
        device.serve_chunks(data)


# 12 KeyError: safetensors of a type that numpy lacks
@pytest.mark.parametrize(("kind", "width"), [("BF16", 2), ("F8_E4M3", 1)])
def test_safetensors_of_a_type_that_numpy_lacks(kind, width):
    header = {"adapter": {"dtype": kind, "shape": [4], "data_offsets": [0, 4 * width]}}
    text = json.dumps(header).encode()
    with pytest.raises(ArtifactError):
        read_adapter(struct.pack("<Q", len(text)) + text + bytes(4 * width), 4)


# 13 two segments of one name: one of them is never quantised
def test_two_segments_of_one_name():
    with pytest.raises(ValueError, match="segments"):
        replace(tiny_manifest(tiny_members()), segments=(Segment("a", 2), Segment("a", 4)))


# 14 an honest update is refused: the codec ends at 8, the policy allows a bound of 15
@pytest.mark.parametrize(
    ("values", "ratio"),
    [([4.0], 2.0), ([10.0] + [0.0] * 99, 2.0), ([14.0], 2.0), ([2.0] * 4, 16.0)],
)
def test_an_honest_update_of_an_allowed_policy(values, ratio):
    TrainingPolicy(clipping_bound=float(np.linalg.norm(values)), step_ratio=ratio)  # is allowed
    part = [slice(0, len(values))]
    restored = to_float(dequantise(quantise(np.array(values, np.float32), part, SEED, ratio), part, SEED))
    assert np.abs(restored - values).max() < 64


# 15 the smallest int32 passes two range checks, because its absolute value is negative
def test_the_smallest_integer_as_symbol():
    symbols = np.array([-(2**31)], np.int32)
    with pytest.raises(EncodingError):
        entropy_coding.encode(symbols)
    with pytest.raises(EncodingError):
        dequantise(Quantised(b"\xff\x10", symbols), [slice(0, 1)], SEED)


# 16 memory: headers of an envelope are decoded without bound before the signature is looked at
@pytest.mark.parametrize("place", [0, 1])
def test_a_large_header_of_an_envelope(place):
    junk = {1: -8, 9: [[] for _ in range(400_000)]}
    parts = [b"\xa1\x01\x27", {}, b"p", bytes(64)]
    parts[place] = cbor2.dumps(junk) if place == 0 else junk
    envelope = cbor2.dumps(cbor2.CBORTag(18, parts))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            verify(envelope, private_key(1).public, b"", limit=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


# 16b an unsigned header can be added on the way: same signature, another hash of the envelope
def test_an_unsigned_header_that_was_added(federation):
    current = federation.open_round()
    envelope = update_of(A, current)
    tagged = cbor2.loads(envelope)
    tagged.value[1][99] = b"added by the broker"
    assert federation.deliver(A, cbor2.dumps(tagged)) == []


# 17 memory: the gate's sign patterns on an edge device
def test_the_gate_on_many_windows():
    gains = np.random.Generator(np.random.PCG64(1)).normal(size=6000)  # 0.3 of 20,000 windows
    tracemalloc.start()
    gate.chance(gains)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


# 18 configuration: errors that are not SetupError with file and key
def test_a_key_in_the_configuration_that_is_none(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text('device = "a"\nfederation = "b"\nserver_key = "zz"\n[source]\ndirectory = "s"\n')
    with pytest.raises(SetupError, match="server_key"):
        load_agent(path)


@pytest.mark.parametrize("field", ["learning_rate", "epochs"])
def test_a_number_beyond_all_floats(field):
    with pytest.raises(SchemaError):
        records.from_named(TrainingPolicy, {field: 10**400})


def test_a_deadline_that_is_no_number():
    with pytest.raises(ValueError, match="deadline_seconds"):
        RoundPolicy(deadline_seconds=float("nan"))


# 19 check-config reads nothing of a replay, and counts hidden files
def test_check_config_of_a_replay(tmp_path, capsys):
    owner = Owner(tmp_path, capsys)
    owner.install().close()
    owner.configure('kind = "replay"\n')
    (tmp_path / "spool" / "b.csv").write_text("broken")
    assert owner("check-config")[0] == 1


def test_check_config_and_hidden_files(tmp_path, capsys):
    owner = Owner(tmp_path, capsys)
    write_recording(tmp_path / "spool" / ".half.csv", two_levels(1))
    assert "recordings     0 in" in owner("check-config")[1]


# 20 the supervisor takes another broker on its port for its own
def test_a_port_that_another_broker_has(tmp_path):
    with BrokerSupervisor(tmp_path / "a", kind="mosquitto") as first:
        second = BrokerSupervisor(tmp_path / "b", kind="mosquitto", port=first.port)
        try:
            with pytest.raises(ServerError):
                second.start()
        finally:
            second.stop()


# 21 an older round displaces a newer one that waits for its release
def test_an_older_round_after_a_newer_one():
    state, _ = participant.on_round(installed(), "pump-1", open_round(5, base=1))
    state, _ = participant.on_round(state, "pump-1", open_round(4, base=0))
    assert participant.on_adopted(state, release(1))[1] != []


# 22 agent stops: the source's folder is away for a moment (a mount, a card)
def test_a_source_folder_that_is_away(trained):
    trained.spool.rename(trained.folder / "away")
    trained.clock.advance(60.0)
    trained.agent.tick()


# 23 a key below something that is no folder: NotADirectoryError from the clean-up hides the SetupError
def test_a_key_in_a_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be written"):
        load_or_make(tmp_path / "file" / "device.key")
