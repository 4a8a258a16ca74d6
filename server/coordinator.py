"""The server's conductor: messages and time in, commits and publications out.

Order within each step: check, commit, publish. What is published can be published again at any time, and is
after each reconnect; so a server that is killed anywhere goes on with the same round. The link, the clock
and the main loop are not handled here.
"""

import hashlib
import logging
from collections.abc import Callable

from protocol import topics as topic_names
from protocol.errors import ArtifactError, LimitError, ProtocolError
from protocol.identity import RenewalRequest
from protocol.messages import ChunkRequest, DeviceState, Receipt, Report, Update
from server.broadcast import Broadcast, Publish
from server.config import ServerConfig
from server.enrolment import Enrolment, Issuer
from server.housekeeping import Housekeeping
from server.intake import Accepted, Rejected
from server.keys import ServerKeys
from server.limits import UNKNOWN, RateLimiter
from server.metrics import Metrics
from server.proceedings import Proceedings
from server.reception import Incoming, Reception, RefusedMessage
from server.revocation import Revocations
from server.store import JournalledUpdate, Store
from server.watch import Watch

log = logging.getLogger(__name__)

QUARANTINE = Rejected("refused", "the device is in quarantine until an operator reinstates it")
OUTCOMES = {"issued": "granted", "pending": "waiting", "refused": "refused"}
"""Of enrolments, by the answer's status."""


