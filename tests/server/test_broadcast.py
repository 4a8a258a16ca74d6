"""What the server says to all: signed for a while, anew in the middle of it, and with every root there is."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.identity import CertificateResponse, Trust
from protocol.messages import Announcement, Receipt, Release, Round, verify_message
from protocol.trust import MAX_ROOTS, first_root, newest_root
from server.broadcast import DAY, Broadcast
from server.config import TrustPolicy
from tests.builders import SEALING, Clock, Wire
from tests.roots import SERVER, root
from tests.server.databases import Database
from tests.server.federation import TOPICS, Federation, update_of

VALIDITY = 10.0


@pytest.fixture
def federation(tmp_path: Path, database: Database) -> Iterator[Federation]:
    federation = Federation(tmp_path / "server", database=database)
    federation.config = replace(federation.config, trust=TrustPolicy(validity_days=VALIDITY))
    federation.restart()
    federation.push()
    federation.register()
    federation.coordinator.tick()
    yield federation
    federation.close()


def said(federation: Federation) -> dict[str, list[float]]:
    """By kind, when what is published was signed; clears what was published."""
    kinds = {"trust": Trust, "announcement": Announcement, "release": Release}
    found = {
        kind: [message.issued for message in federation.everything(cls, kind)] for kind, cls in kinds.items()
    }
    federation.wire.published.clear()
    return found


def test_what_is_retained_ends_after_its_time(federation: Federation) -> None:
    now = federation.clock()
    for kind, cls in (("announcement", Announcement), ("release", Release)):
        message = federation.newest(cls, kind)
        assert (message.issued, message.expires) == (now, now + VALIDITY * DAY)
    trust = federation.newest(Trust, "trust")
    assert (trust.issued, trust.expires) == (now, now + VALIDITY * DAY)
    assert (trust.roots, trust.sealing_key) == ((), SEALING.public.raw)


def test_it_is_signed_anew_after_half_of_its_time(federation: Federation) -> None:
    said(federation)
    federation.clock.advance(VALIDITY / 2 * DAY - 1)
    federation.coordinator.tick()
    assert said(federation) == {"trust": [], "announcement": [], "release": []}
    federation.clock.advance(1)
    for _ in range(3):
        federation.coordinator.tick()
    now = federation.clock()
    assert said(federation) == {"trust": [now], "announcement": [now], "release": [now]}
    federation.clock.advance(VALIDITY / 2 * DAY)
    federation.coordinator.tick()
    assert said(federation)["trust"] == [federation.clock()]


def test_a_clock_that_was_set_back_signs_anew_at_once(federation: Federation) -> None:
    """What was signed in the future would be newer for devices than all that is said from now on."""
    said(federation)
    federation.clock.advance(-1)
    federation.coordinator.tick()
    assert said(federation)["release"] == [federation.clock()]


def test_the_round_that_is_open_is_said_again_with_it(federation: Federation) -> None:
    patient = replace(federation.config.round, deadline_seconds=30 * DAY)
    federation.config = replace(federation.config, round=patient)
    federation.restart()
    current = federation.open_round()
    federation.wire.published.clear()
    federation.clock.advance(VALIDITY / 2 * DAY)
    federation.coordinator.tick()
    assert federation.everything(Round, "round") == [current]


def test_each_release_is_signed_when_it_is_made(federation: Federation) -> None:
    current = federation.open_round()
    federation.clock.advance(50)
    for name in federation.names:
        federation.deliver(name, update_of(name, current))
    assert (federation.release().number, federation.release().issued) == (1, federation.clock())


def test_devices_are_told_of_all_roots(federation: Federation) -> None:
    roots = [root(), root(2), root(3)]
    for data in roots:
        federation.store.add_root(data, "pumps", federation.clock())
    federation.restart()
    chain = federation.newest(Trust, "trust").roots
    assert list(chain) == roots
    assert newest_root(first_root(roots[0]), chain).version == 3


def test_more_roots_than_a_message_holds_stop_no_server() -> None:
    clock, wire = Clock(), Wire()
    broadcast = Broadcast(TOPICS, SERVER, wire, clock, VALIDITY)
    broadcast.trust([str(number).encode() for number in range(MAX_ROOTS + 3)], SEALING.public.raw)
    [payload] = wire.take(TOPICS.all("trust"))
    word = verify_message(Trust, payload, SERVER.public, TOPICS.all("trust"))
    assert (len(word.roots), word.roots[-1]) == (MAX_ROOTS, str(MAX_ROOTS + 2).encode())


def test_all_comes_again_after_a_reconnect_with_trust_first(federation: Federation) -> None:
    federation.wire.published.clear()
    federation.coordinator.disconnected()
    federation.coordinator.connected()
    topics = [topic for topic, _, _ in federation.wire.published]
    assert topics == [
        TOPICS.server_state(), TOPICS.all("trust"), TOPICS.all("announcement"), TOPICS.all("release")
    ]  # fmt: skip
    assert all(retain for _, _, retain in federation.wire.published)


def test_answers_to_one_are_not_retained() -> None:
    clock, wire = Clock(), Wire()
    broadcast = Broadcast(TOPICS, SERVER, wire, clock, VALIDITY)
    broadcast.to_device("pump-1", "receipt", Receipt(bytes(32), 1, "counted"))
    broadcast.to_newcomer("nonce", CertificateResponse("pending", bytes(32)))
    assert [(topic, retain) for topic, _, retain in wire.published] == [
        (TOPICS.down("pump-1", "receipt"), False),
        (TOPICS.enroll("nonce", "response"), False),
    ]
    payload = wire.published[1][1]
    topic = TOPICS.enroll("nonce", "response")
    assert verify_message(CertificateResponse, payload, SERVER.public, topic).status == "pending"


def test_without_a_link_nothing_is_lost(federation: Federation) -> None:
    federation.wire.published.clear()
    federation.wire.connected = False
    federation.clock.advance(VALIDITY / 2 * DAY)
    federation.coordinator.tick()
    assert federation.wire.published == []
    federation.wire.connected = True
    federation.coordinator.connected()
    assert said(federation)["release"] == [federation.clock()]
