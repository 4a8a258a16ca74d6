"""The agent's conductor: messages and time in, commits and publications out.

It feeds the state machine (participant.py) and performs what that decides. Order within each step: check,
commit, publish; what was not received is published again, after each reconnect and from time to time. The
link, the clock and the main loop are not handled here.
"""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from agent import adoption, firmware, participant
from agent.config import AgentConfig
from agent.engine import Engine, Floats
from agent.engines import open_engine
from agent.errors import AgentError
from agent.features import FeatureCache
from agent.fetching import Fetching
from agent.identity import Identity
from agent.installation import Installation
from agent.keyring import Keyring
from agent.learner import Learned, Learner, Material, Trained
from agent.learning import Learning
from agent.listening import Listener
from agent.outbox import Outbox
from agent.reconstruction import Reconstruction
from agent.renewal import Renewal
from agent.reporting import Reporter
from agent.resources import Resources
from agent.scheduling import Scheduler, Trainings
from agent.sources import Source
from agent.store import Store
from agent.update import Contribution
from agent.versions import check_version, note_version
from agent.voice import Publish, Voice
from agent.work import Job, Work
from protocol.charter import TrainingPolicy
from protocol.domains import adapter_of
from protocol.errors import ProtocolError
from protocol.identity import CertificateResponse
from protocol.messages import Announcement, Chunk, Receipt, Release, Round
from protocol.package import ADAPTER, Manifest, read_adapter
from protocol.signing import PublicKey
from protocol.topics import Topics

log = logging.getLogger(__name__)

SOURCE_SECONDS = 10.0
"""How often the source is looked at for new recordings."""

MakeEngine = Callable[[Path, Manifest, AgentConfig], Engine]


def configured_engine(directory: Path, manifest: Manifest, config: AgentConfig) -> Engine:
    """The engine that the owner chose, or the first that the package and the device have."""
    return open_engine(directory, manifest, config.engine, threads=config.limits.threads)


