"""What a device owes the server: its updates, each until its receipt is here, and when a new one may go.

An update that may not go yet is withheld: once the next release is adopted, it is added to the next update
(see protocol.charter.SendingPolicy). Training and rounds are not handled here.
"""

import hashlib
import logging
import math
from collections.abc import Callable

import numpy as np

from agent import sending
from agent.engine import Floats
from agent.store import Store
from agent.update import Contribution, make_update
from agent.voice import Voice
from protocol.charter import ADAPTIVE, SendingPolicy, TrainingPolicy
from protocol.messages import Receipt, Round
from protocol.package import Manifest

log = logging.getLogger(__name__)

RESEND_SECONDS = 20.0
HOUR = 3600


class Outbox:
    """Updates of one device."""

    def __init__(
        self,
        store: Store,
        voice: Voice,
        *,
        now: Callable[[], float],
        traffic: Callable[[], tuple[int, int]],
        owner: SendingPolicy,
    ) -> None:
        """Go on from what the store holds.

        Args:
            store: keeps the updates.
            voice: signs and sends them.
            now: Unix seconds.
            traffic: bytes (up, down) since the program started.
            owner: the owner's policy; the stricter of it and the charter's holds.
        """
        self._store = store
        self._voice = voice
        self._now = now
        self._traffic = traffic
        self._owner = owner
        self._noted = sum(traffic())
        self._sent_at = -math.inf
        self.waits = ""
        """Why no update is sent at the moment; empty: they are."""
        self.look()

    def look(self) -> bool:
        """Decide anew whether to wait; whether that changed."""
        policy, now = self._policy(), self._now()
        bytes_of_day = 0
        if policy.bytes_per_day:
            total = sum(self._traffic())
            if total != self._noted:
                self._store.note_traffic(int(now // HOUR), total - self._noted)
                self._noted = total
            bytes_of_day = self._store.traffic_since(int(now // HOUR) - 24)
        situation = sending.Situation(
            now,
            bytes_of_day,
            self._store.number("update_bytes", 0),
            self._relative_norm() if policy.minimum_relative_norm else np.inf,
            self._hours_waited(),
            self._store.outbox_length(),
            self._idle(),
        )
        before, self.waits = self.waits, sending.reason_to_wait(policy, situation)
        if self.waits in (sending.SMALL, sending.IDLE) and not self._store.number("waiting_since", 0):
            self._store.note_waiting(int(now))
        if self.waits != before:
            log.info("updates wait: %s" if self.waits else "updates are sent again%s", self.waits)
        return self.waits != before

    def withheld(self) -> Floats | None:
        """What the next update has to carry on once the release that is held is left; None: nothing changes.

        Called before the next release is adopted. What is not worth sending is not worth adding up: the next
        training starts from a release that most of it is in.
        """
        owed = self.waits and self.waits != sending.IDLE and not self._sent()
        difference = self.difference() if owed else None
        if difference is None:
            return None
        return np.asarray(np.float32(self._policy().carry_over) * difference, np.float32)

    def difference(self, trained: Floats | None = None) -> Floats | None:
        """What an update would say now, float32 [parameters]; None: there is nothing yet.

        Args:
            trained: from the release that is held; by default the adapter that is kept.
        """
        base = self._store.adapter("global")
        trained = self._store.adapter("personal") if trained is None else trained
        if base is None or trained is None:
            return None
        withheld = self._store.adapter("withheld")
        return trained - base if withheld is None else trained - base + withheld

    def send(
        self, current: Round, contribution: Contribution, manifest: Manifest, policy: TrainingPolicy
    ) -> None:
        """Commit the update of a round, and send it."""
        envelope = make_update(
            current,
            contribution,
            manifest,
            policy,
            topics=self._voice.topics,
            device=self._voice.device,
            key=self._voice.key,
        )
        sha256 = hashlib.sha256(envelope).digest()
        dropped = self._store.answer(current.number, sha256, envelope, self._now())
        if dropped:
            log.warning("the outbox is full: %d of the oldest updates were dropped", dropped)
        log.info("round=%d update=%d bytes", current.number, len(envelope))
        self._send(current.number, envelope)

    def resend(self) -> None:
        """Send everything again that has no receipt."""
        self._sent_at = self._now()
        for entry in self._store.outbox():
            self._send(entry.round, entry.envelope)

    def tick(self) -> None:
        """Send again what has had no receipt for a while."""
        # A clock that goes back must not keep what is due waiting until it is there again.
        if not 0 <= self._now() - self._sent_at < RESEND_SECONDS:
            self.resend()

    def clear(self, receipt: Receipt) -> None:
        """Drop the update that a receipt names."""
        if self._store.clear(receipt.update):
            level = logging.INFO if receipt.verdict in ("counted", "duplicate") else logging.WARNING
            reason = f": {receipt.reason}" if receipt.reason else ""
            log.log(level, "round=%d update %s%s", receipt.round, receipt.verdict, reason)

    def _send(self, number: int, envelope: bytes) -> None:
        # What is kept is not sealed: the server's key may be another one when it is sent again.
        self._voice.seal("update", envelope, number)

    def _policy(self) -> SendingPolicy:
        """The charter's, and the owner's where it is stricter."""
        return self._store.sending().stricter(self._owner)

    def _idle(self) -> bool:
        adaptive = self._store.schedule().mode == ADAPTIVE
        return adaptive and bool(self._store.number("idle", 0)) and not self._sent()

    def _hours_waited(self) -> float:
        """Since an update began to be too small; a clock that went back begins anew."""
        since = self._store.number("waiting_since", 0)
        if since > self._now():
            self._store.note_waiting(since := int(self._now()))
        return (self._now() - since) / HOUR if since else 0.0

    def _sent(self) -> bool:
        """Whether an update that starts from the release that is held was made."""
        return self._store.number("sent_release", -1) == self._store.state().release

    def _relative_norm(self) -> float:
        if self._sent():
            return np.inf
        difference, base = self.difference(), self._store.adapter("global")
        if difference is None or base is None:
            return np.inf
        return sending.relative_norm(difference, base)
