"""What becomes of refused messages: counted, listed for operators, and held against who signed them."""

import logging
from collections.abc import Callable

from protocol.errors import ProtocolError
from server import refusals
from server.identities import QUARANTINED, REVOKED
from server.incidents import TAKEN_OVER, Incident
from server.limits import LimitsPolicy, Misbehaviour
from server.metrics import Metrics
from server.store import Store

log = logging.getLogger(__name__)


class Watch:
    """Keeps an eye on what devices send, and on what the broker saw of clients."""

    def __init__(
        self, store: Store, policy: LimitsPolicy, metrics: Metrics, now: Callable[[], float]
    ) -> None:
        """Begin to count; what was counted before a restart is forgotten."""
        self._store = store
        self._policy = policy
        self._metrics = metrics
        self._now = now
        self._misbehaviour = Misbehaviour(policy)

    def limited(self, device: str, limit: str) -> None:
        """A device sent more than it may; the message was dropped. Not listed: there may be very many."""
        self._metrics.limited(limit)
        log.debug("dropped a message from device=%s: more than limits.%s", device, limit)

    def refused(self, device: str, reason: ProtocolError | str, *, signed: bool) -> None:
        """A message was refused.

        Args:
            device: whose topic it came on; "?": on none of a device.
            reason: why.
            signed: whether the device's own signature on it was checked. Without it anyone who can publish on
                the topic could have the device quarantined.
        """
        code = refusals.classify(reason)
        log.warning("refused a message from device=%s (%s): %s", device, code, reason)
        self._metrics.refused(code)
        self._store.add_refusal(device, str(reason), self._now())
        misbehaved = signed and code in refusals.MISBEHAVIOUR
        if misbehaved and self._misbehaviour.note(device, self._now()):
            count, hours = self._policy.invalid_before_quarantine, self._policy.invalid_window_hours
            why = f"{count} invalid messages in {hours:g} hours, the last one: {reason}"
            if self._store.set_status(device, QUARANTINED, why, self._now()):
                log.error("device=%s is in quarantine: %s; see: devices reinstate", device, why)

    def incident(self, incident: Incident) -> None:
        """The broker's log shows what no honest client does."""
        device = incident.device or "?"
        if incident.kind == TAKEN_OVER and self._is_revoked(incident.device):
            return  # by the server itself, to end it
        log.warning("at the broker: device=%s %s: %s", device, incident.kind, incident.detail)
        self._metrics.attack(incident.kind)
        self._store.add_refusal(device, f"at the broker: {incident.kind}: {incident.detail}", self._now())

    def _is_revoked(self, device: str) -> bool:
        identity = self._store.identity(device)
        return identity is not None and identity.status == REVOKED