class DeviceAgent:
    """One device in one federation."""

    def __init__(
        self,
        config: AgentConfig,
        store: Store,
        publish: Publish,
        now: Callable[[], float],
        *,
        identity: Identity,
        keyring: Keyring,
        make_engine: MakeEngine = configured_engine,
        traffic: Callable[[], tuple[int, int]] = lambda: (0, 0),
        resources: Resources | None = None,
        listen_again: Callable[[], None] = lambda: None,
    ) -> None:
        """Go on from what the store holds.

        Args:
            config: the agent's configuration.
            store: the device's memory.
            publish: (topic, payload, retain) -> handed to the broker.
            now: Unix seconds.
            identity: the device's keys and certificate.
            keyring: whom it believes.
            make_engine: opens an installed package.
            traffic: bytes (up, down) so far, for the report.
            resources: what training may take; by default what the configuration says.
            listen_again: makes the broker send what is retained once more.
        """
        self._config = config
        self._store = store
        self._now = now
        self._make_engine = make_engine
        self._topics = Topics(config.federation)
        self._keyring = keyring
        self._listen_again = listen_again
        self._listener = Listener(config.device, self._topics, keyring)
        self._source = Source(config.source, now)
        self._installation = Installation(
            Path(config.state_directory) / "packages",
            self._publishers,
            self._accept,
        )
        self._fetching = Fetching(self._installation)
        self._reconstruction = Reconstruction(store, Path(config.state_directory) / "keyframes")
        self._state = store.state()
        self._resources = resources or Resources(config.limits, now)
        self._work = Work(store, self._resources, now)
        self._learner: Learner | None = None
        self._scheduler = Scheduler(store)
        self._voice = Voice(config.device, self._topics, identity.key(), publish, keyring)
        self._renewal = Renewal(identity, self._voice, now)
        self._outbox = Outbox(store, self._voice, now=now, traffic=traffic, owner=config.sending)
        self._reporter = Reporter(
            store, self._voice, now=now, traffic=traffic, firmware=lambda: firmware.read(config.firmware)
        )
        self._held: Round | None = None
        """A round that is not answered while updates wait."""
        self._looked_at = -math.inf
        self._open_installed()

    @property
    def finished(self) -> bool:
        """Whether the device has to enrol again before it can go on; else it does until it is stopped."""
        return self._config.enrolment.port > 0 and self._renewal.ended

    @property
    def subscriptions(self) -> list[str]:
        """Topics that the device listens to."""
        return self._listener.subscriptions

    def will(self) -> tuple[str, bytes]:
        """What the broker tells the server when the device is gone."""
        return self._reporter.signed_state(self._state, self._outbox.waits, online=False)

    def connected(self) -> None:
        """Say what the device runs, and send again what has no receipt."""
        self._fetching.link_broke()
        self._reconstruction.link_broke()
        self._publish_state()
        self._publish_report()
        self._outbox.resend()

    def disconnected(self) -> None:
        """The broker is away: training goes on, and what is to be sent stays in the store."""

    def handle(self, topic: str, payload: bytes) -> None:
        """Take one message; what is not signed by the server is dropped."""
        try:
            if topic == self._listener.trust_topic:
                self._on_trust(payload)
            else:
                self._take_heard(topic, payload)
        except ProtocolError as error:
            log.warning("dropped a message on %s: %s", topic, error)
        except AgentError as error:  # e.g. a model that the engine refuses: the agent stays reachable
            log.error("could not follow a message on %s: %s", topic, error)

    def _take_heard(self, topic: str, payload: bytes) -> None:
        message = self._listener.hear(topic, payload)
        if isinstance(message, Announcement):
            self._on_announcement(message)
        elif isinstance(message, Release):
            self._on_release(message)
        elif isinstance(message, Round):
            self._on_round(message)
        elif isinstance(message, Receipt):
            self._on_receipt(message)
        elif isinstance(message, Chunk):
            self._on_chunk(message)
        elif isinstance(message, CertificateResponse):
            self._renewal.receive(message)

    def tick(self) -> float | None:
        """Ask for missing chunks, look for new recordings, send again what has no receipt, and train.

        Returns:
            Seconds until training wants to go on; None when there is nothing to train.
        """
        now = self._now()
        self._request_chunks()
        self._outbox.tick()
        self._renewal.tick()
        if self._learner and not 0 <= now - self._looked_at < SOURCE_SECONDS:  # clocks go back, too
            self._looked_at = now
            self._look()
            self._look_at_link()
        if self._reporter.due():
            self._publish_state()
            self._publish_report()
        return self._work.go_on()

    # Messages

    def _on_trust(self, payload: bytes) -> None:
        known = self._keyring.server_keys
        if not self._listener.hear_trust(payload):
            return
        if self._keyring.server_keys != known:
            log.warning("the server signs with another key from now on; the federation's root says so")
            self._listen_again()  # what it signed with that key was dropped so far
        self._publish_report()
        self._outbox.resend()

    def _on_announcement(self, announcement: Announcement) -> None:
        if self._learner and announcement.version == self._state.version:
            self._keep_charter(announcement)
        self._step(participant.on_announcement(self._state, announcement))

    def _on_release(self, release: Release) -> None:
        self._step(participant.on_release(self._state, release))

    def _on_round(self, current: Round) -> None:
        self._step(participant.on_round(self._state, self._config.device, current))

    def _on_receipt(self, receipt: Receipt) -> None:
        self._step(participant.on_receipt(self._state, receipt))

    def _on_chunk(self, chunk: Chunk) -> None:
        self._fetching.receive(chunk)
        self._install()
        complete = self._reconstruction.receive(chunk)
        if complete:
            self._on_release(complete)
        self._request_chunks()

    # Actions of the state machine

    def _step(self, step: participant.Step) -> None:
        self._state, actions = step
        for action in actions:
            if isinstance(action, participant.FetchPackage):
                self._fetch(action.announcement)
            elif isinstance(action, participant.AdoptRelease):
                self._take(action.release)
            elif isinstance(action, participant.AnswerRound):
                self._answer(action.round)
            elif isinstance(action, participant.KeepPackage):
                self._keep_charter(action.announcement)
            else:
                self._outbox.clear(action.receipt)

    def _keep_charter(self, announcement: Announcement) -> None:
        learner = self._require_learner()
        told = (announcement.training, announcement.sending, announcement.schedule)
        kept = (learner.policy, self._store.sending(), self._store.schedule())
        if (self._store.state().version, *kept) != (announcement.version, *told):
            training, sending, schedule = told
            self._store.set_charter(announcement.version, training, sending, schedule=schedule)
            learner.policy = announcement.training
            self._look_at_link()

    def _fetch(self, announcement: Announcement) -> None:
        self._fetching.begin(announcement)
        self._install()
        self._request_chunks()

    def _install(self) -> None:
        """Put a package that is complete to use."""
        fetched = self._fetching.finish()
        if fetched is None:
            return
        announcement, manifest = fetched
        sha256 = announcement.package.sha256
        initial = read_adapter((self._installation.path(sha256) / ADAPTER).read_bytes(), manifest.parameters)
        note_version(self._store, manifest)  # before: what was installed must never be unknown
        self._store.install(
            announcement.version, sha256, initial, announcement.training, announcement.sending,
            schedule=announcement.schedule,
        )  # fmt: skip
        self._installation.keep_only(sha256)
        log.info("installed package %s", announcement.name)
        self._open_package(announcement.training)
        self._step(participant.on_installed(self._state, announcement.version, sha256))
        self._look()

    def _publishers(self) -> list[PublicKey]:
        """Who may sign packages: whom the owner named, else whom the root names."""
        return [PublicKey.from_hex(k) for k in self._config.publishers] or list(self._keyring.publishers)

    def _accept(self, manifest: Manifest) -> None:
        """Refuse a package that the device cannot work with, or that is too old."""
        self._source.accept(manifest)
        announcement = self._fetching.announcement
        if announcement:
            signers = self._publishers() or self._keyring.server_keys
            check_version(self._store, manifest, announcement, signers, self._keyring.now)

    def _open_installed(self) -> None:
        """Go on with the package of the life before, if no power cut or bad card damaged it."""
        package = self._state.package
        damage = self._installation.damage(package) if package else ""
        if damage:
            log.error("the installed package is damaged, and is fetched anew: %s", damage)
            self._store.forget_package()
            self._state = self._store.state()
        elif package:
            self._open_package(self._store.policy())

    def _open_package(self, policy: TrainingPolicy) -> None:
        self._work.drop()
        package = self._store.state().package
        manifest, directory = self._installation.manifest(package), self._installation.path(package)
        cache = FeatureCache(
            Path(self._config.state_directory) / "features",
            manifest,
            limit_bytes=self._config.limits.feature_cache_bytes,
            replay_windows=self._config.limits.replay_windows,
            mapping=self._source.mapping,
        )
        self._learner = Learner(
            self._make_engine(directory, manifest, self._config),
            manifest,
            self._source,
            cache,
            policy=policy,
            maximum_windows=lambda: self._resources.most_windows(manifest.feature_size),
            seed=f"{self._config.seed} {self._config.device} ".encode(),
        )

    def _take(self, release: Release) -> None:
        """Adopt a release once its adapters are here; its keyframe may have to be pulled first."""
        stack = self._reconstruction.adapter(release, self._require_learner().manifest)
        if stack is None:
            self._request_chunks()
        else:
            self._adopt(release, stack)

    def _adopt(self, release: Release, stack: Floats) -> None:
        learner = self._require_learner()
        if release.withdraws >= 0:
            log.warning("release=%d withdraws release=%d", release.number, release.withdraws)
        local, initial = self._store.adapter("local"), self._store.adapter("initial")
        local_full = self._store.adapter("local_full")
        if local is None or local_full is None or initial is None:
            raise AgentError("the store lost its adapters; remove the state directory")
        same = self._store.number("domains", 1) == release.domains
        held = self._store.number("domain", 0) if same else None
        found: list[tuple[Material, int, Floats, Trainings]] = []

        def begin() -> Learning:
            material = learner.material()
            domain = learner.domain(stack, material, held)
            adapter = adapter_of(stack, learner.manifest.parameters, domain)
            starts = {
                "local": local, "personal": adapter, "local_full": local_full, "personal_full": adapter
            }  # fmt: skip
            trainings = self._scheduler.begin(learner, release.number, starts, material)
            found.append((material, domain, adapter, trainings))
            return trainings.learning

        def finish(learned: Mapping[str, Floats]) -> None:
            material, domain, adapter, trainings = found[0]
            schedule = self._scheduler.conclude(learner, release, adapter, trainings, material)

            def conclude(more: Mapping[str, Floats]) -> None:
                together = {**learned, **more}
                concluded = learner.conclude(together, material, adapter, initial, release.default)
                self._adopted(release, domain, material, concluded, schedule)

            catch_up = self._scheduler.catch_up(learner, release.number, learned, material, schedule)
            if catch_up is None:
                conclude({})
            else:
                self._work.take(Job(f"alone after release {release.number}", catch_up, conclude))

        self._work.take(Job(f"release {release.number}", begin, finish))
        self._work.go_on()

    def _comparison(self, adapter: Floats, material: Material) -> dict[str, str]:
        """How a release does beside the one that is held, for the server's guard."""
        before = self._store.adapter("global") if self._state.base else None
        if before is None:
            return {"release_gain": "0.0", "compared_with": "-1"}
        gain = self._require_learner().release_gain(before, adapter, material)
        return {"release_gain": repr(gain), "compared_with": str(self._state.release)}

    def _adopted(
        self,
        release: Release,
        domain: int,
        material: Material,
        learned: Learned,
        schedule: Mapping[str, str],
    ) -> None:
        choice = learned.verdict.decision.choice
        facts = {
            **self._comparison(learned.adapters["global"], material),
            **adoption.facts(release, domain, material, learned),
            **schedule,
        }
        adapters, learner = dict(learned.adapters), self._require_learner()
        # What was learned from a release that is withdrawn mostly undoes it; the server does that itself.
        restored = release.restores if release.restores >= 0 else release.withdraws - 1
        undone = release.withdraws >= 0 and restored < self._state.release <= release.withdraws
        withheld = None if undone else self._outbox.withheld()
        if withheld is not None:
            adapters["withheld"] = learner.carried_over(withheld)
        self._store.adopt(release.number, release.adapter_sha256, adapters, choice, facts)
        log.info(
            "release=%d windows=%d held_out=%d domain=%d uses=%s gain=%.3f",
            release.number, learned.personal.windows, len(material.holdout), domain,
            choice, learned.verdict.decision.gain,
        )  # fmt: skip
        self._outbox.look()
        self._step(participant.on_adopted(self._state, release))
        self._publish_report()
        self._reporter.labelled = learned.personal.windows
        self._publish_state()

    def _answer(self, current: Round) -> None:
        """Answer with what was trained from the release; trained anew when labels came or went since."""
        name = f"round {current.number}"
        if self._outbox.waits:
            self._held = current
        if self._outbox.waits or self._work.holds(name):
            return
        learner = self._require_learner()
        base, personal = self._store.adapter("global"), self._store.adapter("personal")
        if base is None or personal is None:
            raise AgentError("the store lost its adapters; remove the state directory")
        material = learner.material()
        if material.fingerprint == self._store.text("fingerprint") or not self._work.idle:
            self._send_update(
                current,
                Trained(
                    personal,
                    self._store.number("windows", 0),
                    float(self._store.text("loss_before")),
                    float(self._store.text("loss_after")),
                ),
            )
            return

        def begin() -> Learning:
            return self._scheduler.begin(learner, self._state.release, {"personal": base}, material).learning

        def finish(learned: Mapping[str, Floats]) -> None:
            self._send_update(current, learner.assess(learned["personal"], material, base))

        self._work.take(Job(name, begin, finish))
        self._work.go_on()

    def _send_update(self, current: Round, trained: Trained) -> None:
        learner = self._require_learner()
        if not trained.windows:
            log.warning("round=%d is not answered: no labelled windows to train on", current.number)
            return
        difference = self._outbox.difference(trained.adapter)
        if difference is None:
            raise AgentError("the store lost its adapters; remove the state directory")
        contribution = Contribution(
            difference,
            trained.windows,
            trained.loss_before,
            trained.loss_after,
            self._store.number("domain", 0),
        )
        self._outbox.send(current, contribution, learner.manifest, learner.policy)
        self._step(participant.on_answered(self._state, current.number))

    # Publications

    def _publish_state(self) -> None:
        self._reporter.state(self._state, self._outbox.waits)

    def _publish_report(self) -> None:
        if self._learner and self._state.base:
            self._reporter.report(self._learner.problems())

    def _request_chunks(self) -> None:
        for request in (self._fetching.request(self._now()), self._reconstruction.request(self._now())):
            if request:
                self._voice.say("get", request)

    def _look(self) -> None:
        """Tell the server when the number of labelled windows changed: it decides who is ready."""
        learner = self._require_learner()
        if not learner.changed():
            return
        labelled = learner.material().windows
        if labelled != self._reporter.labelled:
            self._reporter.labelled = labelled
            self._scheduler.look(labelled)
            self._publish_state()

    def _look_at_link(self) -> None:
        """Tell the server when updates begin to wait, or may go again; then the round is answered, too."""
        if not self._outbox.look():
            return
        self._publish_state()
        held, self._held = self._held, None
        if held is not None and not self._outbox.waits:
            self._step(participant.on_round(self._state, None, held))

    def _require_learner(self) -> Learner:
        if self._learner is None:
            raise AgentError("no package is installed")
        return self._learner
