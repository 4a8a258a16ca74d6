"""The server's conductor: messages and time in, commits and publications out.

Order within each step: check, commit, publish. What is published can be published again at any time, and is
after each reconnect; so a server that is killed anywhere goes on with the same round. The link, the clock
and the main loop are not handled here.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from protocol import topics as topic_names
from protocol.artifacts import describe
from protocol.errors import ArtifactError, EncodingError, LimitError, ProtocolError
from protocol.identity import RenewalRequest
from protocol.messages import Announcement, ChunkRequest, DeviceState, Receipt, Report, Update
from protocol.package import Manifest, ModelPackage, unpack
from server import guard, withdrawals
from server import round as rounds
from server.broadcast import Broadcast, Publish
from server.config import ServerConfig
from server.domains import placement
from server.enrolment import Enrolment, Issuer
from server.errors import ServerError
from server.housekeeping import Housekeeping
from server.identities import ACTIVE
from server.intake import Accepted, Lateness, Rejected, RoundTerms, examine
from server.journal import sum_journal, terms_of
from server.keys import ServerKeys
from server.limits import UNKNOWN, RateLimiter
from server.metrics import Metrics
from server.offers import Offers
from server.reception import Incoming, Reception, RefusedMessage
from server.revocation import Revocations
from server.store import JournalledUpdate, PackageRecord, ReleaseRecord, RoundRecord, Store
from server.watch import Watch

if TYPE_CHECKING:
    from server.counting import Counting

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
        self._package_record: PackageRecord | None = None
        self._package: ModelPackage | None = None
        self._announcement: Announcement | None = None
        self._offers = Offers()
        self._release: ReleaseRecord | None = None
        self._state: rounds.State = rounds.Waiting(1)
        self._counting: Counting | None = None
        self._unjudged = True
        """Whether reports on the newest release came that the guard has not seen."""
        self._waiting = {row["id"] for row in store.devices() if row["waits"]}
        self._load()

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
        """Look for a new package, and let the round machine see the time."""
        self._housekeeping.tick()
        self._look_for_package()
        if self._broadcast.stale:
            self._publish_all()
        if self._package is None:
            return
        if self._unjudged:
            self._judge_once_all_reported()
        nobody: frozenset[str] = frozenset()
        ready, expected = (nobody, nobody) if self._counting else self._candidates()
        self._state, actions = rounds.tick(
            self._state,
            self._config.round,
            self._now(),
            ready,
            expected,
            excused=frozenset(self._waiting) | self._store.barred(),
            reachable_since=self._reachable_since,
        )
        self._perform(actions)

    # Messages

    def _device_state(self, device: str, state: DeviceState) -> None:
        if self._release and state.release > self._release.number:
            log.warning(
                "device=%s holds release %d, newer than the newest here (%d): was an old backup restored?",
                device, state.release, self._release.number,
            )  # fmt: skip
        self._store.set_device_state(device, state, self._now())
        (self._waiting.add if state.waits else self._waiting.discard)(device)

    def _report(self, device: str, report: Report) -> None:
        self._store.add_report(device, report, self._now())
        self._unjudged |= self._release is not None and report.release == self._release.number

    def _update(self, incoming: Incoming, update: Update) -> None:
        device, sha256 = incoming.device, hashlib.sha256(incoming.envelope).digest()
        if self._store.journalled_update(device, update.round) == sha256:
            self._receipt(device, Receipt(sha256, update.round, "duplicate"))
            return
        self._look_for_package()  # a push ends the open round at once
        decision = QUARANTINE if incoming.quarantined else self._examine(device, update)
        if isinstance(decision, Rejected):
            log.warning("device=%s round=%d %s: %s", device, update.round, decision.verdict, decision.reason)
            if decision.verdict == "refused":
                self._watch.refused(device, decision.reason, signed=True)
            self._receipt(device, Receipt(sha256, update.round, decision.verdict, decision.reason))
            return
        kept = self._store.journal_update(
            JournalledUpdate(device, incoming.envelope, incoming.key, update.round),
            sha256,
            counted_in=self._counts_in(),
            now=self._now(),
        )
        if kept != sha256:
            reason = f"another update of this round is counted: {kept.hex()[:16]}"
            self._receipt(device, Receipt(sha256, update.round, "refused", reason))
            return
        self._receipt(device, Receipt(sha256, update.round, "counted", _lateness_text(decision)))
        self._count(device, update.round, decision)

    def _examine(self, device: str, update: Update) -> Accepted | Rejected:
        if self._package is None or self._package_record is None:
            raise EncodingError("there is no package, so no round is open")
        counting = self._counting
        if update.round >= self._counts_in() and counting is None:
            return Rejected("refused", f"round {update.round} is not open yet")
        if counting and update.round >= counting.terms.number:
            terms: RoundTerms | None = counting.terms
        else:
            terms = terms_of(self._store, update.round, self._package_record.version)
            record = self._store.round_record(update.round) if terms is None else None
            if record and (withdrawals.of_withdrawn(record) or self._store.undone(record.base_release)):
                return Rejected("late", f"the release that round {update.round} started from was withdrawn")
        decision = examine(
            update,
            device,
            terms,
            counting.lateness if counting else Lateness(self._newest().number, self._config.staleness),
            federation=self._config.federation,
            manifest=self._package.manifest,
        )
        if isinstance(decision, Accepted) and counting and not counting.has_room(decision):
            return Rejected("refused", "the round has all the weight that it can sum")
        return decision

    def _counts_in(self) -> int:
        """The round that counts what comes now: the open one, or the next."""
        return self._state.number if isinstance(self._state, rounds.Open) else self._state.next_number

    def _count(self, device: str, number: int, accepted: Accepted) -> None:
        late = accepted.staleness > 0
        log.info(
            "counted device=%s round=%d weight=%d%s",
            device, number, accepted.weight, f" in round={self._counts_in()}" if late else "",
        )  # fmt: skip
        if self._counting is None:
            return  # the next round takes it from the journal
        self._counting.add(device, accepted)
        if not late and isinstance(self._state, rounds.Open):
            self._state, actions = rounds.count(self._state, self._config.round, self._now(), device)
            self._perform(actions)

    def _chunks(self, device: str, request: ChunkRequest) -> None:
        try:
            for chunk in self._offers.chunks(request):
                exceeded = self._limiter.take_chunks(device, len(chunk.data), self._now())
                if exceeded:
                    self._watch.limited(device, exceeded)
                    return
                self._broadcast.to_device(device, "chunk", chunk)
        except ArtifactError:
            log.exception("the announced package cannot be read; push it again")
            raise

    # Rounds and releases

    def _look_for_package(self) -> None:
        newest = self._store.newest_package()
        behind = self._package_record is None or (newest and newest.version > self._package_record.version)
        if newest and not behind and self._release:  # an operator may have gone back to a release
            behind = self._store.newest_release_number() > self._release.number
        if newest and behind:
            self._load()
            self._publish_package()
            self._publish_release()

    def _candidates(self) -> tuple[frozenset[str], frozenset[str]]:
        """(devices that could take part now, others worth waiting for)."""
        ready, expected = set(), set()
        for device in self._store.devices():
            if device["waits"] or device["status"] != ACTIVE:
                continue
            if device["online"] and device["release"] == self._newest().number and device["labelled_windows"]:
                ready.add(device["id"])
            elif device["last_seen"] is None or (
                device["online"] and device["release"] < self._newest().number
            ):
                expected.add(device["id"])
        return frozenset(ready), frozenset(expected)

    def close(self) -> None:
        """Let go of files."""
        self._housekeeping.close()

    def _perform(self, actions: list[rounds.Action]) -> None:
        for action in actions:
            if isinstance(action, rounds.OpenRound):
                self._metrics.round("opened")
                self._open_round(action)
            elif isinstance(action, rounds.ExtendRound):
                log.warning("round=%d has no quorum at its deadline; it goes on", action.number)
                self._metrics.round("extended")
                self._store.extend_round(action.number, action.deadline)
                self._publish_round()
            else:
                self._close_round(action.number)

    def _open_round(self, action: rounds.OpenRound) -> None:
        if self._package is None or self._package_record is None:
            raise ServerError("a round cannot open without a package")
        record = RoundRecord(
            action.number,
            self._package_record.version,
            self._newest().number,
            action.cohort,
            self._now(),
            action.deadline,
            training=asdict(self._config.training),
            release_step_ratio=self._config.release_step_ratio,
            staleness=asdict(self._config.staleness),
            aggregation=asdict(self._config.aggregation),
        )
        self._store.open_round(record)
        self._sum_journal(record, self._package.manifest)  # late updates came while no round was open
        log.info("opened round=%d with %d devices", action.number, len(action.cohort))
        self._publish_round()

    def _sum_journal(self, record: RoundRecord, manifest: Manifest) -> frozenset[str]:
        """Begin to count a round; returns who of its cohort is counted already."""
        self._counting, counted = sum_journal(
            self._store, record, self._newest(), manifest=manifest, federation=self._config.federation
        )
        return counted

    def _close_round(self, number: int) -> None:
        if self._counting is None:
            raise ServerError(f"round {number} closes without having been open")
        if self._withdraw_if_worse():
            return
        base = self._newest()
        self._split(number, base)
        release = self._counting.release(base, self._store.reports(base.number).values(), self._now())
        if not self._store.close_round(number, release, self._now()):
            self._look_for_package()
            return
        self._release, self._counting = release, None
        self._metrics.round("closed")
        self._metrics.release("made", release.number)
        log.info(
            "closed round=%d release=%d updates=%d domains=%d sha256=%s",
            number, release.number, release.updates, release.domains, release.sha256.hex()[:16],
        )  # fmt: skip
        if isinstance(self._state, rounds.Waiting) and self._state.rounds_done == self._config.round.rounds:
            log.info("all %d rounds of this package are done", self._state.rounds_done)
        self._publish_release()

    def _split(self, number: int, base: ReleaseRecord) -> None:
        """Count the round again, domain by domain, if its release is to split the federation."""
        record = self._store.round_record(number)
        if record is None or self._package is None:
            raise ServerError(f"round {number} is gone")
        manifest, federation = self._package.manifest, self._config.federation
        found = placement(self._store, record, base, manifest, federation)
        if found is not None:
            self._counting, _ = sum_journal(
                self._store, record, base, manifest=manifest, federation=federation, placement=found
            )

    # The guard: by all reports at once, or at the latest before a round makes a release of what it judges

    def _judge_once_all_reported(self) -> None:
        self._unjudged = False
        reported = self._store.reports(self._newest().number)
        if all(row["id"] in reported for row in self._store.devices() if row["online"]):
            self._withdraw_if_worse()

    def _withdraw_if_worse(self) -> bool:
        """Go back to the release before if the newest is worse for too many; False: it stays.

        What a package begins with, and what the fleet has gone back to, stays whatever is said of it.
        """
        newest = self._newest()
        restored = self._store.release(newest.number - 1) if newest.round is not None else None
        if restored is None:
            return False
        evidence = guard.judge(self._store.reports(newest.number), newest.number, self._config.withdrawal)
        if not evidence.withdraw:
            return False
        release = withdrawals.replacement(newest, restored, self._now())
        if self._store.withdraw(evidence.reason, asdict(evidence), release):
            log.warning(
                "withdrew release=%d: %s; release=%d is release=%d again",
                newest.number, evidence.reason, newest.number + 1, restored.number,
            )  # fmt: skip
            self._metrics.release("withdrawn", newest.number + 1)
        self._load()  # also where a new package came in between
        self._publish_package()
        self._publish_release()
        return True

    def _newest(self) -> ReleaseRecord:
        if self._release is None:
            raise ServerError("there is no release yet")
        return self._release

    def _load(self) -> None:
        """Take package, release and open round from the store; sum the updates that it journalled."""
        self._package_record = self._store.newest_package()
        if self._package_record is None:
            return
        data = self._store.package_path(self._package_record.sha256).read_bytes()
        self._package = unpack(data, None)  # checked against the publishers when it was pushed
        if self._package.sha256 != self._package_record.sha256:
            raise ServerError(f"package {self._package_record.name!r} changed on disk; push it again")
        segments = self._package.manifest.slices()
        for name in sorted(set(self._config.training.learning_rate_factors) - set(segments)):
            log.warning(
                "training.learning_rate_factors: package %s has no segment %r; it has %s",
                self._package_record.name, name, ", ".join(segments),
            )  # fmt: skip
        self._announcement = Announcement(
            self._package_record.version,
            self._package_record.name,
            describe(data),
            self._config.training,
            self._config.sending,
            self._config.staleness,
            self._config.withdrawal,
            self._config.schedule,
            rollback=self._package_record.rollback or b"",
        )
        self._offers.offer_package(
            self._announcement.package, self._store.package_path(self._package_record.sha256)
        )
        self._release = self._store.newest_release()
        self._unjudged = True
        self._counting = None
        done = self._store.rounds_done(self._package_record.version)
        self._state = rounds.Waiting(self._store.next_round_number(), done, self._rest_until())
        record = self._store.open_round_record()
        if record is not None:
            self._resume(record, done, self._package.manifest)

    def _rest_until(self) -> float:
        """When the next round may open, as far as withdrawals have a say."""
        if self._release is None:
            return 0.0
        return withdrawals.rest_until(
            self._store.withdrawals(), self._release, self._config.round.pause_seconds
        )

    def _resume(self, record: RoundRecord, done: int, manifest: Manifest) -> None:
        # Under the policies that it was opened with: a changed configuration holds from the next round on.
        counted = self._sum_journal(record, manifest)
        self._state = rounds.Open(record.number, frozenset(record.cohort), counted, record.deadline, done)
        log.info("resumed round=%d with %d of %d updates", record.number, len(counted), len(record.cohort))

    # Publications

    def _publish_all(self) -> None:
        """Everything that devices read, trust in the first place."""
        self._broadcast.trust(self._store.roots(), self._keys.sealing[0].public.raw)
        self._publish_package()
        self._publish_release()
        self._publish_round()

    def _publish_package(self) -> None:
        if self._announcement:
            self._broadcast.package(self._announcement)

    def _publish_release(self) -> None:
        if self._release and self._package:
            self._broadcast.release(self._release, self._package.sha256, self._offers)

    def _publish_round(self) -> None:
        if isinstance(self._state, rounds.Open) and self._package and self._counting:
            self._broadcast.round(self._counting.terms, self._package.sha256, self._state.deadline)

    def _receipt(self, device: str, receipt: Receipt) -> None:
        self._metrics.update(receipt.verdict)
        self._broadcast.to_device(device, "receipt", receipt)


def _lateness_text(accepted: Accepted) -> str:
    """What a receipt says of an update that came late."""
    if not accepted.staleness:
        return ""
    releases = "release" if accepted.staleness == 1 else "releases"
    return f"{accepted.staleness} {releases} late, with weight {accepted.weight}"
