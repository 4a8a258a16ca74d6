"""A broker that is away for hours or days, a device that is off for months, clocks that jump by a year."""

import math
from collections.abc import Callable, Iterator

import pytest

from agent.outbox import RESEND_SECONDS
from protocol.artifacts import describe
from protocol.charter import StalenessPolicy
from protocol.messages import ChunkRequest, Receipt, Round, verify_message
from protocol.release_coding import encode_keyframe
from protocol.topics import Topics
from server import offers as server_offers
from server.replay import SAME, replay_all
from server.round import RoundPolicy
from simulation.fake_broker import Disturbance
from simulation.in_process import FEDERATION, SERVER, InProcessFederation, key_of
from tests.simulation.test_in_process import NAMES, Runs, counted, held

HOUR, DAY, YEAR = 3600.0, 86_400.0, 365 * 86_400.0
AWAY = NAMES[0]
TOPICS = Topics(FEDERATION)
STEPS = 9
"""Of two undisturbed rounds of two devices, until all is done."""


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    runs.remove()


@pytest.fixture(scope="module")
def short(runs: Runs) -> str:
    """The release of two undisturbed rounds of two devices."""
    return runs.undisturbed(2, 2)


def stores(federation: InProcessFederation) -> dict[str, int]:
    """Bytes of every program's database."""
    return {
        name: sum(path.stat().st_size for path in (federation.directory / name).glob("*.sqlite"))
        for name in (SERVER, *NAMES[:2])
    }


@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize(("away", "step"), [(HOUR, 5.0), (3 * DAY, 600.0)])
def test_a_broker_that_is_away_costs_nothing_but_time(
    runs: Runs, short: str, away: float, step: float, forget: bool
) -> None:
    for before in range(STEPS):
        with runs.run(2, 2) as federation:
            for _ in range(before):
                federation.step(0.2)
            federation.broker.stop()
            federation.step(step)
            owed = {name: len(store.outbox()) for name, store in federation.agent_stores.items()}
            moments, size = dict(federation.moments), stores(federation)
            for _ in range(math.ceil(away / step)):
                federation.step(step)
            assert {name: len(store.outbox()) for name, store in federation.agent_stores.items()} == owed
            assert stores(federation) == size
            # A device tries to send its one update, and to ask for a package; two moments each.
            tries = {name: federation.moments.get(name, 0) - moments.get(name, 0) for name in NAMES[:2]}
            assert max(tries.values()) <= 2 * (away / RESEND_SECONDS + away / min(step, 10.0) + 2)
            federation.broker.start(forget=forget)
            assert federation.run(100) == short


