"""MQTT topics of a federation.

    fl/v1/{federation}/up/{device}/{state|update|report|get|renew}     device -> server
    fl/v1/{federation}/dn/{device}/{receipt|chunk|certificate}         server -> one device
    fl/v1/{federation}/all/{trust|announcement|round|release}          server -> every device, retained
    fl/v1/{federation}/srv/state                                       server, retained
    fl/v1/{federation}/enroll/{nonce}/{request|response}               a device that has no certificate yet

The direction stands before the device, so that one pattern line of a broker's ACL covers all devices. The
topic is also the context that a message's signature is bound to.
"""

import re
from dataclasses import dataclass

from protocol.errors import EncodingError, shown

PREFIX = "fl/v1"
UP = ("state", "update", "report", "get", "renew")
DOWN = ("receipt", "chunk", "certificate")
ALL = ("trust", "announcement", "round", "release")
SERVICE_PREFIX = "graftwork-"
"""Begins the names of the services' own certificates; no device may have such a name."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def check_name(name: str) -> str:
    """Return `name` if it can stand as one topic level.

    Raises:
        ValueError: empty, longer than 64 characters, or with other characters than A-Z a-z 0-9 _ . -
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"expected 1 to 64 characters of A-Z a-z 0-9 _ . -, got {shown(name)}")
    return name


def check_device(name: str) -> str:
    """Return `name` if a device may have it.

    Raises:
        ValueError: not one topic level, or reserved for services.
    """
    if check_name(name).lower().startswith(SERVICE_PREFIX):
        raise ValueError(f"expected a name that does not begin with {SERVICE_PREFIX}, got {shown(name)}")
    return name


@dataclass(frozen=True)
class Topics:
    """The topics of one federation."""

    federation: str

    def __post_init__(self) -> None:
        check_name(self.federation)

    def up(self, device: str, kind: str) -> str:
        """What `device` publishes; `device` may be "+" in a subscription."""
        return f"{PREFIX}/{self.federation}/up/{device}/{kind}"

    def down(self, device: str, kind: str) -> str:
        """What only `device` reads."""
        return f"{PREFIX}/{self.federation}/dn/{device}/{kind}"

    def all(self, kind: str) -> str:
        """What every device reads, retained."""
        return f"{PREFIX}/{self.federation}/all/{kind}"

    def server_state(self) -> str:
        """Whether the server is there."""
        return f"{PREFIX}/{self.federation}/srv/state"

    def enroll(self, nonce: str, kind: str) -> str:
        """Where a device without a certificate asks ("request") and is answered ("response").

        The nonce is its client id for that time; "+" in a subscription.
        """
        return f"{PREFIX}/{self.federation}/enroll/{nonce}/{kind}"

    def parse_enrolment(self, topic: str) -> str | None:
        """The nonce of an enrolment request's topic; None: it is another topic."""
        match topic.split("/", 6):
            case ["fl", "v1", self.federation, "enroll", nonce, "request"] if _NAME.fullmatch(nonce):
                return nonce
        return None

    def parse_up(self, topic: str) -> tuple[str, str]:
        """Read (device, kind) from a topic that a device published to.

        Raises:
            EncodingError: not such a topic of this federation.
        """
        parts = topic.split("/", 6)  # a hostile topic may have 65,535 levels
        match parts:
            case ["fl", "v1", self.federation, "up", device, kind] if kind in UP and _NAME.fullmatch(device):
                return device, kind
        raise EncodingError(f"expected a topic {self.up('DEVICE', 'KIND')}, got {shown(topic)}")


def context(topic: str) -> bytes:
    """What a signature on a message of `topic` is bound to."""
    return b"graftwork/1 " + topic.encode()
