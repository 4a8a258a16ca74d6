"""One release, bit for bit, whatever happens on the way: the whole federation in one process."""

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.download import WINDOW
from protocol.artifacts import describe
from protocol.charter import TrainingPolicy
from protocol.messages import ChunkRequest, Release, Update, verify_message
from protocol.topics import Topics
from server import offers as server_offers
from server.round import RoundPolicy
from simulation.errors import SimulationError
from simulation.in_process import (
    FEDERATION,
    SERVER,
    Disturbance,
    FakeBroker,
    FakeClock,
    InProcessFederation,
    key_of,
    server_keys,
)
from tests.builders import (
    WIDE_PARAMETERS,
    WIDE_SEGMENTS,
    WideEngine,
    tiny_package,
    two_levels,
    write_recording,
)

NAMES = ("pump-1", "pump-2", "pump-3", "pump-4")
# Three chunks, and an adapter large enough that its releases go as differences.
PACKAGE = tiny_package((0.0,) * WIDE_PARAMETERS, filler=150_000, segments=WIDE_SEGMENTS)
TRAINING = TrainingPolicy(learning_rate=0.1, epochs=2)
FOREVER = 1e7

Make = Callable[..., InProcessFederation]


def everyone(rounds: int, devices: int) -> RoundPolicy:
    """A policy under which no disturbance changes a cohort: every round waits for every device."""
    return RoundPolicy(
        minimum_devices=devices,
        quorum=1.0,
        deadline_seconds=FOREVER,
        gather_seconds=FOREVER,
        rounds=rounds,
    )


