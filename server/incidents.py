"""What mosquitto's log says of attacks: a line to an incident.

The lines are those of mosquitto 2.0.11 with `log_type all`; denied messages need `log_type debug`,
subscriptions `log_type subscribe`, and refused connections `log_type error` and `notice`. mosquitto cuts a
line after 999 bytes and breaks the connection of a client that sends control characters, so no client can
write a line of its own. With `use_username_as_clientid true` (see deploy/mosquitto) the name in a line is
that of the client's certificate. Without it a client chooses its name, and so whom it accuses. Incidents are
for people to look at and for counting; nothing is decided by one.

Why a certificate was refused is not in the log: mosquitto writes OpenSSL's "certificate verify failed" for
one that is expired, revoked, foreign or forged alike. Files are not handled here (see broker_log.py).
"""

import re
from dataclasses import dataclass

from protocol.topics import PREFIX

DENIED = "denied_publish"
CERTIFICATE_MISSING = "certificate_missing"
CERTIFICATE_REFUSED = "certificate_refused"
HANDSHAKE = "handshake"
NOT_AUTHORISED = "not_authorised"
TAKEN_OVER = "session_taken_over"
SUBSCRIPTION = "foreign_subscription"
MALFORMED = "malformed_packet"
OVERSIZED = "oversized_packet"
DROPPED = "messages_dropped"
LOG_LOST = "log_lost"

KINDS = {
    DENIED: "a client published where the access rules let it not",
    CERTIFICATE_MISSING: "a client came without a certificate",
    CERTIFICATE_REFUSED: "a client came with a certificate that is expired, revoked, foreign or forged",
    HANDSHAKE: "a client came that does not speak TLS, or not as the broker does",
    NOT_AUTHORISED: "a client was refused: its name or its password is not allowed",
    TAKEN_OVER: "a second connection under one name; a device whose network broke does that, too",
    SUBSCRIPTION: "a client subscribed to what is not meant for it; nothing of that is delivered",
    MALFORMED: "a client sent what is not MQTT",
    OVERSIZED: "a client sent a packet that is larger than the broker takes",
    DROPPED: "the broker dropped messages, because a client's queue is full",
    LOG_LOST: "the log grew faster than it was read: some of it was never looked at",
}
"""Every kind of incident, with what it means."""

DETAIL_CHARACTERS = 200
_NAME = r"[A-Za-z0-9_.-]{1,64}"
_TIME = re.compile(r"(?:([0-9]{1,12}): |[0-9]{4}-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9]: )?")
_DENIED = re.compile(r"Denied PUBLISH from (?P<who>.*?) \(d[01], q[0-3], r[01], m[0-9]+, '(?P<what>.*)")
_TOO_LARGE = re.compile(r"Dropped too large PUBLISH from (?P<who>.*?) \(d[01], q[0-3].*?, '(?P<what>.*)")
_SUBSCRIBED = re.compile(r"(?P<who>\S+) [0-2] (?P<what>.+)")
_OPENSSL = re.compile(r"OpenSSL Error\[[0-9]+\]: error:[^:]*:SSL routines:[^:]*:(?P<what>.*)")
"""Of the errors of one failure, the one that says what failed; others, of other libraries, say why."""
_NO_TLS = re.compile(
    r"Client connection from (?P<where>\S+) failed: error:[^:]*:(?P<library>[^:]*):[^:]*:(?P<what>.*)"
)
"""Here the first error stands alone; of a certificate with a forged signature that is "EVP lib"."""
_CLIENTS = (
    (re.compile(r"Client (?P<who>.*) already connected, closing old connection\."), TAKEN_OVER),
    (re.compile(r"Client (?P<who>.*) disconnected, not authorised\."), NOT_AUTHORISED),
    (re.compile(r"Client (?P<who>.*) disconnected due to (malformed packet|protocol error)\."), MALFORMED),
    (re.compile(r"Client (?P<who>.*) disconnected due to oversize packet\."), OVERSIZED),
    (re.compile(r"Outgoing messages are being dropped for client (?P<who>.*)\."), DROPPED),
)
_VERIFY = "certificate verify failed"
_BROKEN = "unexpected eof"
"""What OpenSSL says of every connection that ends without a goodbye."""


@dataclass(frozen=True)
class Incident:
    """Something in the broker's log that an honest client does not cause, or seldom."""

    at: float | None
    """Unix seconds by the broker's clock; None: the line has none (see log_timestamp of mosquitto)."""
    device: str
    """Client id where it could be a device's name, else empty."""
    kind: str
    """One of KINDS."""
    detail: str
    """Topic, reason or address: printable, and at most DETAIL_CHARACTERS long."""


def parse(line: str, federation: str) -> Incident | None:
    """Read one line of the log; None: nothing is wrong, or it is not known what it means. Never raises.

    Args:
        line: without its end; of a line that is cut, what there is.
        federation: whose topics clients may subscribe to.
    """
    stamp = _TIME.match(line)
    start = stamp.end() if stamp else 0
    found = _read(line[start:], federation)
    if found is None:
        return None
    kind, who, detail = found
    at = float(stamp[1]) if stamp and stamp[1] else None
    return Incident(at, who if re.fullmatch(_NAME, who) else "", kind, _printable(detail))


def may_subscribe(client: str, topic: str, federation: str) -> bool:
    """Whether an honest client with this id subscribes to a topic."""
    root = f"{PREFIX}/{federation}"
    return (
        client in {f"graftwork-server-{federation}", f"graftwork-bridge-{federation}"}
        or topic in {f"{root}/srv/state", f"{root}/enroll/{client}/response"}
        or topic.startswith((f"{root}/all/", f"{root}/dn/{client}/"))
    )


def _read(text: str, federation: str) -> tuple[str, str, str] | None:
    """(kind, client, detail) of a line without its time."""
    if match := _OPENSSL.match(text):
        return _handshake(match["what"], "")
    if match := _NO_TLS.match(text):
        forged = match["library"] == "asn1 encoding routines"
        reason = _VERIFY if forged else match["what"].rstrip(".")
        return _handshake(reason, f" from {match['where']}")
    if match := _DENIED.match(text):
        return DENIED, match["who"], _topic(match["what"])
    if match := _TOO_LARGE.match(text):
        return OVERSIZED, match["who"], _topic(match["what"])
    for pattern, kind in _CLIENTS:
        if match := pattern.fullmatch(text):
            return kind, match["who"], text
    if match := _SUBSCRIBED.fullmatch(text):
        client, topic = match["who"], match["what"]
        return None if may_subscribe(client, topic, federation) else (SUBSCRIPTION, client, topic)
    return None


def _handshake(reason: str, where: str) -> tuple[str, str, str] | None:
    if reason.startswith(_BROKEN):
        return None
    if reason == _VERIFY:
        return CERTIFICATE_REFUSED, "", reason + where
    if reason == "peer did not return a certificate":
        return CERTIFICATE_MISSING, "", reason + where
    return HANDSHAKE, "", reason + where


def _topic(rest: str) -> str:
    """The topic in front of what follows it; a topic may have quotation marks itself."""
    return rest.rsplit("', ... (", 1)[0]


def _printable(text: str) -> str:
    """What may stand in a log or on a terminal: no control characters, and none that turn text around."""
    cut = text[:DETAIL_CHARACTERS]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cut)
