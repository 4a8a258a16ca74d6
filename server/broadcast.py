"""What the server says, signed: to every device, retained and good for a while, or to one of them."""

import logging
from collections.abc import Callable
from dataclasses import replace

from protocol.identity import Trust
from protocol.messages import Announcement, ServerState, sign_message
from protocol.signing import PrivateKey
from protocol.topics import Topics
from protocol.trust import MAX_ROOTS
from server.intake import RoundTerms
from server.ledger_records import ReleaseRecord
from server.offers import Offers
from server.publications import release_message, round_message

log = logging.getLogger(__name__)

Publish = Callable[[str, bytes, bool], bool]
"""(topic, payload, retain) -> handed to the broker."""
DAY = 86_400.0


class Broadcast:
    """The server's voice in one federation."""

    def __init__(
        self,
        topics: Topics,
        key: PrivateKey,
        publish: Publish,
        now: Callable[[], float],
        validity_days: float,
    ) -> None:
        """Take what is needed to speak.

        Args:
            topics: of the federation.
            key: what everything is signed with.
            publish: hands a message to the broker.
            now: Unix seconds.
            validity_days: how long a package or release may be begun with.
        """
        self._topics = topics
        self._key = key
        self._publish = publish
        self._now = now
        self._validity = validity_days * DAY
        self._session = int(now() * 1000)
        self._signed_at = now()

    @property
    def stale(self) -> bool:
        """Whether what is retained has to be signed anew: half of its time is over."""
        return not 0 <= self._now() - self._signed_at < self._validity / 2  # clocks go back, too

    def signed_state(self, *, online: bool) -> tuple[str, bytes]:
        """Topic and message of whether the server is there."""
        topic = self._topics.server_state()
        return topic, sign_message(ServerState(online, self._session), self._key, topic)

    def state(self) -> None:
        """Say that the server is there."""
        topic, envelope = self.signed_state(online=True)
        self._hand_over(topic, envelope, retain=True)

    def trust(self, roots: list[bytes], sealing_key: bytes) -> None:
        """Say which keys hold; devices need it before all else.

        A device that is more versions behind than a message holds has to be given a newer root by hand.
        """
        self._signed_at = self._now()
        self._to_all("trust", Trust(tuple(roots[-MAX_ROOTS:]), sealing_key, self._now(), self._expires))

    def package(self, announcement: Announcement) -> None:
        """Announce a package."""
        self._to_all("announcement", replace(announcement, issued=self._now(), expires=self._expires))

    def release(self, record: ReleaseRecord, package: bytes, offers: Offers) -> None:
        """Publish a release of the package with SHA-256 `package`."""
        message = release_message(record, package, offers)
        self._to_all("release", replace(message, issued=self._now(), expires=self._expires))

    def round(self, terms: RoundTerms, package: bytes, deadline: float) -> None:
        """Publish the open round."""
        self._to_all("round", round_message(terms, package, deadline))

    def to_device(self, device: str, kind: str, message: object) -> None:
        """Answer one device: a receipt, a chunk or a certificate."""
        self._send(self._topics.down(device, kind), message)

    def to_newcomer(self, nonce: str, message: object) -> None:
        """Answer a device that has no certificate yet."""
        self._send(self._topics.enroll(nonce, "response"), message)

    @property
    def _expires(self) -> float:
        return self._now() + self._validity

    def _to_all(self, kind: str, message: object) -> None:
        self._send(self._topics.all(kind), message, retain=True)

    def _send(self, topic: str, message: object, *, retain: bool = False) -> None:
        self._hand_over(topic, sign_message(message, self._key, topic), retain=retain)

    def _hand_over(self, topic: str, envelope: bytes, *, retain: bool) -> None:
        if not self._publish(topic, envelope, retain):
            log.debug("not connected: %s is sent again later", topic)