class Runs:
    """Federations in folders of their own, on memory where there is any: no run syncs a disk."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")  # noqa: S108 - a fresh folder in it
        self.folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self._numbers = itertools.count()
        self.spools = {name: self.folder / "spools" / name for name in NAMES}
        for index, spool in enumerate(self.spools.values()):
            spool.mkdir(parents=True)
            write_recording(spool / "a.csv", two_levels(8 + 2 * index))

    @contextmanager
    def run(self, rounds: int = 3, devices: int = 4, **changes: Any) -> Iterator[InProcessFederation]:
        directory = self.folder / str(next(self._numbers))
        arguments: dict[str, Any] = {
            "training": TRAINING,
            "make_engine": lambda *_: WideEngine(),
            "round_policy": everyone(rounds, devices),
            **changes,
        }
        spools = dict(itertools.islice(self.spools.items(), devices))
        try:
            with InProcessFederation(directory, PACKAGE, spools, **arguments) as federation:
                yield federation
        finally:
            shutil.rmtree(directory)

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def undisturbed(self, rounds: int, devices: int) -> str:
        with self.run(rounds, devices) as federation:
            return federation.run()


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    runs.remove()


@pytest.fixture(scope="module")
def expected(runs: Runs) -> str:
    """The release of three undisturbed rounds of four devices."""
    return runs.undisturbed(3, 4)


@pytest.fixture(scope="module")
def short(runs: Runs) -> str:
    """The release of two undisturbed rounds of two devices."""
    return runs.undisturbed(2, 2)


@pytest.fixture(scope="module")
def three(runs: Runs) -> str:
    """The release of two undisturbed rounds of three devices."""
    return runs.undisturbed(2, 3)


def counted(federation: InProcessFederation) -> dict[int, list[str]]:
    store = federation.server_store
    assert store is not None
    return {
        row["number"]: sorted(device for device, *_ in store.journalled_updates(row["number"]))
        for row in store.rounds()
    }


def test_the_same_release_in_every_undisturbed_run(runs: Runs, expected: str) -> None:
    with runs.run() as federation:
        assert federation.run() == expected
        assert counted(federation) == {number: list(NAMES) for number in (1, 2, 3)}
        store = federation.server_store
        assert store is not None
        releases = store.releases()
        assert [row["updates"] for row in releases] == [4, 4, 4, 0]
        assert releases[0]["metrics"]["loss_before"] < releases[2]["metrics"]["loss_before"]
        assert store.refusals() == []


@pytest.mark.parametrize("seed", range(3))
def test_every_message_twice_and_out_of_order(runs: Runs, expected: str, seed: int) -> None:
    disturbance = Disturbance(duplicate=1.0, delay_seconds=30.0)
    with runs.run(disturbance=disturbance, seed=seed) as federation:
        assert federation.run() == expected
        assert counted(federation) == {number: list(NAMES) for number in (1, 2, 3)}


@pytest.mark.parametrize("seed", range(2))
def test_a_fifth_of_all_messages_is_lost(runs: Runs, expected: str, seed: int) -> None:
    with runs.run(disturbance=Disturbance(drop=0.2), seed=seed) as federation:
        assert federation.run(seconds=2.0) == expected


@pytest.mark.parametrize("seed", range(3))
def test_a_third_of_all_messages_is_lost(runs: Runs, three: str, seed: int) -> None:
    with runs.run(2, 3, disturbance=Disturbance(drop=0.3), seed=seed) as federation:
        assert federation.run(seconds=2.0) == three


@pytest.mark.parametrize("seed", range(3))
def test_everything_wrong_at_once(runs: Runs, expected: str, seed: int) -> None:
    disturbance = Disturbance(drop=0.15, duplicate=0.3, delay_seconds=5.0)
    with runs.run(disturbance=disturbance, seed=seed) as federation:
        for step in range(60):
            federation.step()
            if step % 20 == 10:
                federation.broker.restart(forget=step == 30)
        assert federation.run(seconds=2.0) == expected


@pytest.mark.parametrize("forget", [True, False])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_broker_restarts(runs: Runs, expected: str, every: int, forget: bool) -> None:
    with runs.run(disturbance=Disturbance(delay_seconds=1.5)) as federation:
        for step in range(12):
            federation.step()
            if step % every == 0:
                federation.broker.restart(forget=forget)
        assert federation.run() == expected


def test_the_server_is_killed_at_every_moment(runs: Runs, short: str) -> None:
    with runs.run(2, 2) as federation:
        federation.run()
        moments = federation.moments[SERVER]
    assert moments > 40
    for moment in range(1, moments + 1):
        with runs.run(2, 2) as federation:
            kill_and_restart(federation, SERVER, moment)
            assert federation.run(200) == short, f"killed at moment {moment} of {moments}"


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_device_is_killed_at_every_moment(runs: Runs, short: str, name: str) -> None:
    with runs.run(2, 2) as federation:
        federation.run()
        moments = federation.moments[name]
    assert moments > 25
    for moment in range(1, moments + 1):
        with runs.run(2, 2) as federation:
            kill_and_restart(federation, name, moment)
            assert federation.run(200) == short, f"killed at moment {moment} of {moments}"


def kill_and_restart(federation: InProcessFederation, name: str, moment: int) -> None:
    federation.kill_at(name, moment)
    for _ in range(100):
        federation.step()
        if not federation.running(name):
            break
    else:
        raise AssertionError(f"{name} never came to moment {moment}")
    federation.step()
    federation.start(name)


def test_a_server_that_never_gets_far(runs: Runs, short: str) -> None:
    """Killed again and again, each life a little longer than what it takes to start."""
    with runs.run(2, 2) as federation:
        for life in range(1, 60):
            if federation.running(SERVER):
                federation.kill_at(SERVER, federation.moments.get(SERVER, 0) + 8 + life % 7)
            else:
                federation.start(SERVER)
            federation.step()
        if not federation.running(SERVER):
            federation.start(SERVER)
        federation.kill_at(SERVER, 0)
        assert federation.run(300) == short


def test_all_die_together(runs: Runs, expected: str) -> None:
    """A power cut of the plant in every step, broker included."""
    with runs.run() as federation:
        for _ in range(10):
            federation.step()
            for name in (SERVER, *NAMES):
                federation.kill(name)
            federation.broker.restart(forget=True)
            for name in (*NAMES, SERVER):
                federation.start(name)
        assert federation.run() == expected


def test_a_device_that_stays_away_changes_nothing_for_the_others(runs: Runs) -> None:
    policy = RoundPolicy(minimum_devices=4, quorum=0.5, deadline_seconds=60.0, gather_seconds=10.0, rounds=1)
    with runs.run(round_policy=policy) as federation:
        federation.run()
        reference = envelopes(federation)
    with runs.run(round_policy=policy) as federation:
        # Its update is lost with it: the round stays open for it until the deadline.
        federation.kill_at(NAMES[0], moment_of_update(runs, policy))
        for _ in range(100):
            federation.step()
        assert envelopes(federation) == {name: reference[name] for name in NAMES[1:]}
        store = federation.server_store
        assert store is not None
        [row] = store.rounds()
        assert (row["outcome"], row["counted"], row["cohort"]) == ("released", 3, list(NAMES))
        federation.start(NAMES[0])
        for _ in range(5):
            federation.step()
        assert federation.finished  # the latecomer's update got its receipt and it holds the release
        assert envelopes(federation) == {name: reference[name] for name in NAMES[1:]}


def envelopes(federation: InProcessFederation) -> dict[str, bytes]:
    store = federation.server_store
    assert store is not None
    return {device: envelope for device, envelope, *_ in store.journalled_updates(1)}


def moment_of_update(runs: Runs, policy: RoundPolicy) -> int:
    """The moment just before the first device's first update leaves it."""
    with runs.run(round_policy=policy) as federation:
        taken: list[int] = []
        publish = federation.broker.publish

        def watch(client: str, topic: str, payload: bytes, *, retain: bool) -> bool:
            if topic == Topics(FEDERATION).up(NAMES[0], "update"):
                taken.append(federation.moments[NAMES[0]])
            return publish(client, topic, payload, retain=retain)

        federation.broker.publish = watch  # type: ignore[method-assign]
        federation.run()
    return taken[0]


