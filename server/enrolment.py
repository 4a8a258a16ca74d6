"""How a device gets its certificate: requests in, signed answers out; what was decided is on disk first.

A newcomer asks on `enroll/{nonce}/request`, sealed, so that nobody on the way can use its token; a device
that has a certificate asks for the next one on `up/{device}/renew`. The authority only ever sees checked
requests, and a request that comes again gets the same answer.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from protocol.errors import SealingError
from protocol.identity import CertificateResponse, EnrolmentRequest, RenewalRequest
from protocol.messages import LIMITS, peek, verify_message
from protocol.sealing import SealingKey, unseal
from protocol.signing import ENVELOPE_BYTES, PublicKey
from server.admission import Claim, Pending
from server.certificates import Issued
from server.errors import ServerError
from server.identities import NewCertificate, Refused
from server.store import Store

log = logging.getLogger(__name__)

APPROVAL = "approval"
NO_AUTHORITY = "this server has no certificate authority (graftwork-server ca init)"


class Issuer(Protocol):
    """The fleet's certificate authority, as far as it is needed here."""

    def issue_device(self, csr_der: bytes, device: str, now: float, *, days: int) -> Issued:
        """Make a certificate.

        Raises:
            ServerError: the request is none that it signs; the text is fit for the device.
        """


class Enrolment:
    """Answers requests for certificates."""

    def __init__(
        self,
        store: Store,
        issuer: Issuer | None,
        sealing: Sequence[SealingKey],
        now: Callable[[], float],
        *,
        mode: str,
        days: int,
    ) -> None:
        """Take what decides.

        Args:
            store: devices, tokens, certificates.
            issuer: the authority; None: there is none, and every request is refused.
            sealing: what requests may be sealed to.
            now: Unix seconds.
            mode: of enrolment, see ServerConfig.
            days: how long a certificate is good.
        """
        self._store = store
        self._issuer = issuer
        self._sealing = sealing
        self._now = now
        self._mode = mode
        self._days = days

    def enrol(self, topic: str, payload: bytes) -> tuple[str, CertificateResponse]:
        """Answer a newcomer; returns the name that it claims, and the answer.

        Raises:
            ProtocolError: nobody proved to have the key that the request names. It gets no answer.
        """
        limit = LIMITS[EnrolmentRequest] + ENVELOPE_BYTES
        number, envelope = unseal(payload, self._sealing, topic, limit=limit)
        if number:
            raise SealingError(f"expected number 0 in an enrolment request, got {number}")
        key = PublicKey(peek(EnrolmentRequest, envelope).public_key)
        request = verify_message(EnrolmentRequest, envelope, key, topic)
        sha256 = hashlib.sha256(request.signing_request).digest()
        claim = Claim(request.device, key, request.token, sha256)

        def decide() -> bytes:
            return self._store.enrol(
                claim,
                self._now(),
                lambda: self._issue(request.signing_request, request.device),
                approval=self._mode == APPROVAL,
                agent=request.agent_version,
            )

        return request.device, self._answer(request.device, sha256, decide)

    def renew(self, device: str, request: RenewalRequest) -> CertificateResponse:
        """Answer a registered device whose signature was checked."""
        sha256 = hashlib.sha256(request.signing_request).digest()

        def decide() -> bytes:
            return self._store.renew(
                device, sha256, self._now(), lambda: self._issue(request.signing_request, device)
            )

        return self._answer(device, sha256, decide)

    def _answer(self, device: str, sha256: bytes, decide: Callable[[], bytes]) -> CertificateResponse:
        try:
            certificate = decide()
        except Pending:
            log.info("device=%s waits for approval (graftwork-server devices requests)", device)
            return CertificateResponse("pending", sha256, reason="an operator has to approve")
        except (Refused, ServerError) as error:
            log.warning("device=%s gets no certificate: %s", device, error)
            return CertificateResponse("refused", sha256, reason=str(error))
        log.info("device=%s has a certificate", device)
        return CertificateResponse("issued", sha256, certificate)

    def _issue(self, signing_request: bytes, device: str) -> NewCertificate:
        if self._issuer is None:
            raise Refused(NO_AUTHORITY)
        issued = self._issuer.issue_device(signing_request, device, self._now(), days=self._days)
        sha256 = hashlib.sha256(signing_request).digest()
        return NewCertificate(issued.serial, sha256, issued.not_after, issued.certificate)
