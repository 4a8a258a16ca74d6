"""The next certificate, asked for in good time over the connection of the present one."""

import hashlib
import logging
import math
from collections.abc import Callable

from agent.identity import Identity, Validity
from agent.voice import Voice
from protocol.identity import CertificateResponse, RenewalRequest
from runtime.errors import SetupError

log = logging.getLogger(__name__)

REPEAT_SECONDS = 3600.0
"""Between two requests: there are weeks for it."""


class Renewal:
    """Renews the certificate of one device; without a certificate there is nothing to do."""

    def __init__(self, identity: Identity, voice: Voice, now: Callable[[], float]) -> None:
        """Read the certificate's time.

        Args:
            identity: the device's files.
            voice: asks the server.
            now: Unix seconds.
        """
        self._identity = identity
        self._voice = voice
        self._now = now
        self._validity: Validity | None = identity.validity()
        self._asked_at = -math.inf

    def tick(self) -> None:
        """Ask, when it is time."""
        if self._validity is None or self._now() < self._validity.renew_at:
            return
        if 0 <= self._now() - self._asked_at < REPEAT_SECONDS:  # clocks go back, too
            return
        self._asked_at = self._now()
        try:
            request = RenewalRequest(self._identity.signing_request())
        except SetupError as error:  # e.g. a full disk: the present certificate is good for weeks
            log.error("the certificate cannot be renewed now: %s", error)
            return
        self._voice.say("renew", request)

    @property
    def ended(self) -> bool:
        """Whether the certificate is over: no broker takes it any more."""
        return self._validity is not None and self._now() > self._validity.not_after

    def receive(self, response: CertificateResponse) -> None:
        """Take the server's answer; the next connection uses the new certificate."""
        try:
            pending = self._identity.pending_request()
        except SetupError as error:
            log.error("the certificate is not renewed: %s", error)
            return
        if not pending or response.request != hashlib.sha256(pending).digest():
            return
        if response.status != "issued":
            log.warning("the certificate is not renewed: %s", response.reason)
            return
        try:
            self._validity = self._identity.adopt(response.certificate)
        except SetupError as error:
            log.error("the certificate is not renewed: %s", error)
            return
        log.info("the certificate was renewed; it is good for %.0f days", self._days_left())

    def _days_left(self) -> float:
        return (self._validity.not_after - self._now()) / 86_400 if self._validity else 0.0