AWAY = NAMES[0]


def without_waiting(rounds: int) -> RoundPolicy:
    """A policy under which three of four devices go on without the fourth."""
    return RoundPolicy(
        minimum_devices=3, quorum=1.0, deadline_seconds=FOREVER, gather_seconds=5.0, rounds=rounds
    )


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keyframes in many chunks, as those of large adapters."""
    monkeypatch.setattr(server_offers, "describe", lambda data: describe(data, 200))


@contextmanager
def a_device_away(
    runs: Runs, *, forget: bool, rounds: int = 4, **changes: Any
) -> Iterator[InProcessFederation]:
    """Four rounds, all but the first without one device; it is about to start again.

    Args:
        runs: where to run.
        forget: the broker kept nothing for the device, as after its session expired.
        rounds: of which more than four are still to come.
        changes: of the federation.
    """
    with runs.run(round_policy=without_waiting(rounds), **changes) as federation:
        while held(federation, AWAY) < 1:
            federation.step()
        federation.kill(AWAY)
        while held(federation, NAMES[1]) < 4:
            federation.step()
        if forget:
            federation.broker.restart(forget=True)
            federation.step()
        yield federation


def held(federation: InProcessFederation, name: str) -> int:
    return federation.agent_stores[name].state().release


def chunks_asked(federation: InProcessFederation) -> list[tuple[bytes, int]]:
    """(artifact, chunk) that the device asks for from now on, as they come."""
    found: list[tuple[bytes, int]] = []
    topic = Topics(FEDERATION).up(AWAY, "get")
    publish = federation.broker.publish

    def watch(client: str, name: str, payload: bytes, *, retain: bool) -> bool:
        if name == topic:
            request = verify_message(ChunkRequest, payload, key_of(AWAY).public, topic)
            found.extend((request.artifact, index) for index in request.indices)
        return publish(client, name, payload, retain=retain)

    federation.broker.publish = watch  # type: ignore[method-assign]
    return found


def holds_the_newest(federation: InProcessFederation) -> bool:
    """Whether the device holds the server's newest adapter, to the bit."""
    store = federation.server_store
    newest = store.newest_release() if store else None
    adapter = federation.agent_stores[AWAY].adapter("global")
    return newest is not None and adapter is not None and adapter.tobytes() == newest.adapter.tobytes()


def test_a_release_is_a_fraction_of_its_adapter(runs: Runs) -> None:
    with runs.run(round_policy=without_waiting(4)) as federation:
        topic = Topics(FEDERATION).all("release")
        sizes: list[int] = []
        publish = federation.broker.publish

        def watch(client: str, name: str, payload: bytes, *, retain: bool) -> bool:
            if name == topic:
                sizes.append(len(verify_message(Release, payload, key_of(SERVER).public, topic).body))
            return publish(client, name, payload, retain=retain)

        federation.broker.publish = watch  # type: ignore[method-assign]
        federation.run()
        assert sizes[0] == 0  # the package has it
        assert 0 < max(sizes) < 4 * WIDE_PARAMETERS / 14
        assert chunks_asked(federation) == []


def test_a_device_back_after_some_releases_takes_their_differences_from_its_session(runs: Runs) -> None:
    with a_device_away(runs, forget=False) as federation:
        asked = chunks_asked(federation)
        federation.start(AWAY)
        federation.run(50)
        assert holds_the_newest(federation)
        assert asked == []


