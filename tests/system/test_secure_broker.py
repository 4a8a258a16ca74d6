"""Attacks on the broker that `broker-config` sets up. In each an honest client shows that the way is open."""

import socket
import ssl
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from runtime.broker import BrokerConfig
from server import certificates
from server.broker import free_port
from server.errors import ServerError
from server.sessions import end_session
from tests.system.plant import needs_mosquitto
from tests.system.secure_broker import (
    DAY,
    FEDERATION,
    PREFIX,
    Attempt,
    Client,
    Heard,
    Identity,
    SecureBroker,
    clock,
)

pytestmark = [pytest.mark.system, needs_mosquitto]

UP = f"{PREFIX}/up/+/+"
REQUESTS = f"{PREFIX}/enroll/+/request"
IN = Attempt(True, "Success")


def up(device: str, kind: str = "state") -> str:
    return f"{PREFIX}/up/{device}/{kind}"


def down(device: str) -> str:
    return f"{PREFIX}/dn/{device}/receipt"


def enrolment(client_id: str, kind: str) -> str:
    return f"{PREFIX}/enroll/{client_id}/{kind}"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    with SecureBroker(tmp_path_factory.mktemp("secure")) as running:
        yield running


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes every client of a test."""
    with ExitStack() as clients:
        yield clients


@pytest.fixture
def server(broker: SecureBroker, stack: ExitStack) -> Client:
    return stack.enter_context(broker.connect_server(UP, REQUESTS))


@pytest.fixture
def honest(broker: SecureBroker, stack: ExitStack) -> Client:
    """A device of the name "honest" that listens to all that is meant for it."""
    client = stack.enter_context(broker.connect_device("honest"))
    client.listen(down("honest"), f"{PREFIX}/all/+")
    return client


def heard_from(sender: Client, device: str, server: Client, payload: bytes = b"control") -> list[Heard]:
    """What the server hears up to a message of an honest device, which comes last."""
    assert sender.publish(up(device), payload) == "Success"
    return server.wait_for(up(device), payload)


def test_a_device_cannot_publish_as_another(
    broker: SecureBroker, stack: ExitStack, server: Client, honest: Client
) -> None:
    attacker = stack.enter_context(broker.connect_device("mallory"))
    everything = stack.enter_context(broker.connect_server("#"))
    for topic in (
        up("honest"),
        down("honest"),
        f"{PREFIX}/all/release",
        f"{PREFIX}/srv/state",
        "other/topic",
    ):
        assert attacker.publish(topic, b"forged") == "Not authorized"
        assert attacker.publish(topic, b"forged", retain=True) == "Not authorized"
    assert attacker.publish(enrolment("n", "request"), b"forged") == "Not authorized"
    assert attacker.publish(f"{PREFIX}/up/mallory/deeper/state", b"forged") == "Not authorized"
    assert heard_from(honest, "honest", server) == [Heard(up("honest"), b"control")]
    assert heard_from(attacker, "mallory", server, b"own")[-1] == Heard(up("mallory"), b"own")
    assert honest.heard == everything.heard == []


def test_a_last_will_cannot_be_left_on_another_devices_topic(
    broker: SecureBroker, stack: ExitStack, server: Client, honest: Client
) -> None:
    for device in ("honest", "mallory"):
        attacker = broker.connect_device("mallory", will=(up(device), b"will of mallory"))
        stack.callback(attacker.close)
        attacker.close(with_will=True)
    server.wait_for(up("mallory"), b"will of mallory")
    assert heard_from(honest, "honest", server) == [
        Heard(up("mallory"), b"will of mallory"),
        Heard(up("honest"), b"control"),
    ]


def test_a_client_id_of_another_device_does_not_disturb_it(
    broker: SecureBroker, stack: ExitStack, server: Client, honest: Client
) -> None:
    attacker = stack.enter_context(broker.attacker(broker.device("mallory"), client_id="honest"))
    assert attacker.connect() == IN  # under its own name
    attacker.listen("#", down("honest"))
    assert attacker.publish(up("honest"), b"forged") == "Not authorized"
    assert server.publish(down("honest"), b"receipt") == "Success"
    honest.wait_for(down("honest"), b"receipt")
    assert heard_from(honest, "honest", server) == [Heard(up("honest"), b"control")]
    assert (honest.disconnected, attacker.heard) == ("", [])


def test_a_session_of_another_device_cannot_be_taken_over(
    broker: SecureBroker, stack: ExitStack, server: Client
) -> None:
    identity = broker.device("sleeper")
    sleeper = broker.attacker(identity, client_id="sleeper")
    stack.callback(sleeper.close)
    assert sleeper.connect(clean_start=False, expiry_seconds=600) == IN
    sleeper.listen(down("sleeper"))
    sleeper.close()
    assert server.publish(down("sleeper"), b"queued") == "Success"
    attacker = stack.enter_context(broker.attacker(broker.device("mallory"), client_id="sleeper"))
    assert attacker.connect(clean_start=False, expiry_seconds=600) == IN
    anonymous = stack.enter_context(broker.attacker(port=broker.enrolment_port, client_id="sleeper"))
    assert anonymous.connect(clean_start=False, expiry_seconds=600) == IN
    awake = stack.enter_context(broker.attacker(identity, client_id="sleeper"))
    assert awake.connect(clean_start=False, expiry_seconds=600) == IN
    awake.wait_for(down("sleeper"), b"queued")
    assert attacker.publish(up("mallory"), b"own") == "Success"
    assert attacker.heard == anonymous.heard == []


@pytest.mark.parametrize(
    "filters",
    [("#",), ("+/#",), (f"{PREFIX}/dn/+/+",), (down("honest"),), (f"$share/g/{PREFIX}/dn/#",), ("$SYS/#",)],
)
def test_a_subscription_brings_nothing_that_is_meant_for_another(
    broker: SecureBroker, stack: ExitStack, server: Client, honest: Client, filters: tuple[str, ...]
) -> None:
    attacker = stack.enter_context(broker.connect_device("mallory"))
    attacker.listen(*filters, f"{PREFIX}/all/+", f"{PREFIX}/srv/state")
    assert server.publish(down("honest"), b"receipt") == "Success"
    assert server.publish(f"{PREFIX}/all/round", b"for all") == "Success"
    assert heard_from(honest, "honest", server)[-1] == Heard(up("honest"), b"control")
    honest.wait_for(down("honest"), b"receipt")
    assert {heard.topic for heard in attacker.wait_for(f"{PREFIX}/all/round", b"for all")} == {
        f"{PREFIX}/all/round"
    }
    attacker.listen(down("mallory"))
    assert server.publish(down("mallory"), b"own") == "Success"
    attacker.wait_for(down("mallory"), b"own")
    assert down("honest") not in {heard.topic for heard in attacker.heard}


def _self_signed(broker: SecureBroker) -> Identity:
    key = certificates.new_key()
    subject = certificates.name("mallory", FEDERATION)
    validity = certificates.Validity(certificates.moment(clock() - DAY), certificates.moment(clock() + DAY))
    signer = certificates.Signer(certificates.self_signed(key, subject, validity), key)
    issued = certificates.sign(
        signer, subject, key.public_key(), validity=validity, purpose=certificates.CLIENT
    )
    return broker.identity("self-signed", issued.certificate, certificates.key_pem(key))


def _written(broker: SecureBroker, stem: str) -> Identity:
    return Identity(broker.written / f"{stem}.crt", broker.written / f"{stem}.key")


IDENTITIES: dict[str, Callable[[SecureBroker], Identity | None]] = {
    "nothing": lambda _: None,
    "expired": lambda broker: broker.device("mallory", at=-10 * DAY, days=9),
    "not yet valid": lambda broker: broker.device("mallory", at=DAY),
    "foreign CA": lambda broker: broker.device("mallory", foreign=True),
    "self-signed": _self_signed,
    "claim": lambda broker: broker.claim("mallory"),
    "server": lambda broker: broker.server,
    "bridge": lambda broker: _written(broker, "bridge"),
    "broker": lambda broker: _written(broker, "broker"),
    "device": lambda broker: broker.device("mallory"),
}
"""What an attacker may hold."""


@pytest.mark.parametrize("what", [name for name in IDENTITIES if name != "device"])
def test_only_a_valid_certificate_of_a_device_gets_in(
    broker: SecureBroker, stack: ExitStack, server: Client, honest: Client, what: str
) -> None:
    attacker = stack.enter_context(broker.attacker(IDENTITIES[what](broker), client_id="mallory"))
    assert not attacker.connect().connected
    assert heard_from(honest, "honest", server) == [Heard(up("honest"), b"control")]
    with broker.connect_device("mallory") as mallory:
        assert mallory.publish(up("mallory"), b"own") == "Success"


@pytest.mark.parametrize("what", [name for name in IDENTITIES if name not in {"server", "bridge"}])
def test_only_services_get_in_where_the_server_does(
    broker: SecureBroker, stack: ExitStack, server: Client, honest: Client, what: str
) -> None:
    client_id = f"{what}-{free_port()}"
    attacker = stack.enter_context(broker.attacker(IDENTITIES[what](broker), broker.service_port, client_id))
    assert not attacker.connect().connected
    assert heard_from(honest, "honest", server) == [Heard(up("honest"), b"control")]


def test_a_device_with_an_ed25519_key_gets_in(broker: SecureBroker, stack: ExitStack, server: Client) -> None:
    identity = broker.device("modern", key=ed25519.Ed25519PrivateKey.generate())
    modern = stack.enter_context(broker.connect_device("modern", identity))
    assert heard_from(modern, "modern", server) == [Heard(up("modern"), b"control")]


@pytest.mark.parametrize("port", ["port", "enrolment_port", "service_port"])
def test_neither_plaintext_nor_tls_1_2_gets_in(
    broker: SecureBroker, stack: ExitStack, server: Client, honest: Client, port: str
) -> None:
    number = getattr(broker, port)
    identity = {"port": broker.device("mallory"), "enrolment_port": None, "service_port": broker.server}[port]
    plain = stack.enter_context(Client(number, "mallory"))
    assert not plain.connect().connected
    old = stack.enter_context(
        broker.attacker(identity, number, f"old-{port}", maximum_tls=ssl.TLSVersion.TLSv1_2)
    )
    assert "alert protocol version" in old.connect().reason
    new = stack.enter_context(broker.attacker(identity, number, f"new-{port}"))
    assert new.connect() == IN
    assert heard_from(honest, "honest", server) == [Heard(up("honest"), b"control")]


def test_a_device_does_not_connect_to_a_broker_of_another_ca(broker: SecureBroker, stack: ExitStack) -> None:
    trusted = broker.directory / "foreign-services.crt"
    trusted.write_bytes(broker.foreign.trusted("services"))
    client = stack.enter_context(broker.attacker(broker.device("honest"), trusted=trusted))
    assert "CERTIFICATE_VERIFY_FAILED" in client.connect().reason
    trusted.write_bytes(broker.authority.trusted("devices"))  # of the same operator, for another purpose
    client = stack.enter_context(broker.attacker(broker.device("honest"), trusted=trusted))
    assert "CERTIFICATE_VERIFY_FAILED" in client.connect().reason


@pytest.mark.parametrize(
    "name", ["+", "#", "honest/state", "%u", "graftwork-server-plant", "a+b", "../honest"]
)
def test_a_certificate_whose_name_looks_like_a_pattern_opens_nothing(
    broker: SecureBroker, stack: ExitStack, server: Client, honest: Client, name: str
) -> None:
    """The CA issues no such certificate; this is what the broker would do with one."""
    key = certificates.new_key()
    validity = certificates.Validity(certificates.moment(clock() - DAY), certificates.moment(clock() + DAY))
    issued = certificates.sign(
        broker.authority._signers["devices"],
        certificates.name(name, FEDERATION),
        key.public_key(),
        validity=validity,
        purpose=certificates.CLIENT,
    )
    identity = broker.identity("pattern", issued.certificate, certificates.key_pem(key))
    attacker = stack.enter_context(broker.attacker(identity, client_id=name))
    assert attacker.connect() == IN
    attacker.listen("#", f"{PREFIX}/dn/+/+", f"{PREFIX}/all/+")
    for topic in (up("honest"), f"{PREFIX}/all/round", f"{PREFIX}/srv/state", down("honest")):
        assert attacker.publish(topic, b"forged") == "Not authorized"
    assert server.publish(down("honest"), b"receipt") == "Success"
    honest.wait_for(down("honest"), b"receipt")
    assert server.publish(f"{PREFIX}/all/round", b"for all") == "Success"
    honest.wait_for(f"{PREFIX}/all/round", b"for all")
    assert heard_from(honest, "honest", server) == [Heard(up("honest"), b"control")]
    assert {heard.topic for heard in attacker.heard} <= {f"{PREFIX}/all/round"}


def test_an_anonymous_client_asks_for_enrolment_and_hears_its_own_answer_alone(
    broker: SecureBroker, stack: ExitStack, server: Client
) -> None:
    new = stack.enter_context(broker.attacker(port=broker.enrolment_port, client_id="nonce-1"))
    spy = stack.enter_context(broker.attacker(port=broker.enrolment_port, client_id="nonce-2"))
    assert (new.connect(), spy.connect()) == (IN, IN)
    new.listen(enrolment("nonce-1", "response"))
    spy.listen("#", enrolment("nonce-1", "response"), enrolment("+", "response"), enrolment("+", "request"))
    spy.listen(f"{PREFIX}/all/+", f"{PREFIX}/dn/+/+", f"{PREFIX}/up/+/+")
    assert new.publish(enrolment("nonce-1", "request"), b"csr") == "Success"
    assert server.wait_for(enrolment("nonce-1", "request"), b"csr") == [
        Heard(enrolment("nonce-1", "request"), b"csr")
    ]
    assert server.publish(enrolment("nonce-1", "response"), b"certificate") == "Success"
    assert new.wait_for(enrolment("nonce-1", "response"), b"certificate") != []
    assert server.publish(f"{PREFIX}/all/round", b"for devices") == "No matching subscribers"
    assert server.publish(enrolment("nonce-2", "response"), b"last") == "Success"
    assert {heard.topic for heard in spy.wait_for(enrolment("nonce-2", "response"), b"last")} == {
        enrolment("nonce-2", "response")
    }


def test_anybody_reads_whom_to_trust(tmp_path: Path, stack: ExitStack) -> None:
    broker = stack.enter_context(SecureBroker(tmp_path))
    server = stack.enter_context(broker.connect_server())
    assert server.publish(f"{PREFIX}/all/trust", b"certificates", retain=True) == "Success"
    for client_id, username in (("nonce-1", None), ("nonce-2", "graftwork-server-plant")):
        new = broker.attacker(port=broker.enrolment_port, client_id=client_id, username=username)
        stack.enter_context(new)
        assert new.connect() == IN
        new.listen(f"{PREFIX}/all/trust")
        new.wait_for(f"{PREFIX}/all/trust", b"certificates")
        assert new.publish(f"{PREFIX}/all/trust", b"forged", retain=True) == "Not authorized"


@pytest.mark.parametrize(
    "client_id", ["nonce-1", "+", "#", "nonce-1/request", "%c", "$SYS", "honest", "a/../b"]
)
@pytest.mark.parametrize("username", [None, "graftwork-server-plant", "honest"])
def test_an_anonymous_client_publishes_nothing_but_its_own_request(
    broker: SecureBroker,
    stack: ExitStack,
    honest: Client,
    client_id: str,
    username: str | None,
) -> None:
    port = broker.enrolment_port
    server = stack.enter_context(broker.connect_server(UP, REQUESTS))
    attacker = stack.enter_context(broker.attacker(port=port, client_id=client_id, username=username))
    assert attacker.connect() == IN
    everything = stack.enter_context(broker.connect_server(UP, f"{PREFIX}/#"))
    others = (
        enrolment("victim", "request"),
        enrolment("victim", "response"),
        enrolment("nonce-1", "response"),
    )
    topics = (
        up("honest"),
        down("honest"),
        f"{PREFIX}/all/round",
        f"{PREFIX}/all/trust",
        f"{PREFIX}/srv/state",
    )
    for topic in (*others, *topics, "other/topic", f"{PREFIX}/enroll/request"):
        for retain in (False, True):
            assert attacker.publish(topic, b"forged", retain=retain) == "Not authorized"
    new = stack.enter_context(broker.attacker(port=port, client_id="new"))
    assert new.connect() == IN
    assert new.publish(enrolment("new", "request"), b"csr") == "Success"
    assert server.wait_for(enrolment("new", "request"), b"csr") == [
        Heard(enrolment("new", "request"), b"csr")
    ]
    assert heard_from(honest, "honest", server)[-1] == Heard(up("honest"), b"control")
    assert b"forged" not in {heard.payload for heard in everything.heard + honest.heard}


def test_a_slash_in_a_client_id_leads_nowhere(broker: SecureBroker, stack: ExitStack, server: Client) -> None:
    everything = stack.enter_context(broker.connect_server(f"{PREFIX}/enroll/#"))
    attacker = stack.enter_context(broker.attacker(port=broker.enrolment_port, client_id="new/x"))
    new = stack.enter_context(broker.attacker(port=broker.enrolment_port, client_id="new"))
    assert (attacker.connect(), new.connect()) == (IN, IN)
    assert attacker.publish(enrolment("new/x", "request"), b"forged") == "No matching subscribers"
    assert new.publish(enrolment("new", "request"), b"csr") == "Success"
    assert server.wait_for(enrolment("new", "request"), b"csr") == [
        Heard(enrolment("new", "request"), b"csr")
    ]
    assert b"forged" not in {heard.payload for heard in everything.heard}


def test_an_anonymous_client_that_calls_itself_like_a_device_or_a_service_disturbs_nobody(
    broker: SecureBroker, stack: ExitStack, server: Client, honest: Client
) -> None:
    service = stack.enter_context(
        broker.attacker(broker.server, broker.service_port, client_id="graftwork-server-plant")
    )
    assert service.connect() == IN
    for client_id in ("honest", "graftwork-server-plant", "graftwork-bridge-plant"):
        attacker = stack.enter_context(broker.attacker(port=broker.enrolment_port, client_id=client_id))
        assert attacker.connect() == IN
        attacker.listen("#")
    new = stack.enter_context(broker.attacker(port=broker.enrolment_port, client_id="new"))
    assert new.connect() == IN
    assert new.publish(enrolment("new", "request"), b"csr") == "Success"  # the bridge is still there
    server.wait_for(enrolment("new", "request"), b"csr")
    assert heard_from(honest, "honest", server)[-1] == Heard(up("honest"), b"control")
    assert service.publish(down("honest"), b"receipt") == "Success"
    honest.wait_for(down("honest"), b"receipt")
    assert (honest.disconnected, service.disconnected) == ("", "")


def test_a_request_that_is_to_be_kept_is_not_kept_by_the_broker_of_the_fleet(
    broker: SecureBroker, stack: ExitStack, server: Client
) -> None:
    new = stack.enter_context(broker.attacker(port=broker.enrolment_port, client_id="keeper"))
    assert new.connect() == IN
    assert new.publish(enrolment("keeper", "request"), b"csr", retain=True) == "Success"
    server.wait_for(enrolment("keeper", "request"), b"csr")
    later = stack.enter_context(broker.connect_server(REQUESTS))
    assert new.publish(enrolment("keeper", "request"), b"next") == "Success"
    assert later.wait_for(enrolment("keeper", "request"), b"next") == [
        Heard(enrolment("keeper", "request"), b"next")
    ]


def test_an_enormous_request_is_dropped(broker: SecureBroker, stack: ExitStack, server: Client) -> None:
    new = stack.enter_context(broker.attacker(port=broker.enrolment_port, client_id="large"))
    assert new.connect() == IN
    assert new.publish(enrolment("large", "request"), bytes(1_000_000)) != "Success"
    other = stack.enter_context(broker.attacker(port=broker.enrolment_port, client_id="small"))
    assert other.connect() == IN
    assert other.publish(enrolment("small", "request"), b"csr") == "Success"
    assert server.wait_for(enrolment("small", "request"), b"csr") == [
        Heard(enrolment("small", "request"), b"csr")
    ]


def test_where_a_claim_is_required_nobody_asks_without(tmp_path: Path, stack: ExitStack) -> None:
    broker = stack.enter_context(SecureBroker(tmp_path, require_claim=True))
    server = stack.enter_context(broker.connect_server(REQUESTS))
    for identity in (None, broker.device("mallory"), broker.server, _self_signed(broker)):
        attacker = stack.enter_context(broker.attacker(identity, broker.enrolment_port, "nonce-1"))
        assert not attacker.connect().connected
    new = stack.enter_context(broker.attacker(broker.claim("batch-7"), broker.enrolment_port, "nonce-1"))
    assert new.connect() == IN
    assert new.publish(enrolment("nonce-1", "request"), b"csr") == "Success"
    assert server.wait_for(enrolment("nonce-1", "request"), b"csr") == [
        Heard(enrolment("nonce-1", "request"), b"csr")
    ]


def test_a_revoked_device_is_thrown_off_and_cannot_come_back(broker: SecureBroker, stack: ExitStack) -> None:
    identity, other = broker.device("thief"), broker.device("honest")
    live, honest = (
        stack.enter_context(broker.attacker(given, client_id=name))
        for given, name in ((identity, "thief"), (other, "honest"))
    )
    for client, name in ((live, "thief"), (honest, "honest")):
        assert client.connect(clean_start=False, expiry_seconds=600) == IN
        client.listen(down(name))
    broker.revoke([identity])
    live.wait_for_the_end()
    again = stack.enter_context(broker.attacker(identity, client_id="thief"))
    assert not again.connect(clean_start=False, expiry_seconds=600).connected
    server = stack.enter_context(broker.connect_server(UP))
    for name in ("thief", "honest"):
        assert server.publish(down(name), b"receipt") == "Success"  # the sessions were kept
    end_session(broker.services, "thief")
    assert server.publish(down("thief"), b"receipt") == "No matching subscribers"  # no session, no queue
    back = stack.enter_context(broker.attacker(other, client_id="honest"))
    assert back.connect(clean_start=False, expiry_seconds=600) == IN
    assert back.wait_for(down("honest"), b"receipt") == [Heard(down("honest"), b"receipt")]
    renewed = stack.enter_context(broker.attacker(broker.device("thief"), client_id="thief"))
    assert renewed.connect(clean_start=False, expiry_seconds=600) == IN  # the name is not revoked
    renewed.listen(down("thief"))
    assert server.publish(down("thief"), b"control") == "Success"
    assert renewed.wait_for(down("thief"), b"control") == [
        Heard(down("thief"), b"control")
    ]  # no queue was left


def test_a_session_that_stands_ends_with_its_queue_when_the_server_takes_it_over(
    broker: SecureBroker, stack: ExitStack
) -> None:
    live = stack.enter_context(broker.attacker(broker.device("taken"), client_id="taken"))
    assert live.connect(clean_start=False, expiry_seconds=600) == IN
    live.listen(down("taken"))
    end_session(broker.services, "taken")
    live.wait_for_the_end()
    server = stack.enter_context(broker.connect_server())
    assert server.publish(down("taken"), b"receipt") == "No matching subscribers"


def test_devices_revoked_one_after_the_other_are_all_gone(broker: SecureBroker, stack: ExitStack) -> None:
    """Each gets a list of its own, and the broker ends for each, also while it is just starting."""
    identities = [broker.device(f"lost-{number}") for number in range(4)]
    broker.revoke(identities)
    for number, identity in enumerate(identities):
        lost = stack.enter_context(broker.attacker(identity, client_id=f"lost-{number}"))
        assert not lost.connect().connected
    with broker.connect_device("mallory") as mallory:
        assert mallory.publish(up("mallory"), b"own") == "No matching subscribers"


def test_writing_the_configuration_again_keeps_revoked_devices_out(
    broker: SecureBroker, stack: ExitStack
) -> None:
    identity = broker.device("gone")
    broker.revoke([identity])
    broker.write()
    broker.end()
    gone = stack.enter_context(broker.attacker(identity, client_id="gone"))
    assert not gone.connect().connected
    stack.enter_context(broker.connect_device("honest-2"))


def test_a_restart_keeps_queues_and_revocations(tmp_path: Path, stack: ExitStack) -> None:
    broker = SecureBroker(tmp_path)
    kept, gone = broker.device("kept"), broker.device("gone")
    with broker:
        sleeper = broker.attacker(kept, client_id="kept")
        assert sleeper.connect(clean_start=False, expiry_seconds=600) == IN
        sleeper.listen(down("kept"))
        sleeper.close()
        with broker.connect_server() as server:
            assert server.publish(down("kept"), b"receipt") == "Success"
        broker.revoke([gone])
    with broker:
        awake = stack.enter_context(broker.attacker(kept, client_id="kept"))
        assert awake.connect(clean_start=False, expiry_seconds=600) == IN
        assert awake.wait_for(down("kept"), b"receipt") == [Heard(down("kept"), b"receipt")]
        back = stack.enter_context(broker.attacker(gone, client_id="gone"))
        assert not back.connect().connected


def test_the_log_says_what_was_denied_to_whom(broker: SecureBroker, stack: ExitStack) -> None:
    attacker = stack.enter_context(broker.connect_device("mallory-7"))
    assert attacker.publish(up("honest"), b"forged") == "Not authorized"
    assert f"Denied PUBLISH from mallory-7 (d0, q1, r0, m1, '{up('honest')}'" in broker.log()


def test_a_session_that_is_not_there_ends_as_well(broker: SecureBroker) -> None:
    end_session(broker.services, "never-seen")


def test_a_device_ends_no_session(broker: SecureBroker, honest: Client, server: Client) -> None:
    mallory = broker.device("mallory")
    files = {"tls_certificate": str(mallory.certificate), "tls_key": str(mallory.key)}
    for port in (broker.port, broker.service_port):
        config = BrokerConfig(port=port, tls_ca=str(broker.trusted), **files)
        if port == broker.port:
            end_session(config, "honest")  # ends its own
        else:
            with pytest.raises(ServerError, match="the broker closed the connection"):
                end_session(config, "honest")
    assert heard_from(honest, "honest", server) == [Heard(up("honest"), b"control")]
    assert honest.disconnected == ""


def test_a_broker_that_is_not_there_or_not_to_be_trusted_is_told(broker: SecureBroker) -> None:
    with pytest.raises(ServerError, match=r"session of 'a' at 127\.0\.0\.1:\d+ cannot be ended: .*refused"):
        end_session(BrokerConfig(port=free_port()), "a")
    with pytest.raises(ServerError, match="cannot be ended: expected 1 to 64 characters"):
        end_session(broker.services, "a/b")
    with pytest.raises(ServerError, match=r"cannot be ended: .*No such file"):
        end_session(BrokerConfig(port=broker.service_port, tls_ca="missing.crt"), "a")


def test_a_broker_that_never_answers_holds_nobody_up(broker: SecureBroker) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with pytest.raises(ServerError, match="cannot be ended: no answer"):
            end_session(BrokerConfig(port=port), "a", timeout_seconds=0.2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # paho leaves a socket to the garbage collector
            with pytest.raises(ServerError, match=r"cannot be ended: .*timed out"):
                end_session(BrokerConfig(port=port, tls_ca=str(broker.trusted)), "a", timeout_seconds=0.2)
