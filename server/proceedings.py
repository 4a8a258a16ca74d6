"""What the federation runs: its package, its round and its releases, from the store and back to it.

Rounds open and close by the state machine (round.py), updates are decided on (intake.py) and summed
(counting.py), releases are made, split into domains or withdrawn, and all of it is published. Messages of
devices are not read here.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from protocol.artifacts import describe
from protocol.errors import EncodingError
from protocol.messages import Announcement, Report, Update
from protocol.package import Manifest, ModelPackage, unpack
from server import guard, withdrawals
from server import round as rounds
from server.broadcast import Broadcast
from server.config import ServerConfig
from server.domains import placement
from server.errors import ServerError
from server.identities import ACTIVE
from server.intake import Accepted, Lateness, Rejected, RoundTerms, examine
from server.journal import sum_journal, terms_of
from server.metrics import Metrics
from server.offers import Offers
from server.store import PackageRecord, ReleaseRecord, RoundRecord, Store

if TYPE_CHECKING:
    from server.counting import Counting

log = logging.getLogger(__name__)


class Proceedings:
    """Packages, rounds and releases of one federation."""

    def __init__(
        self,
        config: ServerConfig,
        store: Store,
        broadcast: Broadcast,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        """Go on from what the store holds.

        Args:
            config: the server's configuration.
            store: packages, rounds, updates and releases so far.
            broadcast: says what is new.
            metrics: count rounds and releases.
            now: Unix seconds.
        """
        self._config = config
        self._store = store
        self._broadcast = broadcast
        self._metrics = metrics
        self._now = now
        self.offers = Offers()
        """What devices may pull."""
        self._package_record: PackageRecord | None = None
        self._package: ModelPackage | None = None
        self._announcement: Announcement | None = None
        self._release: ReleaseRecord | None = None
        self._state: rounds.State = rounds.Waiting(1)
        self._counting: Counting | None = None
        self._unjudged = True
        """Whether reports on the newest release came that the guard has not seen."""
        self._load()

    @property
    def newest_release(self) -> int:
        """Number of the release that the federation runs; -1: there is none."""
        return self._release.number if self._release else -1

    def tick(self, excused: frozenset[str], reachable_since: float | None) -> None:
        """Let the guard judge, and the round machine see the time.

        Args:
            excused: devices that no round waits for.
            reachable_since: when the server was last connected to the broker; None: it is not.
        """
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
            excused=excused,
            reachable_since=reachable_since,
        )
        self._perform(actions)

    def note_report(self, report: Report) -> None:
        """A device's report was kept."""
        self._unjudged |= report.release == self.newest_release

    def examine(self, device: str, update: Update) -> Accepted | Rejected:
        """Decide on an update whose signature was checked.

        Raises:
            EncodingError: there is no package.
        """
        if self._package is None or self._package_record is None:
            raise EncodingError("there is no package, so no round is open")
        counting = self._counting
        if update.round >= self.counts_in and counting is None:
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

    @property
    def counts_in(self) -> int:
        """The round that counts what comes now: the open one, or the next."""
        return self._state.number if isinstance(self._state, rounds.Open) else self._state.next_number

    def count(self, device: str, number: int, accepted: Accepted) -> None:
        """Count an update that is in the journal; the round may close by it."""
        late = accepted.staleness > 0
        log.info(
            "counted device=%s round=%d weight=%d%s",
            device, number, accepted.weight, f" in round={self.counts_in}" if late else "",
        )  # fmt: skip
        if self._counting is None:
            return  # the next round takes it from the journal
        self._counting.add(device, accepted)
        if not late and isinstance(self._state, rounds.Open):
            self._state, actions = rounds.count(self._state, self._config.round, self._now(), device)
            self._perform(actions)

    def look(self) -> None:
        """Notice what operators did: pushed a package, or went back to a release."""
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
        if not self._store.open_round(record):
            self._load()  # anew from what holds now
            self._publish_package()
            self._publish_release()
            return
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
            self.look()
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
        self.offers.offer_package(
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

    def publish_all(self, sealing_key: bytes) -> None:
        """Say everything that devices read, which keys hold in the first place."""
        self._broadcast.trust(self._store.roots(), sealing_key)
        self._publish_package()
        self._publish_release()
        self._publish_round()

    def _publish_package(self) -> None:
        if self._announcement:
            self._broadcast.package(self._announcement)

    def _publish_release(self) -> None:
        if self._release and self._package:
            self._broadcast.release(self._release, self._package.sha256, self.offers)

    def _publish_round(self) -> None:
        if isinstance(self._state, rounds.Open) and self._package and self._counting:
            self._broadcast.round(self._counting.terms, self._package.sha256, self._state.deadline)
