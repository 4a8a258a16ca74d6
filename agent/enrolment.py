"""How a new device gets its certificate: it asks on a topic of its own until it has one.

The topic is named by a nonce that nobody else knows; it is the client id at the same time, and all that the
broker lets a client without certificate use. What is asked is sealed to the server, so it begins with the
server's word on its keys. The device may be cut off or killed at any moment: it asks again with the same
bytes, and gets the same answer.
"""

import hashlib
import logging
import math
import secrets
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from agent.identity import Identity
from agent.keyring import Keyring
from agent.voice import Publish
from protocol.errors import ProtocolError
from protocol.identity import CertificateResponse, EnrolmentRequest
from protocol.messages import sign_message
from protocol.topics import Topics
from runtime.errors import SetupError

log = logging.getLogger(__name__)

REPEAT_SECONDS = 10.0
PENDING_SECONDS, REFUSED_SECONDS = 60.0, 300.0
"""Until the next request: an operator takes minutes, and what was refused may be put right."""


class Enrolment:
    """Asks for a first certificate; a program for runtime.loop."""

    def __init__(
        self,
        device: str,
        topics: Topics,
        publish: Publish,
        now: Callable[[], float],
        *,
        identity: Identity,
        keyring: Keyring,
        token: str = "",
    ) -> None:
        """Begin.

        Args:
            device: its name.
            topics: of the federation.
            publish: (topic, payload, retain) -> handed to the broker.
            now: Unix seconds.
            identity: the device's files.
            keyring: whose word is taken.
            token: one-time token; empty: an operator has to approve.
        """
        self.nonce = secrets.token_hex(16)
        """Of the topic, and the client id."""
        self.finished = False
        """Whether the certificate is on disk."""
        self.outcome = ""
        """What the server said last, for people."""
        self._device = device
        self._topics = topics
        self._identity = identity
        self._key = identity.key()
        self._keyring = keyring
        self._publish = publish
        self._now = now
        self._token = token
        self._asked_at = -math.inf
        self._wait = REPEAT_SECONDS

    @property
    def subscriptions(self) -> list[str]:
        """What the server says of its keys, and the answer."""
        return [self._topics.all("trust"), self._topics.enroll(self.nonce, "response")]

    def will(self) -> None:
        """Nothing is published when a newcomer goes away."""
        return

    def connected(self) -> None:
        """Ask at once."""
        self._asked_at = -math.inf

    def disconnected(self) -> None:
        """Ask again when the link is back."""

    def handle(self, topic: str, payload: bytes) -> None:
        """Take the server's word; what is not signed by it is dropped."""
        try:
            if topic == self._topics.all("trust"):
                self._keyring.take(payload, topic)
            elif topic == self._topics.enroll(self.nonce, "response"):
                self._answered(self._keyring.verify(CertificateResponse, payload, topic))
        except ProtocolError as error:
            log.warning("dropped a message on %s: %s", topic, error)

    def tick(self) -> None:
        """Ask, when it is time."""
        sealing_key = self._keyring.sealing_key
        if sealing_key is None or 0 <= self._now() - self._asked_at < self._wait:  # clocks go back, too
            return
        self._asked_at, self._wait = self._now(), REPEAT_SECONDS
        topic = self._topics.enroll(self.nonce, "request")
        request = EnrolmentRequest(
            self._device,
            self._key.public.raw,
            self._identity.signing_request(),
            self._token,
            _agent_version(),
        )
        self._publish(topic, sealing_key.seal(sign_message(request, self._key, topic), topic, 0), False)

    def _answered(self, response: CertificateResponse) -> None:
        pending = self._identity.pending_request()
        if self.finished or not pending or response.request != hashlib.sha256(pending).digest():
            return
        self._asked_at = self._now()
        self._wait = PENDING_SECONDS if response.status == "pending" else REFUSED_SECONDS
        if response.reason and response.reason != self.outcome:
            log.warning("no certificate yet (%s): %s", response.status, response.reason)
        self.outcome = response.reason
        if response.status != "issued":
            return
        try:
            self._identity.adopt(response.certificate)
        except SetupError as error:
            log.error("the certificate cannot be used: %s", error)
            return
        self.finished, self.outcome = True, ""
        log.info("device=%s is enrolled", self._device)


def _agent_version() -> str:
    try:
        return version("graftwork")
    except PackageNotFoundError:
        return "unknown"