class Coordinator:
    """Runs one federation."""

    def __init__(
        self,
        config: ServerConfig,
        store: Store,
        keys: ServerKeys,
        publish: Publish,
        now: Callable[[], float],
        *,
        issuer: Issuer | None = None,
        revocations: Revocations | None = None,
        metrics: Metrics | None = None,
        traffic: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        """Go on from what the store holds.

        Args:
            config: the server's configuration.
            store: rounds, updates and releases so far.
            keys: what everything is signed with, and what devices seal to.
            publish: hands a message to the broker.
            now: Unix seconds.
            issuer: the fleet's certificate authority, where there is one.
            revocations: brings them to the broker, where the server may.
            metrics: what is counted; by default nobody sees them.
            traffic: bytes (up, down) of the link so far.
        """
        self._config = config
        self._store = store
        self._keys = keys
        self._now = now
        self._topics = topic_names.Topics(config.federation)
        self._broadcast = Broadcast(self._topics, keys.signing, publish, now, config.trust.validity_days)
        self._enrolment = Enrolment(
            store, issuer, keys.sealing, now, mode=config.enrolment, days=config.trust.certificate_days
        )
        self._metrics = metrics or Metrics()
        self._watch = Watch(store, config.limits, self._metrics, now)
        self._limiter = RateLimiter(config.limits)
        self._housekeeping = Housekeeping(
            config, store, self._watch, self._metrics, now, revocations=revocations, traffic=traffic
        )
        self._reception = Reception(
            store,
            self._topics,
            keys.sealing,
            now,
            limiter=self._limiter,
            maximum_update_bytes=config.maximum_update_bytes,
            open_enrolment=config.enrolment == "open",
        )
        self._reachable_since: float | None = None
        self._waiting = {row["id"] for row in store.devices() if row["waits"]}
        self._proceedings = Proceedings(config, store, self._broadcast, self._metrics, now)

    finished = False
    """It goes on until it is stopped."""

    @property
    def subscriptions(self) -> list[str]:
        """Topics that the server listens to."""
        up = [self._topics.up("+", kind) for kind in topic_names.UP]
        return [*up, self._topics.enroll("+", "request")]

    def will(self) -> tuple[str, bytes]:
        """What the broker tells the devices when the server is gone."""
        return self._broadcast.signed_state(online=False)

    def connected(self) -> None:
        """Publish everything that a broker without memory would lack."""
        self._reachable_since = self._now()
        self._broadcast.state()
        self._publish_all()

    def disconnected(self) -> None:
        """The broker is away: no round opens, and none closes at its deadline."""
        self._reachable_since = None

    def handle(self, topic: str, payload: bytes) -> None:
        """Take one message; what is wrong with it is noted and harms nothing else."""
        device = "?"
        nonce = self._topics.parse_enrolment(topic)
        try:
            if nonce is not None:
                self._newcomer(nonce, topic, payload)
                return
            incoming = self._reception.receive(topic, payload)
            if incoming:
                device = incoming.device
                self._take(incoming)
        except RefusedMessage as refused:
            if isinstance(refused.error, LimitError):
                self._watch.limited(refused.device, str(refused.error))
            else:
                self._watch.refused(refused.device, refused.error, signed=refused.signed)
        except ProtocolError as error:
            self._watch.refused(device, error, signed=nonce is None)

    def _newcomer(self, nonce: str, topic: str, payload: bytes) -> None:
        exceeded = self._limiter.take(UNKNOWN, len(topic) + len(payload), self._now())
        if exceeded:
            self._watch.limited("?", exceeded)
            return
        device, answer = self._enrolment.enrol(topic, payload)
        self._metrics.enrolment(OUTCOMES[answer.status])
        if answer.status == "refused":
            self._watch.refused(device, answer.reason, signed=False)
        self._broadcast.to_newcomer(nonce, answer)

    def _take(self, incoming: Incoming) -> None:
        message, device = incoming.message, incoming.device
        if isinstance(message, DeviceState):
            self._device_state(device, message)
        elif isinstance(message, Update):
            self._update(incoming, message)
        elif isinstance(message, ChunkRequest):
            self._chunks(device, message)
        elif isinstance(message, Report) and not incoming.quarantined:
            self._report(device, message)
        elif isinstance(message, RenewalRequest):
            answer = self._enrolment.renew(device, message)
            if answer.status == "issued":
                self._metrics.certificate("renewed")
            self._broadcast.to_device(device, "certificate", answer)

    def tick(self) -> None:
        """Do the chores, notice what operators did, and let the round machine see the time."""
        self._housekeeping.tick()
        self._proceedings.look()
        if self._broadcast.stale:
            self._publish_all()
        excused = frozenset(self._waiting) | self._store.barred()
        self._proceedings.tick(excused, self._reachable_since)

    def close(self) -> None:
        """Let go of files."""
        self._housekeeping.close()

    # Messages

    def _device_state(self, device: str, state: DeviceState) -> None:
        newest = self._proceedings.newest_release
        if 0 <= newest < state.release:
            log.warning(
                "device=%s holds release %d, newer than the newest here (%d): was an old backup restored?",
                device, state.release, newest,
            )  # fmt: skip
        self._store.set_device_state(device, state, self._now())
        (self._waiting.add if state.waits else self._waiting.discard)(device)

    def _report(self, device: str, report: Report) -> None:
        self._store.add_report(device, report, self._now())
        self._proceedings.note_report(report)

    def _update(self, incoming: Incoming, update: Update) -> None:
        device, sha256 = incoming.device, hashlib.sha256(incoming.envelope).digest()
        if self._store.journalled_update(device, update.round) == sha256:
            # A receipt may have been lost; or somebody plays it again.
            log.info("device=%s round=%d duplicate: it is counted once", device, update.round)
            self._receipt(device, Receipt(sha256, update.round, "duplicate"))
            return
        self._proceedings.look()  # a push ends the open round at once
        decision = QUARANTINE if incoming.quarantined else self._proceedings.examine(device, update)
        if isinstance(decision, Rejected):
            log.warning("device=%s round=%d %s: %s", device, update.round, decision.verdict, decision.reason)
            if decision.verdict == "refused":
                self._watch.refused(device, decision.reason, signed=True)
            self._receipt(device, Receipt(sha256, update.round, decision.verdict, decision.reason))
            return
        kept = self._store.journal_update(
            JournalledUpdate(device, incoming.envelope, incoming.key, update.round),
            sha256,
            counted_in=self._proceedings.counts_in,
            now=self._now(),
        )
        if kept != sha256:
            reason = f"another update of this round is counted: {kept.hex()[:16]}"
            log.warning("device=%s round=%d refused: %s", device, update.round, reason)
            self._receipt(device, Receipt(sha256, update.round, "refused", reason))
            return
        self._receipt(device, Receipt(sha256, update.round, "counted", _lateness_text(decision)))
        self._proceedings.count(device, update.round, decision)

    def _chunks(self, device: str, request: ChunkRequest) -> None:
        try:
            for chunk in self._proceedings.offers.chunks(request):
                exceeded = self._limiter.take_chunks(device, len(chunk.data), self._now())
                if exceeded:
                    self._watch.limited(device, exceeded)
                    return
                self._broadcast.to_device(device, "chunk", chunk)
        except ArtifactError:
            log.exception("the announced package cannot be read; push it again")
            raise

    def _publish_all(self) -> None:
        self._proceedings.publish_all(self._keys.sealing[0].public.raw)

    def _receipt(self, device: str, receipt: Receipt) -> None:
        self._metrics.update(receipt.verdict)
        self._broadcast.to_device(device, "receipt", receipt)


def _lateness_text(accepted: Accepted) -> str:
    """What a receipt says of an update that came late."""
    if not accepted.staleness:
        return ""
    releases = "release" if accepted.staleness == 1 else "releases"
    return f"{accepted.staleness} {releases} late, with weight {accepted.weight}"
