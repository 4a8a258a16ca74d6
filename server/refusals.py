"""Why messages are refused, as a closed set of codes: for counting, and for what a device answers for.

The text of an error says what was expected and what came, so it may hold what a peer sent: it belongs into
the log and the list of refusals. A code never does, so a hostile device cannot make new ones.
"""

import re

from protocol.errors import (
    ArtifactError,
    EncodingError,
    ProtocolError,
    SchemaError,
    SealingError,
    SignatureError,
)
from protocol.signing import PublicKey, verify
from protocol.topics import context
from server import limits

NOT_REGISTERED = "not_registered"
SIGNATURE = "signature"
TOPIC = "topic"
SIZE = "size"
ENCODING = "encoding"
FIELDS = "fields"
ROUND = "round"
LATE = "late"
COHORT = "cohort"
BASE = "base"
DOMAIN = "domain"
WEIGHT = "weight"
BODY = "body"
FULL = "full"
CONFLICT = "conflict"
NO_PACKAGE = "no_package"
NOT_OFFERED = "not_offered"
CHUNK = "chunk"
UNREADABLE = "unreadable"
RATE = "rate"
QUARANTINED = "quarantined"
REVOKED = "revoked"
EXPIRED = "expired"
SEALING = "sealing"
OTHER = "other"

CODES = {
    NOT_REGISTERED: "the device is not registered",
    SIGNATURE: "not signed by the device's key for this topic",
    TOPIC: "no topic that devices publish to",
    SIZE: "larger than such a message may be",
    ENCODING: "no bounded COSE envelope or CBOR",
    FIELDS: "fields are missing, of another type or out of range",
    ROUND: "an update of a round that is not open",
    LATE: "an update of a round that is closed",
    COHORT: "an update of a device that is not in the round's cohort",
    BASE: "an update that starts from another release",
    DOMAIN: "an update for a domain that does not exist",
    WEIGHT: "an update with more weight than the policy allows",
    BODY: "an update whose steps or symbols cannot be decoded",
    FULL: "the round has all the weight that it can sum",
    CONFLICT: "a second, other update of the same round",
    NO_PACKAGE: "an update while there is no package",
    NOT_OFFERED: "a request for an artifact that is not on offer",
    CHUNK: "a request for a chunk that the artifact does not have",
    UNREADABLE: "the server cannot read its own package",
    RATE: "more than the limits allow",
    QUARANTINED: "the device is quarantined",
    REVOKED: "the device is revoked",
    EXPIRED: "the device let its certificate expire",
    SEALING: "not sealed to a key of this server for this topic and round",
    OTHER: "any other reason",
}
"""Every code, with what it means."""

MISBEHAVIOUR = frozenset({ENCODING, FIELDS, BODY, CHUNK})
"""Codes of messages that no honest device signs, whatever the server or the network did in the meantime.

All others are refusals that an honest message meets: when it is late, when the server was restored from a
backup, or when the operator changed a limit. Who has recorded such a message could play it to the server
again and again, so a device does not answer for it. Devices newer than the server may say what it does not
know yet: upgrade the server first.
"""

_BODY = (
    r"unexpected format or number of lanes|the (last tuple of the )?entropy-coded body |the symbol table |"
    r"a number of the symbol table |symbol or frequency |expected frequencies |expected symbols |"
    r"expected (at most|1 to) \d+ distinct symbols|expected \d+ steps|expected no symbols |"
    r"quantisation step |a value of the update "
)
_PATTERNS = [
    (re.compile(pattern), code)
    for pattern, code in (
        (r"the device is not registered", NOT_REGISTERED),
        (r"the device is (in quarantine|quarantined)", QUARANTINED),
        (r"the device is revoked", REVOKED),
        (r"the device's certificate has expired", EXPIRED),
        ("|".join(limits.REASONS), RATE),
        (r"expected a topic ", TOPIC),
        (r"expected at most \d+ bytes|expected a payload of at most ", SIZE),
        (r"expected round |round \d+ is not open", ROUND),
        (r"round \d+ is closed|the release that round \d+ started from was withdrawn", LATE),
        (r"not in the cohort", COHORT),
        (r"expected base ", BASE),
        (r"expected a domain ", DOMAIN),
        (r"expected a weight ", WEIGHT),
        (_BODY, BODY),
        (r"the round has all the weight", FULL),
        (r"another update of this round is counted", CONFLICT),
        (r"there is no package", NO_PACKAGE),
        (r"no artifact [0-9a-f]* is on offer", NOT_OFFERED),
        (r"expected chunks below ", CHUNK),
    )
]
"""The beginnings of the texts that are written in this project; what a peer sent stands behind them."""
_KINDS = (
    (SignatureError, SIGNATURE),
    (SealingError, SEALING),
    (SchemaError, FIELDS),
    (EncodingError, ENCODING),
    (ArtifactError, UNREADABLE),
)


def classify(error: ProtocolError | str) -> str:
    """The code of an error, or of the reason on a receipt; `OTHER` if none is known. Never raises."""
    text = str(error)
    # A text that begins with the name of a message has a peer's words early on: only its kind counts.
    if not isinstance(error, SchemaError):
        for pattern, code in _PATTERNS:
            if pattern.match(text):
                return code
    return next((code for kind, code in _KINDS if isinstance(error, kind)), OTHER)


def is_misbehaviour(error: ProtocolError | str, envelope: bytes, key: PublicKey, topic: str) -> bool:
    """Whether a device answers for a message that was refused, see `limits.Misbehaviour`.

    The signature is checked again: an envelope is refused for its size or its form before its signature is
    looked at, and for that anyone who can publish on the device's topic could be the reason.

    Args:
        error: why the message was refused.
        envelope: the message.
        key: the device's.
        topic: where it was received.
    """
    if classify(error) not in MISBEHAVIOUR:
        return False
    try:
        verify(envelope, key, context(topic), limit=len(envelope))
    except ProtocolError:
        return False
    return True
