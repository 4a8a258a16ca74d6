"""Requests for certificates at the server: who proved what, and answers that are on disk first."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.identity import Identity
from protocol import cbor, records
from protocol.errors import EncodingError, ProtocolError, SchemaError, SealingError, SignatureError
from protocol.identity import CertificateResponse, EnrolmentRequest, RenewalRequest
from protocol.messages import sign_message, verify_message
from protocol.sealing import SealingKey
from protocol.signing import PrivateKey, sign
from protocol.topics import context
from server.identities import QUARANTINED, REVOKED
from tests.builders import SEALING, Clock, private_key
from tests.newcomers import DAY, NOW, SERVER, TOPICS, Registrar
from tests.server.databases import Database
from tests.server.federation import Federation

KEY = private_key(1)
TOPIC = TOPICS.enroll("nonce", "request")


@pytest.fixture
def registrar(tmp_path: Path, database: Database) -> Iterator[Registrar]:
    registrar = Registrar(tmp_path / "server", Clock(NOW), database=database)
    yield registrar
    registrar.store.close()


@pytest.fixture(scope="module")
def csr(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return Identity(tmp_path_factory.mktemp("identity"), "pump-1").signing_request()


def sealed(
    message: Any, key: PrivateKey = KEY, topic: str = TOPIC, number: int = 0, sealing: SealingKey = SEALING
) -> bytes:
    envelope = message if isinstance(message, bytes) else sign_message(message, key, topic)
    return sealing.public.seal(envelope, topic, number)


def request(csr: bytes, token: str = "", device: str = "pump-1", key: PrivateKey = KEY) -> EnrolmentRequest:
    return EnrolmentRequest(device, key.public.raw, csr, token, "0.1")


def test_the_certificate_is_the_authoritys_for_name_and_key(registrar: Registrar, csr: bytes) -> None:
    device, answer = registrar.enrolment.enrol(TOPIC, sealed(request(csr, registrar.token())))
    assert (device, answer.status, answer.request) == ("pump-1", "issued", hashlib.sha256(csr).digest())
    certificate = x509.load_pem_x509_certificate(answer.certificate)
    assert registrar.authority is not None
    certificate.verify_directly_issued_by(registrar.authority.certificate("devices"))
    assert certificate.public_key() == x509.load_der_x509_csr(csr).public_key()
    assert certificate.subject.rfc4514_string() == "CN=pump-1,O=pumps"
    [row] = registrar.store.certificates("pump-1")
    assert (int(row["serial"], 16), row["not_after"]) == (certificate.serial_number, NOW + 60 * DAY)


def test_a_request_that_comes_again_and_again_is_one_certificate(registrar: Registrar, csr: bytes) -> None:
    payload = sealed(request(csr, registrar.token()))
    answers = {registrar.enrolment.enrol(TOPIC, payload)[1] for _ in range(3)}
    registrar.restart()
    answers.add(registrar.enrolment.enrol(TOPIC, payload)[1])
    assert len(answers) == 1
    assert len(registrar.store.certificates("pump-1")) == 1


def test_what_is_not_sealed_is_not_looked_at(registrar: Registrar, csr: bytes) -> None:
    """Its token was read by everyone on the way."""
    with pytest.raises(SealingError):
        registrar.enrolment.enrol(TOPIC, sign_message(request(csr, registrar.token()), KEY, TOPIC))
    assert registrar.store.identity("pump-1") is None


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (lambda asked: sealed(asked, key=private_key(2)), SignatureError),
        (lambda asked: sealed(asked, topic=TOPICS.enroll("other", "request")), SealingError),
        (lambda asked: sealed(sign_message(asked, KEY, TOPICS.enroll("x", "request"))), SignatureError),
        (lambda asked: sealed(asked, number=1), SealingError),
        (lambda asked: sealed(asked, sealing=SealingKey.generate()), SealingError),
        (lambda _: b"", EncodingError),
        (lambda _: bytes(20_000), EncodingError),
        (lambda _: sealed(b"no envelope"), EncodingError),
        (lambda _: sealed(RenewalRequest(b"csr")), SchemaError),
        (
            lambda asked: sealed(
                sign(
                    cbor.encode(records.to_numbered(asked) | {1: "graftwork-server-pumps"}),
                    KEY,
                    context(TOPIC),
                )
            ),
            SchemaError,
        ),
    ],
    ids=["key", "moved", "moved inside", "number", "sealing", "empty", "large", "bytes", "kind", "service"],
)
def test_who_did_not_prove_to_have_the_key_gets_no_answer(
    registrar: Registrar, csr: bytes, payload: Any, error: type[ProtocolError]
) -> None:
    asked = request(csr, registrar.token())
    with pytest.raises(error):
        registrar.enrolment.enrol(TOPIC, payload(asked))
    assert registrar.store.devices() == []
    assert registrar.issued == []


def test_what_is_sealed_to_the_key_before_is_still_opened(registrar: Registrar, csr: bytes) -> None:
    registrar.sealing = [SealingKey.generate(), SEALING]
    registrar.restart()
    _, answer = registrar.enrolment.enrol(TOPIC, sealed(request(csr, registrar.token())))
    assert answer.status == "issued"


def odd_csr() -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(rsa.generate_private_key(65537, 2048), SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("data", "reason"), [(b"no request", "PKCS #10"), (odd_csr(), "P-256 or Ed25519")], ids=["bytes", "RSA"]
)
def test_a_signing_request_that_is_none_is_refused_and_uses_up_no_token(
    registrar: Registrar, csr: bytes, data: bytes, reason: str
) -> None:
    token = registrar.token()
    _, answer = registrar.enrolment.enrol(TOPIC, sealed(request(data, token)))
    assert answer.status == "refused"
    assert reason in answer.reason
    _, answer = registrar.enrolment.enrol(TOPIC, sealed(request(csr, token)))
    assert answer.status == "issued"


def test_a_renewal_is_for_the_device_that_spoke(registrar: Registrar, csr: bytes) -> None:
    registrar.store.register_device("pump-2", private_key(2).public, NOW)
    answer = registrar.enrolment.renew("pump-2", RenewalRequest(csr))
    assert answer.status == "issued"
    certificate = x509.load_pem_x509_certificate(answer.certificate)
    assert certificate.subject.rfc4514_string() == "CN=pump-2,O=pumps"  # whatever the request names
    assert registrar.enrolment.renew("pump-2", RenewalRequest(csr)) == answer


def test_who_may_not_renew_is_told_why(registrar: Registrar, csr: bytes) -> None:
    registrar.store.register_device("pump-1", KEY.public, NOW)
    registrar.store.set_status("pump-1", QUARANTINED, "", NOW)
    assert registrar.enrolment.renew("pump-1", RenewalRequest(csr)).status == "issued"
    registrar.store.set_status("pump-1", REVOKED, "", NOW)
    answer = registrar.enrolment.renew("pump-1", RenewalRequest(csr))
    assert (answer.status, answer.reason, answer.certificate) == ("refused", "the device is revoked", b"")


def test_an_authority_that_has_ended_is_said_and_stops_nothing(registrar: Registrar, csr: bytes) -> None:
    registrar.clock.advance(3651 * DAY)
    _, answer = registrar.enrolment.enrol(TOPIC, sealed(request(csr, registrar.token())))
    assert answer.status == "refused"
    assert "the CA for devices ended" in answer.reason


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=300), inside=st.booleans(), number=st.integers(0, 2))
def test_hostile_bytes_get_no_answer(registrar: Registrar, data: bytes, inside: bool, number: int) -> None:
    payload = sealed(data, number=number) if inside else data
    with pytest.raises(ProtocolError):
        registrar.enrolment.enrol(TOPIC, payload)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    device=st.text(max_size=8) | st.just("pump-1"),
    csr=st.binary(min_size=0, max_size=60),
    token=st.text(max_size=8),
    agent=st.text(max_size=8),
)
def test_hostile_fields_rightly_signed_are_refused(
    registrar: Registrar, device: str, csr: bytes, token: str, agent: str
) -> None:
    fields = {1: device, 2: KEY.public.raw, 3: csr, 4: token, 5: agent}
    payload = sealed(sign(cbor.encode(fields), KEY, context(TOPIC)))
    try:
        _, answer = registrar.enrolment.enrol(TOPIC, payload)
    except ProtocolError:
        return
    assert answer.status == "refused"


def test_a_running_server_answers_on_the_newcomers_topic(
    tmp_path: Path, database: Database, csr: bytes
) -> None:
    clock = Clock(NOW)
    registrar = Registrar(tmp_path / "authority", clock)
    federation = Federation(
        tmp_path / "server", database=database, enrolment="token", issuer=registrar.authority
    )
    federation.clock.now = NOW
    token = federation.store.make_tokens(["pump-1"], NOW + DAY, NOW)["pump-1"]
    for payload in (sealed(b"no envelope"), b"", sealed(request(csr, "0" * 40)), sealed(request(csr, token))):
        federation.coordinator.handle(TOPIC, payload)
    response = TOPICS.enroll("nonce", "response")
    answers = [
        verify_message(CertificateResponse, payload, SERVER.public, response)
        for payload in federation.wire.take(response)
    ]
    assert [answer.status for answer in answers] == ["refused", "issued"]
    refusals = [(row["device"], row["reason"]) for row in federation.store.refusals()]
    assert [device for device, _ in refusals] == ["pump-1", "?", "?"]  # newest first
    assert "the token is not one of this federation" in refusals[0][1]
    # Renewed over the connection of the certificate:
    topic = TOPICS.up("pump-1", "renew")
    federation.coordinator.handle(topic, sign_message(RenewalRequest(csr), KEY, topic))
    down = TOPICS.down("pump-1", "certificate")
    [renewed] = [
        verify_message(CertificateResponse, payload, SERVER.public, down)
        for payload in federation.wire.take(down)
    ]
    assert renewed == answers[1]
    federation.close()
    registrar.store.close()
