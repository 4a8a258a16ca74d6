"""Where messages come in: who speaks, whether it may, and what it says. Nothing is decided on what was said.

In this order: topic, registered device, how much it sends, its status, its certificate's time, sealing, size,
signature, fields. A device that was revoked a moment ago is refused here although its connection still
stands.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocol.errors import EncodingError, IdentityError, LimitError, ProtocolError, SealingError
from protocol.identity import RenewalRequest
from protocol.messages import LIMITS, ChunkRequest, DeviceState, Report, Update, peek, verify_message
from protocol.sealing import SealingKey, unseal
from protocol.signing import ENVELOPE_BYTES, PublicKey
from protocol.topics import Topics, check_device
from server.errors import ServerError
from server.identities import QUARANTINED, REVOKED, Identity
from server.limits import UNKNOWN, RateLimiter
from server.refusals import is_misbehaviour
from server.store import Store

Message = DeviceState | Update | ChunkRequest | Report | RenewalRequest
SEALED = ("update", "report")
"""Kinds that only the server can read."""
_KINDS: dict[str, type[Message]] = {
    "state": DeviceState,
    "update": Update,
    "report": Report,
    "get": ChunkRequest,
    "renew": RenewalRequest,
}


@dataclass(frozen=True)
class Incoming:
    """A message whose signature and fields were checked."""

    device: str
    key: PublicKey
    message: Message
    envelope: bytes
    """As it was signed, no longer sealed."""
    quarantined: bool = False


class RefusedMessage(Exception):  # noqa: N818 - it is a verdict, not an accident
    """A message that is not taken."""

    def __init__(self, device: str, error: ProtocolError, *, signed: bool) -> None:
        """Say whose topic it came on, why it is refused, and whether that device signed it all the same."""
        super().__init__(str(error))
        self.device = device
        self.error = error
        self.signed = signed


class Reception:
    """Checks all that devices send, but for requests to enrol."""

    def __init__(
        self,
        store: Store,
        topics: Topics,
        sealing: Sequence[SealingKey],
        now: Callable[[], float],
        *,
        limiter: RateLimiter,
        maximum_update_bytes: int,
        open_enrolment: bool,
    ) -> None:
        """Take what decides.

        Args:
            store: devices and their statuses.
            topics: of the federation.
            sealing: keys that updates and reports may be sealed to.
            now: Unix seconds.
            limiter: how much each device may send.
            maximum_update_bytes: largest payload of an update.
            open_enrolment: whether an unknown name is registered with the first key that it presents.
        """
        self._store = store
        self._topics = topics
        self._sealing = sealing
        self._now = now
        self._limiter = limiter
        self._maximum_update_bytes = maximum_update_bytes
        self._open = open_enrolment

    def receive(self, topic: str, payload: bytes) -> Incoming | None:
        """Check a message; None: a retained state that somebody cleared.

        Raises:
            RefusedMessage: it is not what it should be, or of a device that may not speak.
        """
        device = "?"
        try:
            device, kind = self._topics.parse_up(topic)
            if kind == "state" and not payload:
                return None
            identity = self._identify(device, kind, payload, topic)
            limit = self._maximum_update_bytes if kind == "update" else LIMITS[_KINDS[kind]]
            number, envelope = self._unsealed(kind, payload, topic, limit)
        except ProtocolError as error:
            raise RefusedMessage(device, error, signed=False) from error
        try:
            message: Message = verify_message(_KINDS[kind], envelope, identity.key, topic, limit=limit)
            _check_number(number, message)
        except ProtocolError as error:
            # Size and form are looked at before the signature, so whose mistake it is must be asked again.
            signed = is_misbehaviour(error, envelope, identity.key, topic)
            raise RefusedMessage(device, error, signed=signed) from error
        return Incoming(device, identity.key, message, envelope, identity.status == QUARANTINED)

    def _unsealed(self, kind: str, payload: bytes, topic: str, limit: int) -> tuple[int | None, bytes]:
        """(number that it was sealed for, envelope); what is not to be sealed is the envelope already."""
        if kind not in SEALED:
            return None, payload
        return unseal(payload, self._sealing, topic, limit=limit + ENVELOPE_BYTES)

    def _identify(self, device: str, kind: str, payload: bytes, topic: str) -> Identity:
        identity = self._store.identity(device)
        who = device if identity else UNKNOWN
        exceeded = self._limiter.take(who, len(topic) + len(payload), self._now())
        if exceeded:
            raise LimitError(exceeded)
        if identity is None:
            if kind == "state" and self._open:
                return self._first_seen(device, payload, topic)
            raise IdentityError("the device is not registered")
        if identity.status == REVOKED:
            raise IdentityError("the device is revoked")
        until = identity.certificate_until
        if until is not None and self._now() > until and kind != "renew":
            raise IdentityError("the device's certificate has expired, and it did not renew it")
        return identity

    def _first_seen(self, device: str, payload: bytes, topic: str) -> Identity:
        try:
            check_device(device)
        except ValueError as error:
            raise EncodingError(str(error)) from error
        key = PublicKey(peek(DeviceState, payload).public_key)
        verify_message(DeviceState, payload, key, topic)
        try:
            self._store.register_device(device, key, self._now())
        except ServerError as error:  # another program was faster
            raise IdentityError(str(error)) from error
        identity = self._store.identity(device)
        if identity is None:
            raise IdentityError("the device is not registered")
        return identity


def _check_number(number: int | None, message: Message) -> None:
    """What is sealed must be about the round or release that its seal is for."""
    if isinstance(message, Update | Report):
        about = message.round if isinstance(message, Update) else message.release
        if number != about:
            raise SealingError(f"it was sealed for number {number}, and says that it is about {about}")