@pytest.mark.parametrize("gone", ["broker", "broker, memory lost", "server"])
def test_no_round_closes_at_its_deadline_while_nobody_can_reach_the_server(
    runs: Runs, short: str, gone: str
) -> None:
    """Half of the updates are a quorum, and the deadline passes in that hour: the others count as ever."""
    policy = RoundPolicy(2, quorum=0.5, deadline_seconds=600.0, gather_seconds=HOUR, rounds=2)
    for before in range(18, 44):  # from the first round's opening into the second
        with runs.run(2, 2, round_policy=policy, disturbance=Disturbance(delay_seconds=2.0)) as federation:
            for _ in range(before):
                federation.step(0.4)
            if gone == "server":
                federation.kill(SERVER)
            else:
                federation.broker.stop()
            for _ in range(60):
                federation.step(HOUR / 60)
            if gone == "server":
                federation.start(SERVER)
            else:
                federation.broker.start(forget="lost" in gone)
            assert federation.run(200) == short
            assert counted(federation) == {number: list(NAMES[:2]) for number in (1, 2)}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keyframes in many chunks, as those of large adapters."""
    monkeypatch.setattr(server_offers, "describe", lambda data: describe(data, CHUNK_BYTES))


CHUNK_BYTES = 200
ABSENCE = 200
"""Rounds that go on without the device."""


@pytest.mark.usefixtures("small_chunks")
def test_a_device_that_was_off_for_months_catches_up_by_one_keyframe(runs: Runs) -> None:
    policy = RoundPolicy(
        minimum_devices=2, quorum=0.5, deadline_seconds=60.0, gather_seconds=1.0, rounds=ABSENCE + 10
    )
    with runs.run(devices=3, round_policy=policy) as federation:
        old = leave_with_an_update_that_never_left(federation)
        while held(federation, NAMES[1]) < ABSENCE / 2:
            federation.step(20.0)
        federation.kill(SERVER)
        federation.broker.restart(forget=True)  # the session of the absent device expired
        federation.step()
        federation.start(SERVER)
        while held(federation, NAMES[1]) < old.number + ABSENCE:
            federation.step(20.0)
        # Nobody else is there while it catches up, so that there is one release to catch up with.
        federation.kill(NAMES[1])
        federation.kill(NAMES[2])
        federation.step(100.0)
        store = federation.server_store
        assert store is not None
        newest = store.newest_release()
        assert newest is not None
        keyframe = encode_keyframe(newest.adapter)

        asked, receipts = requests(federation), receipts_of(federation)
        federation.start(AWAY)
        for _ in range(40):
            federation.step()
            if held(federation, AWAY) >= newest.number:
                break
        assert {artifact for artifact, _ in asked} == {describe(keyframe, CHUNK_BYTES).sha256}
        assert [index for _, index in asked] == list(range(math.ceil(len(keyframe) / CHUNK_BYTES)))
        assert len(asked) > 4
        adapter = federation.agent_stores[AWAY].adapter("received")
        assert adapter is not None
        assert adapter.tobytes() == newest.adapter.tobytes()

        [verdict] = [receipt.verdict for receipt in receipts if receipt.round == old.number]
        assert verdict == "late"
        maximum = StalenessPolicy().maximum
        assert f"up to {maximum} releases later" in receipts[0].reason
        assert federation.agent_stores[AWAY].outbox() == []
        assert AWAY not in counted(federation)[old.number]

        federation.start(NAMES[1])
        federation.start(NAMES[2])
        federation.run(100)
        assert AWAY in counted(federation)[policy.rounds]
        verdicts = {found.release: found.verdict for found in replay_all(store, FEDERATION)}
        assert set(verdicts.values()) == {SAME}
        assert len(verdicts) == policy.rounds + 1


def leave_with_an_update_that_never_left(federation: InProcessFederation) -> Round:
    """Kill the device when its update is committed, and before the broker has it."""
    publish = federation.broker.publish
    rounds: list[Round] = []

    def watch(client: str, name: str, payload: bytes, *, retain: bool) -> bool:
        if name == TOPICS.all("round"):
            rounds.append(verify_message(Round, payload, key_of(SERVER).public, name))
        if client == AWAY and name == TOPICS.up(AWAY, "update"):
            return False
        return publish(client, name, payload, retain=retain)

    federation.broker.publish = watch  # type: ignore[method-assign]
    while not federation.agent_stores[AWAY].outbox():
        federation.step()
    federation.kill(AWAY)
    federation.broker.publish = publish  # type: ignore[method-assign]
    return rounds[0]


def watch(federation: InProcessFederation, topic: str, note: Callable[[bytes], None]) -> None:
    """Call `note` with each payload on a topic from now on."""
    publish = federation.broker.publish

    def publish_and_note(client: str, name: str, payload: bytes, *, retain: bool) -> bool:
        if name == topic:
            note(payload)
        return publish(client, name, payload, retain=retain)

    federation.broker.publish = publish_and_note  # type: ignore[method-assign]


def requests(federation: InProcessFederation) -> list[tuple[bytes, int]]:
    """(artifact, chunk) that the device asks for from now on."""
    found: list[tuple[bytes, int]] = []
    topic = TOPICS.up(AWAY, "get")

    def note(payload: bytes) -> None:
        request = verify_message(ChunkRequest, payload, key_of(AWAY).public, topic)
        found.extend((request.artifact, index) for index in request.indices)

    watch(federation, topic, note)
    return found


def receipts_of(federation: InProcessFederation) -> list[Receipt]:
    """Receipts for the device from now on."""
    found: list[Receipt] = []
    topic = TOPICS.down(AWAY, "receipt")
    watch(
        federation,
        topic,
        lambda payload: found.append(verify_message(Receipt, payload, key_of(SERVER).public, topic)),
    )
    return found


@pytest.mark.parametrize("jump", [60 * DAY, -YEAR], ids=["forward", "back"])
@pytest.mark.parametrize("seed", range(2))
def test_a_device_whose_clock_jumps(runs: Runs, short: str, jump: float, seed: int) -> None:
    """On a link on which much must be sent again: what waits for its time must not wait for a year."""
    for before in range(STEPS):
        with runs.run(2, 2, seed=seed, disturbance=Disturbance(drop=0.3)) as federation:
            for _ in range(before):
                federation.step()
            federation.clock_errors[AWAY] = jump
            assert federation.run(300, seconds=2.0) == short


def test_a_device_whose_clock_is_a_year_ahead_begins_nothing_new_until_it_is_right(
    runs: Runs, short: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What the server signed is good for 90 days: to that device it might be the replay of an old release."""
    for before in range(STEPS):
        with runs.run(2, 2) as federation:
            for _ in range(before):
                federation.step()
            federation.clock_errors[AWAY] = YEAR
            release = held(federation, AWAY)
            caplog.clear()
            for _ in range(60):
                federation.step()
            assert held(federation, AWAY) <= release + 1  # one may have been begun with before
            assert "this device's clock is wrong" in caplog.text or federation.finished
            federation.clock_errors[AWAY] = 0.0
            federation.kill(AWAY)  # or the link breaks: what was dropped is retained
            federation.start(AWAY)
            assert federation.run(200) == short


def test_a_device_whose_clock_is_back_at_1970_after_every_start(runs: Runs, short: str) -> None:
    """Boards without a battery for their clock; the server takes its state although its time went back."""
    with runs.run(2, 2) as federation:
        for _ in range(3):
            federation.step()
            federation.kill(AWAY)
            federation.clock_errors[AWAY] = -federation.clock()
            federation.start(AWAY)
        assert federation.run(100) == short
