"""What mosquitto 2.0.11 writes when it is attacked; the samples are its own lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import incidents
from server.incidents import Incident, parse

AT = 1795731120.0
SAMPLES = [
    (
        "1795731120: Denied PUBLISH from dev1 (d0, q1, r1, m7, 'fl/v1/plant/up/dev2/state', ... (4 bytes))",
        Incident(AT, "dev1", incidents.DENIED, "fl/v1/plant/up/dev2/state"),
    ),
    (
        "1795731120: Denied PUBLISH from dev1 (d0, q1, r0, m9, 'a b (c)/\u00fc\u200b, 'x'', ... (4 bytes))",
        Incident(AT, "dev1", incidents.DENIED, "a b (c)/\u00fc\ufffd, 'x'"),
    ),
    (
        "1795731120: Denied PUBLISH from dev2 (d0, q0, r0, m0, 'fl/\u2028 x \u202e', ... (1 bytes))",
        Incident(AT, "dev2", incidents.DENIED, "fl/\ufffd x \ufffd"),
    ),
    (
        "1795731120: Denied PUBLISH from dev2 (d0, q0, r0, m0, '" + 943 * "t",  # mosquitto cuts its lines
        Incident(AT, "dev2", incidents.DENIED, 200 * "t"),
    ),
    (
        "1795731120: Dropped too large PUBLISH from dev1 (d0, q1, r0, m1, 'fl/v1/plant', ... (100500 bytes))",
        Incident(AT, "dev1", incidents.OVERSIZED, "fl/v1/plant"),
    ),
    (
        "1795731120: OpenSSL Error[0]: error:0A000086:SSL routines::certificate verify failed",
        Incident(AT, "", incidents.CERTIFICATE_REFUSED, "certificate verify failed"),
    ),
    (
        "1795731120: OpenSSL Error[0]: error:0A0000C7:SSL routines::peer did not return a certificate",
        Incident(AT, "", incidents.CERTIFICATE_MISSING, "peer did not return a certificate"),
    ),
    (  # a certificate in the authority's name that the authority did not sign: after "Error[0]: ... EVP lib"
        "1795731120: OpenSSL Error[1]: error:0A000086:SSL routines::certificate verify failed",
        Incident(AT, "", incidents.CERTIFICATE_REFUSED, "certificate verify failed"),
    ),
    (
        "1795731120: Client connection from 10.0.0.7 failed: error:06880006:asn1 encoding routines::EVP lib.",
        Incident(AT, "", incidents.CERTIFICATE_REFUSED, "certificate verify failed from 10.0.0.7"),
    ),
    (
        "1: Client connection from 10.0.0.7 failed: error:0A000086:SSL routines::certificate verify failed.",
        Incident(1.0, "", incidents.CERTIFICATE_REFUSED, "certificate verify failed from 10.0.0.7"),
    ),
    (
        "1795732333: OpenSSL Error[0]: error:0A00041B:SSL routines::tlsv1 alert decrypt error",
        Incident(1795732333.0, "", incidents.HANDSHAKE, "tlsv1 alert decrypt error"),
    ),
    (  # OpenSSL 1.1 names a function, too
        "1: OpenSSL Error[0]: error:1417C086:SSL routines:tls_process_cert:certificate verify failed",
        Incident(1.0, "", incidents.CERTIFICATE_REFUSED, "certificate verify failed"),
    ),
    (
        "1795731120: Client connection from 10.0.0.7 failed: error:0A00009C:SSL routines::http request.",
        Incident(AT, "", incidents.HANDSHAKE, "http request from 10.0.0.7"),
    ),
    (
        "1795731120: Client <unknown> disconnected, not authorised.",
        Incident(AT, "", incidents.NOT_AUTHORISED, "Client <unknown> disconnected, not authorised."),
    ),
    (
        "1795731120: Client dev1 already connected, closing old connection.",
        Incident(AT, "dev1", incidents.TAKEN_OVER, "Client dev1 already connected, closing old connection."),
    ),
    (
        "1795731120: Client dev2 disconnected due to malformed packet.",
        Incident(AT, "dev2", incidents.MALFORMED, "Client dev2 disconnected due to malformed packet."),
    ),
    (
        "1795731120: Client <unknown> disconnected due to protocol error.",
        Incident(AT, "", incidents.MALFORMED, "Client <unknown> disconnected due to protocol error."),
    ),
    (
        "1795731120: Client dev2 disconnected due to oversize packet.",
        Incident(AT, "dev2", incidents.OVERSIZED, "Client dev2 disconnected due to oversize packet."),
    ),
    (
        "1795731120: Outgoing messages are being dropped for client dev1.",
        Incident(AT, "dev1", incidents.DROPPED, "Outgoing messages are being dropped for client dev1."),
    ),
    ("1795731120: dev1 1 #", Incident(AT, "dev1", incidents.SUBSCRIPTION, "#")),
    ("dev1 1 #", Incident(None, "dev1", incidents.SUBSCRIPTION, "#")),  # log_timestamp false
    ("2026-11-26T22:12:00: dev1 1 #", Incident(None, "dev1", incidents.SUBSCRIPTION, "#")),
]
HARMLESS = """\
1795731118: mosquitto version 2.0.11 starting
1795731118: Config loaded from a.conf.
1795731118: Warning: ACL pattern 'fl/v1/plant/all/+' does not contain '%c' or '%u'.
1795731118: Opening ipv4 listen socket on port 28883.
1795731119: New connection from 127.0.0.1:37319 on port 28883.
1795731119: New client connected from 127.0.0.1:37319 as dev1 (p5, c1, k30, u'dev1').
1795731119: No will message specified.
1795731124: Will message specified (1 bytes) (r0, q1).
1795731124: \tfl/v1/plant/up/dev1/state
1795731119: Sending CONNACK to dev1 (0, 0)
1795731119: Received SUBSCRIBE from dev1
1795731119: \tfl/v1/plant/dn/dev1/+ (QoS 1)
1795731119: dev1 1 fl/v1/plant/dn/dev1/+
1795731119: Sending SUBACK to dev1
1795731122: Received UNSUBSCRIBE from dev1
1795731122: \ta
1795731122: dev1 a
1795731122: Sending UNSUBACK to dev1
1795731120: Received PUBLISH from dev1 (d0, q1, r0, m6, 'fl/v1/plant/up/dev1/state', ... (1 bytes))
1795731120: Sending PUBLISH to graftwork-server-plant (d0, q1, r0, m1, 'fl/v1/x 1 #', ... (1 bytes))
1795731120: Received PUBACK from graftwork-server-plant (Mid: 1, RC:0)
1795731120: Sending PUBACK to dev1 (m7, rc135)
1795731121: Received DISCONNECT from dev1
1795731121: Client dev1 disconnected.
1795731123: OpenSSL Error[0]: error:0A000126:SSL routines::unexpected eof while reading
1795731131: Client connection from 10.0.0.7 failed: error:0A000126:SSL routines::unexpected eof while reading.
1795732333: OpenSSL Error[0]: error:06880006:asn1 encoding routines::EVP lib
1795731123: Client dev1 closed its connection.
1795731126: Client <unknown> disconnected: Protocol error.
1795731132: mosquitto version 2.0.11 terminating

