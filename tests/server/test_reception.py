"""Where messages come in: who may speak at all, sealed to whom, about which round."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import EncodingError, IdentityError, ProtocolError, SealingError, SignatureError
from protocol.identity import RenewalRequest
from protocol.messages import ChunkRequest, DeviceState, Report, Update, sign_message
from protocol.sealing import HYBRID, SealingKey
from protocol.signing import PrivateKey
from server.identities import QUARANTINED, REVOKED, NewCertificate
from server.limits import LimitsPolicy, RateLimiter
from server.reception import Incoming, Reception, RefusedMessage
from server.store import Store
from tests.builders import SEALING, Clock, private_key
from tests.server.databases import Database
from tests.server.federation import TOPICS

KEY, STRANGER = private_key(1), private_key(66)
UPDATE = Update(7, bytes(8), 10, b"steps", b"body")
REPORT = Report(5, "local")
STATE = DeviceState(True, 1, KEY.public.raw)
MESSAGES: dict[str, Any] = {
    "state": STATE,
    "update": UPDATE,
    "report": REPORT,
    "get": ChunkRequest(bytes(32), (0,)),
    "renew": RenewalRequest(b"csr"),
}
NUMBERS = {"update": 7, "report": 5}
SEALED = tuple(NUMBERS)
by_kind = pytest.mark.parametrize("kind", MESSAGES)
by_sealed = pytest.mark.parametrize("kind", SEALED)
LIMIT = 4096


class Server:
    """A reception on a store with one registered device."""

    def __init__(self, directory: Path, url: str) -> None:
        self.clock, self.store = Clock(), Store(directory, url)
        self.store.register_device("pump-1", KEY.public, self.clock())
        self.reception = self.make()

    def make(self, *sealing: SealingKey, open_enrolment: bool = False) -> Reception:
        return Reception(
            self.store,
            TOPICS,
            sealing or (SEALING,),
            self.clock,
            limiter=RateLimiter(LimitsPolicy()),
            maximum_update_bytes=LIMIT,
            open_enrolment=open_enrolment,
        )

    def receive(self, kind: str, payload: bytes | None = None, device: str = "pump-1") -> Incoming | None:
        return self.reception.receive(TOPICS.up(device, kind), said(kind) if payload is None else payload)

    def certify(self, until: float) -> None:
        made = NewCertificate(1, b"r" * 32, until, b"pem")
        self.store.renew("pump-1", b"r" * 32, self.clock(), lambda: made)


def said(
    kind: str,
    message: Any = None,
    *,
    key: PrivateKey = KEY,
    device: str = "pump-1",
    sealing: SealingKey = SEALING,
    number: int | None = None,
) -> bytes:
    """What an honest device publishes, but for what the arguments say."""
    topic = TOPICS.up(device, kind)
    envelope = sign_message(MESSAGES[kind] if message is None else message, key, topic)
    if kind not in SEALED:
        return envelope
    return sealing.public.seal(envelope, topic, NUMBERS[kind] if number is None else number)


@contextmanager
def refuses(
    kind: type[ProtocolError], *, match: str | None = None, signed: bool | None = None
) -> Iterator[None]:
    """What follows is refused for such an error; `signed`: by the device itself."""
    with pytest.raises(RefusedMessage, match=match) as caught:
        yield
    assert isinstance(caught.value.error, kind)
    assert signed in (None, caught.value.signed)


@pytest.fixture
def server(tmp_path: Path, database: Database) -> Iterator[Server]:
    server = Server(tmp_path / "data", database(tmp_path / "data"))
    yield server
    server.store.close()


@by_kind
def test_a_registered_device_is_heard(server: Server, kind: str) -> None:
    incoming = server.receive(kind)
    assert incoming is not None
    assert (incoming.device, incoming.key, incoming.message) == ("pump-1", KEY.public, MESSAGES[kind])
    assert incoming.envelope == sign_message(MESSAGES[kind], KEY, TOPICS.up("pump-1", kind))


@by_kind
def test_who_is_not_registered_is_not(server: Server, kind: str) -> None:
    with refuses(IdentityError, match="not registered"):
        server.receive(kind, said(kind, device="pump-2"), "pump-2")


@by_kind
def test_who_was_revoked_a_moment_ago_is_not(server: Server, kind: str) -> None:
    assert server.receive(kind) is not None
    server.store.set_status("pump-1", REVOKED, "stolen", server.clock())
    with refuses(IdentityError, match="the device is revoked"):
        server.receive(kind)


@by_kind
def test_who_is_in_quarantine_is_heard_and_marked(server: Server, kind: str) -> None:
    server.store.set_status("pump-1", QUARANTINED, "odd", server.clock())
    incoming = server.receive(kind)
    assert incoming is not None
    assert incoming.quarantined
    server.store.set_status("pump-1", "active", "", server.clock())
    incoming = server.receive(kind)
    assert incoming is not None
    assert not incoming.quarantined


@by_kind
def test_whose_certificate_has_ended_may_only_renew_it(server: Server, kind: str) -> None:
    server.certify(server.clock() + 5)
    server.clock.advance(5)
    assert server.receive(kind) is not None
    server.clock.advance(1)
    if kind == "renew":
        assert server.receive(kind) is not None
        return
    with refuses(IdentityError, match="certificate has expired"):
        server.receive(kind)


@by_kind
def test_what_another_signed_is_refused(server: Server, kind: str) -> None:
    with refuses(SignatureError, signed=False):
        server.receive(kind, said(kind, key=STRANGER))
    server.store.register_device("pump-2", STRANGER.public, server.clock())
    with refuses(ProtocolError):  # moved from one device's topic to another's
        server.receive(kind, said(kind, key=STRANGER, device="pump-2"), "pump-1")


@by_sealed
def test_what_is_not_sealed_is_refused(server: Server, kind: str) -> None:
    with refuses(SealingError, match="expected a message sealed to this server's key", signed=False):
        server.receive(kind, sign_message(MESSAGES[kind], KEY, TOPICS.up("pump-1", kind)))


@by_sealed
@pytest.mark.parametrize("number", [0, 6, 8, (1 << 40) - 1])
def test_what_was_sealed_for_another_round_than_it_says_is_refused(
    server: Server, kind: str, number: int
) -> None:
    with refuses(SealingError, match=f"sealed for number {number}, and says that it is about"):
        server.receive(kind, said(kind, number=number))


@by_sealed
@pytest.mark.parametrize("suite", ["x25519", HYBRID])
def test_while_the_key_is_replaced_both_are_opened(server: Server, kind: str, suite: str) -> None:
    following = SealingKey.generate(suite)
    server.reception = server.make(following, SEALING)
    for key in (following, SEALING):
        assert server.receive(kind, said(kind, sealing=key)) is not None
    server.reception = server.make(following)
    with refuses(SealingError):
        server.receive(kind, said(kind, sealing=SEALING))


@by_sealed
def test_what_was_moved_to_the_other_kind_is_refused(server: Server, kind: str) -> None:
    [other] = set(SEALED) - {kind}
    with refuses(SealingError):
        server.receive(other, said(kind))


def test_an_update_is_bounded_by_the_configuration(server: Server) -> None:
    overhead = len(sign_message(replace(UPDATE, body=b""), KEY, "x")) + 8
    fits = replace(UPDATE, body=bytes(LIMIT - overhead))
    assert server.receive("update", said("update", fits)) is not None
    for size in (LIMIT + 1, 10 * LIMIT):
        with refuses(EncodingError, match="expected"):
            server.receive("update", said("update", replace(UPDATE, body=bytes(size))))


@by_kind
@pytest.mark.parametrize("payload", [b"\xff", bytes(11), bytes(1 << 16)])
def test_hostile_bytes_are_refused(server: Server, kind: str, payload: bytes) -> None:
    with refuses(ProtocolError):
        server.receive(kind, payload)


@by_kind
def test_only_a_state_may_be_cleared(server: Server, kind: str) -> None:
    if kind == "state":
        assert server.receive(kind, b"") is None
        return
    with refuses(ProtocolError):
        server.receive(kind, b"")


def test_foreign_topics_are_refused(server: Server) -> None:
    for topic in (TOPICS.down("pump-1", "receipt"), TOPICS.enroll("n", "request"), "x", ""):
        with refuses(EncodingError, match="expected a topic"):
            server.reception.receive(topic, b"x")


class TestOpenEnrolment:
    def greeting(self, device: str, key: PrivateKey = KEY, said_key: PrivateKey = KEY) -> bytes:
        message = replace(STATE, public_key=said_key.public.raw)
        return sign_message(message, key, TOPICS.up(device, "state"))

    def test_the_first_state_registers_and_no_other_kind(self, server: Server) -> None:
        server.reception = server.make(open_enrolment=True)
        for kind in set(MESSAGES) - {"state"}:
            with refuses(IdentityError, match="not registered"):
                server.receive(kind, said(kind, device="new"), "new")
        assert server.receive("state", self.greeting("new"), "new") is not None
        assert server.receive("report", said("report", device="new"), "new") is not None

    def test_a_key_that_did_not_sign_is_not_registered(self, server: Server) -> None:
        server.reception = server.make(open_enrolment=True)
        with refuses(SignatureError):
            server.receive("state", self.greeting("new", STRANGER), "new")
        assert server.store.identity("new") is None

    @pytest.mark.parametrize("name", ["graftwork-server-pumps", "GRAFTWORK-bridge"])
    def test_no_device_gets_the_name_of_a_service(self, server: Server, name: str) -> None:
        server.reception = server.make(open_enrolment=True)
        with refuses(EncodingError, match="does not begin with graftwork-"):
            server.receive("state", self.greeting(name), name)
        assert server.store.identity(name) is None

    def test_a_known_name_keeps_its_key(self, server: Server) -> None:
        server.reception = server.make(open_enrolment=True)
        with refuses(SignatureError):
            server.receive("state", self.greeting("pump-1", STRANGER, STRANGER))

    def test_a_revoked_device_does_not_come_back_that_way(self, server: Server) -> None:
        server.reception = server.make(open_enrolment=True)
        server.store.set_status("pump-1", REVOKED, "", server.clock())
        with refuses(IdentityError, match="revoked"):
            server.receive("state")
