"""The server's conductor: messages and time in, commits and publications out.

Order within each step: check, commit, publish. What is published can be published again at any time, and is
after each reconnect; so a server that is killed anywhere goes on with the same round. The link, the clock
and the main loop are not handled here.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict

from protocol import records
from protocol import topics as topic_names
from protocol.artifacts import describe
from protocol.errors import ArtifactError, EncodingError, ProtocolError, SignatureError
from protocol.messages import (
    Announcement,
    ChunkRequest,
    DeviceState,
    Receipt,
    Report,
    ServerState,
    TrainingPolicy,
    peek,
    seal,
    unseal,
)
from protocol.package import Manifest, ModelPackage, unpack
from protocol.signing import PrivateKey, PublicKey
from server import round as rounds
from server.config import ServerConfig
from server.counting import Counting
from server.errors import ServerError
from server.intake import Accepted, OpenRound, Rejected, examine, open_update
from server.offers import Offers
from server.publications import release_message, round_message
from server.replay import examine_journal
from server.store import PackageRecord, ReleaseRecord, RoundRecord, Store

log = logging.getLogger(__name__)

Publish = Callable[[str, bytes, bool], bool]
"""(topic, payload, retain) -> handed to the broker."""


class Coordinator:
    """Runs one federation."""

    def __init__(
        self, config: ServerConfig, store: Store, key: PrivateKey, publish: Publish, now: Callable[[], float]
    ) -> None:
        """Go on from what the store holds.

        Args:
            config: the server's configuration.
            store: rounds, updates and releases so far.
            key: what everything is signed with.
            publish: hands a message to the broker.
            now: Unix seconds.
        """
        self._config = config
        self._store = store
        self._key = key
        self._publish = publish
        self._now = now
        self._topics = topic_names.Topics(config.federation)
        self._session = int(now() * 1000)
        self._package_record: PackageRecord | None = None
        self._package: ModelPackage | None = None
        self._announcement: Announcement | None = None
        self._offers = Offers()
        self._release: ReleaseRecord | None = None
        self._state: rounds.State = rounds.Waiting(1)
        self._counting: Counting | None = None
        self._load()

    @property
    def subscriptions(self) -> list[str]:
        """Topics that the server listens to."""
        return [self._topics.up("+", kind) for kind in topic_names.UP]

    def will(self) -> tuple[str, bytes]:
        """What the broker tells the devices when the server is gone."""
        topic = self._topics.server_state()
        return topic, seal(ServerState(online=False, session=self._session), self._key, topic)

    def connected(self) -> None:
        """Publish everything that a broker without memory would lack."""
        self._send(self._topics.server_state(), ServerState(online=True, session=self._session), retain=True)
        self._publish_package()
        self._publish_release()
        self._publish_round()

    def handle(self, topic: str, payload: bytes) -> None:
        """Take one message; what is wrong with it is noted and harms nothing else."""
        device = "?"
        try:
            device, kind = self._topics.parse_up(topic)
            if kind == "state":
                self._device_state(device, topic, payload)
                return
            key = self._store.device_key(device)
            if key is None:
                raise SignatureError("the device is not registered")
            if kind == "update":
                self._update(device, key, payload)
            elif kind == "get":
                self._chunks(device, unseal(ChunkRequest, payload, key, topic))
            else:
                self._store.add_report(device, unseal(Report, payload, key, topic), self._now())
        except ProtocolError as error:
            log.warning("refused a message from device=%s: %s", device, error)
            self._store.add_refusal(device, str(error), self._now())

    def tick(self) -> None:
        """Look for a new package, and let the round machine see the time."""
        self._look_for_package()
        if self._package is None:
            return
        ready, expected = (
            self._candidates() if self._counting is None else (frozenset[str](), frozenset[str]())
        )
        self._state, actions = rounds.tick(self._state, self._config.round, self._now(), ready, expected)
        self._perform(actions)

    # Messages

    def _device_state(self, device: str, topic: str, payload: bytes) -> None:
        if not payload:
            return  # somebody cleared the retained state
        key = self._store.device_key(device)
        if key is None:
            if self._config.enrolment != "open":
                raise SignatureError("the device is not registered")
            key = PublicKey(peek(DeviceState, payload).public_key)
            unseal(DeviceState, payload, key, topic)
            self._store.register_device(device, key, self._now())
            log.info("registered device=%s with the first key it presented", device)
        state = unseal(DeviceState, payload, key, topic)
        if self._release and state.release > self._release.number:
            log.warning(
                "device=%s holds release %d, newer than the newest here (%d): was an old backup restored?",
                device, state.release, self._release.number,
            )  # fmt: skip
        self._store.set_device_state(device, state, self._now())

    def _update(self, device: str, key: PublicKey, payload: bytes) -> None:
        update = open_update(payload, key, self._topics, device, self._config.maximum_update_bytes)
        sha256 = hashlib.sha256(payload).digest()
        if self._store.journalled_update(device, update.round) == sha256:
            self._receipt(device, Receipt(sha256, update.round, "duplicate"))
            return
        self._look_for_package()  # a push ends the open round at once
        if self._package is None:
            raise EncodingError("there is no package, so no round is open")
        decision = examine(
            update,
            device,
            self._counting.current if self._counting else None,
            federation=self._config.federation,
            manifest=self._package.manifest,
            policy=self._counting.policy if self._counting else self._config.training,
        )
        if isinstance(decision, Accepted) and self._counting and not self._counting.has_room(decision):
            decision = Rejected("refused", "the round has all the weight that it can sum")
        if isinstance(decision, Rejected):
            log.warning("device=%s round=%d %s: %s", device, update.round, decision.verdict, decision.reason)
            if decision.verdict == "refused":
                self._store.add_refusal(device, decision.reason, self._now())
            self._receipt(device, Receipt(sha256, update.round, decision.verdict, decision.reason))
            return
        kept = self._store.journal_update(device, update.round, sha256, payload, key=key, now=self._now())
        if kept != sha256:
            reason = f"another update of this round is counted: {kept.hex()[:16]}"
            self._receipt(device, Receipt(sha256, update.round, "refused", reason))
            return
        self._receipt(device, Receipt(sha256, update.round, "counted"))
        self._count(device, decision)

    def _count(self, device: str, accepted: Accepted) -> None:
        if self._counting is None or not isinstance(self._state, rounds.Open):
            raise ServerError("an update was accepted while no round is open")
        self._counting.add(accepted)
        log.info("counted device=%s round=%d weight=%d", device, self._state.number, accepted.weight)
        self._state, actions = rounds.count(self._state, self._config.round, self._now(), device)
        self._perform(actions)

    def _chunks(self, device: str, request: ChunkRequest) -> None:
        try:
            for chunk in self._offers.chunks(request):
                self._send(self._topics.down(device, "chunk"), chunk)
        except ArtifactError:
            log.exception("the announced package cannot be read; push it again")
            raise

    # Rounds and releases

    def _look_for_package(self) -> None:
        newest = self._store.newest_package()
        if newest and (self._package_record is None or newest.version > self._package_record.version):
            self._load()
            self._publish_package()
            self._publish_release()

    def _candidates(self) -> tuple[frozenset[str], frozenset[str]]:
        """(devices that could take part now, others worth waiting for)."""
        ready, expected = set(), set()
        for device in self._store.devices():
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
                self._open_round(action)
            elif isinstance(action, rounds.ExtendRound):
                log.warning("round=%d has no quorum at its deadline; it goes on", action.number)
                self._store.extend_round(action.number, action.deadline)
                self._publish_round()
            else:
                self._close_round(action.number)

    def _open_round(self, action: rounds.OpenRound) -> None:
        if self._package is None or self._package_record is None:
            raise ServerError("a round cannot open without a package")
        self._store.open_round(
            RoundRecord(
                action.number,
                self._package_record.version,
                self._newest().number,
                action.cohort,
                self._now(),
                action.deadline,
                training=asdict(self._config.training),
                release_step_ratio=self._config.release_step_ratio,
            )
        )
        self._start_counting(
            action.number,
            frozenset(action.cohort),
            self._config.training,
            self._config.release_step_ratio,
        )
        log.info("opened round=%d with %d devices", action.number, len(action.cohort))
        self._publish_round()

    def _start_counting(
        self, number: int, cohort: frozenset[str], policy: TrainingPolicy, release_step_ratio: float
    ) -> Counting:
        if self._package is None:
            raise ServerError("a round cannot open without a package")
        current = OpenRound(number, self._newest().sha256, cohort)
        self._counting = Counting(current, self._package.manifest, policy, release_step_ratio)
        return self._counting

    def _close_round(self, number: int) -> None:
        if self._counting is None:
            raise ServerError(f"round {number} closes without having been open")
        base = self._newest()
        release = self._counting.release(base, self._store.reports(base.number).values(), self._now())
        if not self._store.close_round(number, release, self._now()):
            self._look_for_package()
            return
        self._release, self._counting = release, None
        log.info(
            "closed round=%d release=%d updates=%d sha256=%s",
            number, release.number, release.updates, release.sha256.hex()[:16],
        )  # fmt: skip
        if isinstance(self._state, rounds.Waiting) and self._state.rounds_done == self._config.round.rounds:
            log.info("all %d rounds of this package are done", self._state.rounds_done)
        self._publish_release()

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
            self._package_record.version, self._package_record.name, describe(data), self._config.training
        )
        self._offers.offer_package(
            self._announcement.package, self._store.package_path(self._package_record.sha256)
        )
        self._release = self._store.newest_release()
        self._counting = None
        done = self._store.rounds_done(self._package_record.version)
        self._state = rounds.Waiting(self._store.next_round_number(), done)
        record = self._store.open_round_record()
        if record is not None:
            self._resume(record, done, self._package.manifest)

    def _resume(self, record: RoundRecord, done: int, manifest: Manifest) -> None:
        cohort = frozenset(record.cohort)
        # The policy under which the round was opened: a changed configuration holds from the next one on.
        policy = records.from_named(TrainingPolicy, record.training)
        counting = self._start_counting(record.number, cohort, policy, record.release_step_ratio)
        counted = set()
        journal = self._store.journalled_updates(record.number)
        for device, decision in examine_journal(journal, counting, self._config.federation, manifest):
            if isinstance(decision, Accepted):
                counting.add(decision)
                counted.add(device)
            else:
                log.error("the journalled update of device=%s is not counted: %s", device, decision.reason)
        self._state = rounds.Open(record.number, cohort, frozenset(counted), record.deadline, done)
        log.info("resumed round=%d with %d of %d updates", record.number, len(counted), len(cohort))

    # Publications

    def _publish_package(self) -> None:
        if self._announcement:
            self._send(self._topics.all("announcement"), self._announcement, retain=True)

    def _publish_release(self) -> None:
        if self._release and self._package:
            message = release_message(self._release, self._package.sha256, self._offers)
            self._send(self._topics.all("release"), message, retain=True)

    def _publish_round(self) -> None:
        if isinstance(self._state, rounds.Open) and self._package and self._counting:
            message = round_message(self._counting.current, self._package.sha256, self._state.deadline)
            self._send(self._topics.all("round"), message, retain=True)

    def _receipt(self, device: str, receipt: Receipt) -> None:
        self._send(self._topics.down(device, "receipt"), receipt)

    def _send(self, topic: str, message: object, *, retain: bool = False) -> None:
        if not self._publish(topic, seal(message, self._key, topic), retain):
            log.debug("not connected: %s is sent again later", topic)