@pytest.mark.usefixtures("small_chunks")
def test_a_device_back_after_its_session_expired_pulls_the_keyframe(runs: Runs) -> None:
    with a_device_away(runs, forget=True) as federation:
        asked = chunks_asked(federation)
        federation.start(AWAY)
        federation.run(50)
        assert holds_the_newest(federation)
        assert sorted(index for _, index in asked) == list(range(len(asked)))
        assert len(asked) > WINDOW


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("seed", range(3))
def test_a_keyframe_through_a_lossy_link(runs: Runs, seed: int) -> None:
    with a_device_away(runs, forget=True, seed=seed) as federation:
        federation.broker.disturbance = Disturbance(drop=0.3, duplicate=0.3, delay_seconds=5.0)
        federation.start(AWAY)
        federation.run(500, seconds=2.0)
        assert holds_the_newest(federation)


@pytest.mark.usefixtures("small_chunks")
def test_a_device_is_killed_at_every_moment_of_catching_up(runs: Runs) -> None:
    with a_device_away(runs, forget=True) as federation:
        before = federation.moments[AWAY]
        federation.start(AWAY)
        federation.run(50)
        moments = federation.moments[AWAY] - before
    assert moments > 12
    for moment in range(1, moments + 1):
        with a_device_away(runs, forget=True) as federation:
            asked = chunks_asked(federation)
            federation.start(AWAY)
            federation.kill_at(AWAY, federation.moments[AWAY] + moment)
            for _ in range(20):
                federation.step()
            if not federation.running(AWAY):
                federation.start(AWAY)
            federation.run(100)
            assert holds_the_newest(federation), f"killed at moment {moment} of {moments}"
            # What arrived before is on disk; at most a window that was on its way is asked for again.
            assert len(asked) <= len(set(asked)) + WINDOW


@pytest.mark.usefixtures("small_chunks")
def test_releases_overtake_the_keyframe_that_is_pulled(runs: Runs) -> None:
    with a_device_away(runs, forget=True, rounds=9) as federation:
        federation.broker.disturbance = Disturbance(delay_seconds=40.0)
        asked = chunks_asked(federation)
        federation.start(AWAY)
        federation.run(2000)
        assert held(federation, AWAY) == 9
        assert holds_the_newest(federation)
        assert len({artifact for artifact, _ in asked}) > 1


def test_an_update_of_a_dead_round_is_answered_late(runs: Runs) -> None:
    with runs.run(2, 2) as federation:
        federation.run()
        store = federation.server_store
        assert store is not None
        [(device, envelope, *_), *_] = store.journalled_updates(1)
        topic = Topics(FEDERATION).up(device, "update")
        assert verify_message(Update, envelope, key_of(device).public, topic).round == 1
        before = federation.release_sha256
        sealed = server_keys().sealing[0].public.seal(envelope, topic, 1)
        federation.broker.publish(device, topic, sealed, retain=False)
        federation.step()
        assert federation.release_sha256 == before
        assert store.refusals() == []