:"""


@pytest.mark.parametrize(("line", "expected"), SAMPLES)
def test_an_attack_is_named_with_who_and_what(line: str, expected: Incident) -> None:
    assert parse(line, "plant") == expected
    assert expected.kind in incidents.KINDS


def test_what_honest_clients_cause_is_no_incident() -> None:
    assert [found for line in HARMLESS.split("\n") if (found := parse(line, "plant"))] == []


@pytest.mark.parametrize(
    ("client", "topic", "honest"),
    [
        ("dev1", "fl/v1/plant/dn/dev1/receipt", True),
        ("dev1", "fl/v1/plant/dn/dev1/#", True),
        ("dev1", "fl/v1/plant/all/+", True),
        ("dev1", "fl/v1/plant/srv/state", True),
        ("dev1", "fl/v1/plant/enroll/dev1/response", True),
        ("graftwork-server-plant", "fl/v1/plant/up/+/update", True),
        ("dev1", "fl/v1/plant/dn/dev2/receipt", False),
        ("dev1", "fl/v1/plant/dn/dev11/receipt", False),
        ("dev1", "fl/v1/plant/dn/+/receipt", False),
        ("dev1", "fl/v1/plant/dn/dev1", False),
        ("dev1", "fl/v1/plant/up/dev1/state", False),
        ("dev1", "fl/v1/plant/#", False),
        ("dev1", "fl/v1/other/all/round", False),
        ("dev1", "fl/v1/plant/enroll/dev2/response", False),
        ("dev1", "$share/group/fl/v1/plant/all/round", False),
        ("dev1", "$SYS/#", False),
        ("dev1", "with space/a b", False),
        ("graftwork-server-other", "fl/v1/plant/up/+/update", False),
    ],
)
def test_a_subscription_is_an_incident_unless_an_honest_client_has_it(
    client: str, topic: str, honest: bool
) -> None:
    found = parse(f"1795731120: {client} 1 {topic}", "plant")
    assert found == (None if honest else Incident(AT, client, incidents.SUBSCRIPTION, topic))


@pytest.mark.parametrize(
    "line",
    [
        "1795731222: Client dev1 already connected, closing old connection. closed its connection.",
        "1795731222: New client connected from ::1:5 as dev1 already connected, closing old connection. (",
        "1795731223: Client dev1 1 # closed its connection.",
        "1795731223: Sending CONNACK to dev1 1 # (0, 0)",
    ],
)
def test_a_client_with_a_telling_name_accuses_nobody(line: str) -> None:
    """Names as these need a broker that lets clients choose them."""
    assert parse(line, "plant") is None


@given(st.text())
def test_whatever_stands_in_a_line_it_is_read_and_what_is_kept_is_short_and_printable(text: str) -> None:
    for beginning in ("", *(line[: len(line) // 2] for line, _ in SAMPLES), *(line for line, _ in SAMPLES)):
        found = parse(beginning + text, "plant")
        if found:
            assert found.kind in incidents.KINDS
            assert len(found.detail) <= incidents.DETAIL_CHARACTERS
            assert found.detail.isprintable()
            assert len(found.device) <= 64
