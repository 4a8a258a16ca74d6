"""Every refusal has a code of a closed set, and only some of them are held against a device."""

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import cbor, entropy_coding
from protocol.errors import (
    ArtifactError,
    DataError,
    EncodingError,
    ProtocolError,
    SchemaError,
    SignatureError,
)
from protocol.messages import ChunkRequest, Report, sign_message, verify_message
from protocol.signing import PrivateKey, sign
from protocol.topics import Topics, context
from server import limits, refusals
from server.offers import Offers

KEY, STRANGER = PrivateKey.generate(), PrivateKey.generate()
TOPICS = Topics("plant")
TOPIC = TOPICS.up("pump", "report")
REPORT = sign_message(Report(1, "local"), KEY, TOPIC)


def signed(payload: bytes) -> bytes:
    return sign(payload, KEY, context(TOPIC))


def offers() -> tuple[Offers, bytes]:
    offered = Offers()
    return offered, offered.offer_keyframe(b"keyframe").sha256


def unsealed(envelope: bytes) -> Callable[[], object]:
    return lambda: verify_message(Report, envelope, KEY.public, TOPIC)


def asked(artifact: bytes | None, index: int) -> Callable[[], object]:
    offered, known = offers()
    return lambda: list(offered.chunks(ChunkRequest(artifact or known, (index,))))


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (unsealed(b""), refusals.ENCODING),
        (unsealed(bytes(100_000)), refusals.SIZE),
        (unsealed(signed(bytes(16 * 1024 + 1))), refusals.SIZE),
        (unsealed(sign_message(Report(1, "local"), STRANGER, TOPIC)), refusals.SIGNATURE),
        (unsealed(sign_message(Report(1, "local"), KEY, TOPICS.up("fan", "report"))), refusals.SIGNATURE),
        (unsealed(signed(b"\xff")), refusals.ENCODING),
        (unsealed(signed(b"\xa0")), refusals.FIELDS),
        (unsealed(signed(cbor.encode({1: 1, 2: "the device is not registered"}))), refusals.FIELDS),
        (unsealed(signed(cbor.encode({1: "1", 2: "local"}))), refusals.FIELDS),
        (lambda: TOPICS.parse_up("fl/v1/plant/up/x/y"), refusals.TOPIC),
        (asked(None, 1), refusals.CHUNK),
        (asked(bytes(32), 0), refusals.NOT_OFFERED),
        (lambda: entropy_coding.decode(b"", 6), refusals.BODY),
    ],
)
def test_what_the_decoders_raise_has_a_code(act: Callable[[], object], code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        act()
    assert refusals.classify(caught.value) == code


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("the device is not registered", refusals.NOT_REGISTERED),
        ("round 7 is not open yet", refusals.ROUND),
        ("expected round 1, got 2", refusals.ROUND),
        ("round 7 is closed", refusals.LATE),
        ("round 7 is closed for 3 releases; updates count up to 2 releases later", refusals.LATE),
        ("the release that round 7 started from was withdrawn", refusals.LATE),
        ("not in the cohort of this round", refusals.COHORT),
        ("expected base 00ff, got ff00", refusals.BASE),
        ("expected a domain up to 0, got 3", refusals.DOMAIN),
        ("expected a weight up to 10, got 11", refusals.WEIGHT),
        ("the round has all the weight that it can sum", refusals.FULL),
        ("another update of this round is counted: 0011", refusals.CONFLICT),
        ("there is no package, so no round is open", refusals.NO_PACKAGE),
        ("the device is quarantined", refusals.QUARANTINED),
        ("the device is revoked", refusals.REVOKED),
        ("something that nobody thought of", refusals.OTHER),
        ("", refusals.OTHER),
        *((reason, refusals.RATE) for reason in limits.REASONS),
    ],
)
def test_reasons_on_receipts_have_codes(reason: str, code: str) -> None:
    assert refusals.classify(reason) == code


@given(st.binary(max_size=80))
def test_every_body_that_cannot_be_decoded_is_a_body(body: bytes) -> None:
    for start in (b"", b"\x10", b"\x11", b"\x20", b"\x01\x02\x00"):
        reason = ""
        try:
            entropy_coding.decode(start + body, 6)
        except ProtocolError as error:
            reason = str(error)  # on a receipt stands the text alone
        assert not reason or refusals.classify(reason) == refusals.BODY


@pytest.mark.parametrize("kind", [EncodingError, SchemaError, SignatureError, ArtifactError, DataError])
@given(text=st.text())
def test_whatever_a_peer_writes_there_is_no_new_code(kind: type[ProtocolError], text: str) -> None:
    assert refusals.classify(kind(text)) in refusals.CODES
    assert refusals.classify(text) in refusals.CODES


def test_a_schema_error_that_quotes_another_reason_is_still_one_of_fields() -> None:
    assert refusals.classify(SchemaError("the device is not registered")) == refusals.FIELDS
    assert refusals.classify(SignatureError("whatever")) == refusals.SIGNATURE
    assert refusals.classify(ArtifactError("the package cannot be read")) == refusals.UNREADABLE


# What a device answers for


def refused(envelope: bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        verify_message(Report, envelope, KEY.public, TOPIC)
    return caught.value


@pytest.mark.parametrize("payload", [b"\xff", b"\xa0", cbor.encode({1: 1, 2: "no such choice"})])
def test_rubbish_with_the_devices_own_signature_is_held_against_it(payload: bytes) -> None:
    envelope = signed(payload)
    assert refusals.is_misbehaviour(refused(envelope), envelope, KEY.public, TOPIC)


def test_rubbish_that_others_put_on_its_topic_is_not_held_against_a_device() -> None:
    for_another_topic = sign(b"\xff", KEY, context(TOPICS.up("fan", "report")))
    for envelope in (
        b"",
        b"\xff" * 100,
        bytes(100_000),
        sign(b"\xff", STRANGER, context(TOPIC)),
        for_another_topic,
        REPORT[:-1],
        REPORT + b"\0",
        signed(b"\xa0") + b"\0",
    ):
        assert not refusals.is_misbehaviour(refused(envelope), envelope, KEY.public, TOPIC)


@pytest.mark.parametrize(
    "reason",
    [
        "round 7 is closed",
        "not in the cohort of this round",
        "expected base 00ff, got ff00",
        "another update of this round is counted: 0011",
        "expected a weight up to 10, got 11",
        "no artifact 00ff is on offer",
    ],
)
def test_an_honest_message_that_is_played_again_is_not_held_against_its_sender(reason: str) -> None:
    assert not refusals.is_misbehaviour(reason, REPORT, KEY.public, TOPIC)


@given(st.binary(max_size=200))
def test_no_bytes_without_the_key_are_misbehaviour(envelope: bytes) -> None:
    error: ProtocolError = EncodingError("CBOR ends early")
    with contextlib.suppress(ProtocolError):
        verify_message(Report, envelope, KEY.public, TOPIC)
    assert not refusals.is_misbehaviour(error, envelope, KEY.public, TOPIC)
