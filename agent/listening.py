"""What the device hears: only what the server signed for this topic, nothing older than what was seen."""

import logging

from agent.keyring import Keyring
from protocol.errors import ProtocolError
from protocol.identity import CertificateResponse
from protocol.messages import Announcement, Chunk, Receipt, Release, Round
from protocol.topics import ALL, DOWN, Topics

log = logging.getLogger(__name__)

Heard = Announcement | Release | Round | Receipt | Chunk | CertificateResponse


class Listener:
    """Reads the messages to one device."""

    def __init__(self, device: str, topics: Topics, keyring: Keyring) -> None:
        """Take who listens, and whom it believes."""
        self._keyring = keyring
        self.trust_topic = topics.all("trust")
        """Of the server's word on its keys; see `hear_trust`."""
        self.subscriptions = [topics.down(device, kind) for kind in DOWN] + [topics.all(kind) for kind in ALL]
        self._kinds: dict[str, type[Heard]] = {
            topics.all("announcement"): Announcement,
            topics.all("release"): Release,
            topics.all("round"): Round,
            topics.down(device, "receipt"): Receipt,
            topics.down(device, "chunk"): Chunk,
            topics.down(device, "certificate"): CertificateResponse,
        }

    def hear(self, topic: str, payload: bytes) -> Heard | None:
        """Read a message; None: it is not for this device, or not to be believed, which the log says."""
        kind = self._kinds.get(topic)
        if kind is None or not payload:
            return None
        try:
            message = self._keyring.verify(kind, payload, topic)
            if isinstance(message, Announcement | Release):
                self._keyring.check_age(message)
        except ProtocolError as error:
            log.warning("dropped a message on %s: %s", topic, error)
            return None
        return message

    def hear_trust(self, payload: bytes) -> bool:
        """Take the server's word on its keys; whether another key holds than before."""
        try:
            return bool(payload) and self._keyring.take(payload, self.trust_topic)
        except ProtocolError as error:
            log.warning("dropped a message on %s: %s", self.trust_topic, error)
            return False
