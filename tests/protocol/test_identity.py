"""Messages about who is who: names that no device may have, and bounds on all that a stranger sends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError, SchemaError
from protocol.identity import (
    MAX_SIGNING_REQUEST_BYTES,
    STATUSES,
    CertificateResponse,
    EnrolmentRequest,
    RenewalRequest,
    Trust,
)
from protocol.messages import LIMITS, peek, sign_message, verify_message
from protocol.topics import Topics
from protocol.trust import MAX_ROOT_BYTES, MAX_ROOTS
from tests.builders import private_key

KEY = private_key(1)
TOPIC = Topics("pumps").enroll("n0nce", "request")
RESERVED = [
    "graftwork-",
    "graftwork-server-pumps",
    "graftwork-bridge-pumps",
    "Graftwork-Server",
    "GRAFTWORK-x",
]


def request(device: str = "pump-1", **changes: object) -> EnrolmentRequest:
    fields = {"public_key": KEY.public.raw, "signing_request": b"csr", **changes}
    return EnrolmentRequest(device, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", RESERVED)
def test_no_device_may_have_the_name_of_a_service(device: str) -> None:
    """Its certificate would carry the name by which the broker knows the server."""
    with pytest.raises(ValueError, match="expected a name that does not begin with graftwork-"):
        request(device)


@pytest.mark.parametrize("device", ["graftwork", "my-graftwork-1", "graftwork_1", "graftworks-1", "g" * 64])
def test_names_that_only_look_like_it_are_fine(device: str) -> None:
    assert request(device).device == device


@pytest.mark.parametrize("device", ["", "x" * 65, "+", "#", "a/b", "a b", "%u", "pump-1\0", "pümp", "a\n"])
def test_a_name_that_is_no_topic_level_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="expected 1 to 64 characters"):
        request(device)


def test_the_name_is_checked_when_it_is_received() -> None:
    good = sign_message(request("graftwork_server"), KEY, TOPIC)
    assert peek(EnrolmentRequest, good).device == "graftwork_server"
    bad = good.replace(b"graftwork_server", b"graftwork-server")
    with pytest.raises(SchemaError, match="does not begin with graftwork-"):
        peek(EnrolmentRequest, bad)


def test_the_largest_messages_there_may_be_arrive() -> None:
    largest = [
        Trust((b"r" * MAX_ROOT_BYTES,) * MAX_ROOTS, bytes(2048), 0.0, 1.0),
        request(
            "d" * 64,
            signing_request=bytes(MAX_SIGNING_REQUEST_BYTES),
            token="t" * 128,
            agent_version="v" * 64,
        ),
        RenewalRequest(bytes(MAX_SIGNING_REQUEST_BYTES)),
        CertificateResponse("issued", bytes(32), bytes(4096), "r" * 512),
    ]
    for message in largest:
        envelope = sign_message(message, KEY, TOPIC)
        assert verify_message(type(message), envelope, KEY.public, TOPIC) == message
        assert len(envelope) <= LIMITS[type(message)] + 96


@pytest.mark.parametrize("status", STATUSES)
def test_an_answer_names_the_request_that_it_answers(status: str) -> None:
    assert CertificateResponse(status, bytes(32)).request == bytes(32)
    for wrong in (b"", bytes(31), bytes(33)):
        with pytest.raises(ValueError, match="request: expected 32 bytes"):
            CertificateResponse(status, wrong)


@given(st.text(max_size=12).filter(lambda text: text not in STATUSES))
def test_there_is_no_other_answer(status: str) -> None:
    with pytest.raises(ValueError, match="status: expected one of issued, pending, refused"):
        CertificateResponse(status, bytes(32))


@pytest.mark.parametrize("moment", [-1.0, 1.1e12, float("nan"), float("inf"), float("-inf")])
def test_moments_that_no_clock_shows_are_refused(moment: float) -> None:
    for times in ((moment, 1.0), (1.0, moment)):
        with pytest.raises(ValueError, match="expected 0 to 1000000000000"):
            Trust((), b"k", *times)


@given(st.binary(max_size=300))
def test_hostile_bytes_are_no_request(data: bytes) -> None:
    for kind in (Trust, EnrolmentRequest, RenewalRequest, CertificateResponse):
        with pytest.raises(ProtocolError):
            verify_message(kind, data, KEY.public, TOPIC)