ACTIONS = st.one_of(
    st.tuples(st.just("step"), st.sampled_from([0.5, 1.0, 11.0, 25.0])),
    st.tuples(st.just("kill"), st.sampled_from([SERVER, *NAMES[:3]])),
    st.tuples(st.just("start"), st.sampled_from([SERVER, *NAMES[:3]])),
    st.tuples(st.just("kill_at"), st.tuples(st.sampled_from([SERVER, *NAMES[:3]]), st.integers(1, 30))),
    st.tuples(st.just("broker"), st.booleans()),
    st.tuples(
        st.just("disturb"),
        st.builds(
            Disturbance,
            drop=st.sampled_from([0.0, 0.1, 0.3, 0.9]),
            duplicate=st.sampled_from([0.0, 0.5, 1.0]),
            delay_seconds=st.sampled_from([0.0, 2.0, 40.0]),
        ),
    ),
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(schedule=st.lists(ACTIONS, max_size=40), seed=st.integers(0, 1000))
def test_any_schedule_of_disturbances(
    runs: Runs, three: str, schedule: list[tuple[str, Any]], seed: int
) -> None:
    with runs.run(2, 3, seed=seed) as federation:
        for action, argument in schedule:
            disturb(federation, action, argument)
        federation.broker.disturbance = Disturbance()
        for name in (SERVER, *NAMES[:3]):
            federation.kill_at(name, 0)
            if not federation.running(name):
                federation.start(name)
        assert federation.run(300) == three
        assert counted(federation) == {number: list(NAMES[:3]) for number in (1, 2)}


def disturb(federation: InProcessFederation, action: str, argument: Any) -> None:
    if action == "step":
        federation.step(argument)
    elif action == "kill":
        federation.kill(argument)
    elif action == "start":
        if not federation.running(argument):
            federation.start(argument)
    elif action == "kill_at":
        name, after = argument
        federation.kill_at(name, federation.moments.get(name, 0) + after)
    elif action == "broker":
        federation.broker.restart(forget=argument)
    else:
        federation.broker.disturbance = argument


def test_a_federation_that_cannot_finish_says_so(runs: Runs) -> None:
    with runs.run(2, 2) as federation:
        federation.kill(NAMES[0])
        with pytest.raises(SimulationError, match="not through after 20 steps"):
            federation.run(20)
        federation.kill(SERVER)
        with pytest.raises(SimulationError, match="not running"):
            _ = federation.release_sha256


class TestBroker:
    """What the fake broker keeps of MQTT."""

    WILL = ("will", b"gone")

    def broker(self, **changes: float) -> tuple[FakeBroker, FakeClock]:
        clock = FakeClock()
        return FakeBroker(clock, Disturbance(**changes), 0), clock

    def drain(self, broker: FakeBroker) -> list[tuple[str, str, bytes]]:
        found = []
        while delivery := broker.next():
            broker.acknowledge(*delivery)
            found.append((delivery[0], delivery[1].topic, delivery[1].payload))
        return found

    def test_plus_stands_for_one_level(self) -> None:
        broker, _ = self.broker()
        broker.connect("a", ["up/+/state"], self.WILL)
        for topic in ("up/x/state", "up/x/y/state", "up/state", "up/x/report"):
            broker.publish("a", topic, b"m", retain=False)
        assert self.drain(broker) == [("a", "up/x/state", b"m")]

    def test_retained_for_latecomers_and_queues_for_the_absent(self) -> None:
        broker, _ = self.broker()
        broker.connect("a", ["t"], self.WILL)
        broker.connect("b", [], self.WILL)
        broker.disconnect("a")
        broker.publish("b", "t", b"1", retain=False)
        broker.publish("b", "t", b"2", retain=True)
        assert self.drain(broker) == []
        broker.connect("a", ["t"], self.WILL)
        assert [payload for _, _, payload in self.drain(broker)] == [b"1", b"2", b"2"]
        broker.connect("c", ["t"], self.WILL)
        assert self.drain(broker) == [("c", "t", b"2")]

    def test_a_delivery_comes_until_it_is_acknowledged(self) -> None:
        broker, _ = self.broker()
        broker.connect("a", ["t"], self.WILL)
        broker.publish("a", "t", b"1", retain=False)
        assert broker.next() == broker.next() != None  # noqa: E711

    def test_a_broken_link_publishes_the_will(self) -> None:
        broker, _ = self.broker()
        broker.connect("a", [], self.WILL)
        broker.connect("b", ["will"], ("other", b""))
        broker.disconnect("a")
        assert self.drain(broker) == [("b", "will", b"gone")]
        assert not broker.publish("a", "t", b"", retain=False)

    def test_a_restart_forgets_when_asked(self) -> None:
        for forget, kept in ((True, 0), (False, 2)):
            broker, _ = self.broker()
            broker.connect("a", ["t"], self.WILL)
            broker.publish("a", "t", b"1", retain=True)
            broker.restart(forget=forget)
            assert not broker.connected("a")
            broker.connect("a", ["t"], self.WILL)
            assert len(self.drain(broker)) == kept

    def test_retained_messages_of_a_topic_keep_their_order(self) -> None:
        broker, clock = self.broker(delay_seconds=100.0, duplicate=0.5)
        broker.connect("a", ["kept", "free"], self.WILL)
        for index in range(20):
            broker.publish("a", "kept", bytes([index]), retain=True)
            broker.publish("a", "free", bytes([index]), retain=False)
        clock.advance(1.0)
        assert len(self.drain(broker)) < 20
        clock.advance(100.0)
        found = self.drain(broker)
        kept = [payload for _, topic, payload in found if topic == "kept"]
        free = [payload for _, topic, payload in found if topic == "free"]
        assert kept == sorted(kept)
        assert free != sorted(free)
