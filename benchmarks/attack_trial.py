"""A device in this process that is given a root of trust, and whoever owns keys and broker speaking to it.

The agent, its store, its training and its packages are real; messages are handed to it as a hostile broker
would. `Trial.honest_*` is the control: what the true server says has to be followed.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.config import STORE_FILE, AgentConfig, LimitsConfig, SourceConfig
from agent.device import DeviceAgent
from agent.identity import Identity
from agent.keyring import Keyring
from agent.resources import Resources
from agent.store import Store
from benchmarks.attack_book import NOTHING, Finding, Trace
from benchmarks.attack_client import AttackError
from protocol.artifacts import describe
from protocol.charter import TrainingPolicy
from protocol.identity import CertificateResponse, Trust
from protocol.messages import (
    Announcement,
    Chunk,
    ChunkRequest,
    Receipt,
    Release,
    Round,
    peek,
    sign_message,
)
from protocol.package import Manifest, pack, unpack
from protocol.release_coding import adapter_sha256
from protocol.sealing import SealingKey
from protocol.signing import PrivateKey
from protocol.topics import Topics
from server.authority import Authority
from server.root_ceremony import add_signature, draft
from simulation.fake_broker import FakeClock

DEVICE, FEDERATION = "pump-1", "plant"
DAY = 86_400.0
START = 1_800_000_000.0
VALIDITY = 90 * DAY
MAX_TICKS = 2000


class Trial:
    """One device and all the keys of its federation; `close` ends it."""

    def __init__(self, directory: Path, spool: Path, package: bytes) -> None:
        """Give a device its root, and have it follow release 1 of package 1.

        Args:
            directory: for its state.
            spool: recordings of the device.
            package: that fits them; it is signed anew, by the trial's publisher.
        """
        self.clock = FakeClock(START)
        self.topics = Topics(FEDERATION)
        self.server, self.publisher = PrivateKey.generate(), PrivateKey.generate()
        self.holders = [PrivateKey.generate() for _ in range(3)]
        self.sealing = SealingKey.generate()
        self.roots = [self.root(1)]
        unpacked = unpack(package, None)
        self.members, self.manifest = unpacked.members, replace(unpacked.manifest, version=1)
        self.package = self.packed()
        self.base = adapter_sha256(unpacked.adapter)
        self.version, self.release, self.round = 0, 0, 0
        self.sent: list[tuple[str, bytes]] = []
        self._offer: dict[bytes, bytes] = {}
        self._directory, self._spool = directory, spool
        self._authority = Authority.create(directory / "ca", FEDERATION, START)
        self._log = _Log()
        logger = logging.getLogger("agent")
        self._level = logger.level
        logger.addHandler(self._log)
        logger.setLevel(logging.WARNING)
        self._open()
        self.honest_trust()
        self.honest_package(self.package)
        self.honest_release()

    # What the parties say

    def root(
        self,
        version: int,
        *,
        server: PrivateKey | None = None,
        signers: Iterable[PrivateKey] | None = None,
        federation: str = FEDERATION,
        holders: list[PrivateKey] | None = None,
        days: float = 365.0,
    ) -> bytes:
        """A version of the root; two of three holders have to sign."""
        holders = holders or self.holders
        data = draft(
            federation,
            version,
            root_keys=[key.public for key in holders],
            threshold=2,
            server_keys=[(server or self.server).public],
            publishers=[self.publisher.public],
            expires=self.clock() + days * DAY,
        )
        for key in holders[:2] if signers is None else signers:
            data = add_signature(data, key)
        return data

    def packed(self, key: PrivateKey | None = None, **changes: Any) -> bytes:
        """A package, of the publisher's by default."""
        return pack(replace(self.manifest, **changes), self.members, key or self.publisher)

    def said(self, topic: str, message: object, key: PrivateKey | None = None) -> tuple[str, bytes]:
        """Topic and envelope of a message, by default the server's."""
        return topic, sign_message(message, key or self.server, topic)

    def trust(
        self, roots: list[bytes] | None = None, key: PrivateKey | None = None, **changes: Any
    ) -> tuple[str, bytes]:
        """A word on the keys."""
        issued = self.clock()
        message = Trust(
            tuple(self.roots if roots is None else roots), self.sealing.public.raw, issued, issued + VALIDITY
        )
        return self.said(self.topics.all("trust"), replace(message, **changes), key)

    def announcement(self, data: bytes, version: int, *, offer: bool = True, **changes: Any) -> Announcement:
        """An announcement of a package, whose chunks are on offer from then on."""
        artifact = describe(data)
        if offer:
            self._offer = {artifact.sha256: data}
        policy = replace(TrainingPolicy(), epochs=1)
        issued = self.clock()
        message = Announcement(version, "trial", artifact, policy, issued=issued, expires=issued + VALIDITY)
        return replace(message, **changes)

    def offer(self, sha256: bytes, data: bytes) -> None:
        """Answer requests for the chunks of an artifact with those of `data`."""
        self._offer = {sha256: data}

    def announced(self, message: Announcement, key: PrivateKey | None = None) -> tuple[str, bytes]:
        """As it travels."""
        return self.said(self.topics.all("announcement"), message, key)

    def released(self, number: int, key: PrivateKey | None = None, **changes: Any) -> tuple[str, bytes]:
        """A release with the package's initial adapter."""
        issued = self.clock()
        package = describe(self.package).sha256
        message = Release(number, package, b"", self.base, b"", issued=issued, expires=issued + VALIDITY)
        return self.said(self.topics.all("release"), replace(message, **changes), key)

    def opened(self, number: int, key: PrivateKey | None = None) -> tuple[str, bytes]:
        """A round that the device is to answer."""
        package = describe(self.package).sha256
        message = Round(number, package, self.base, (DEVICE,), self.clock() + 600)
        return self.said(self.topics.all("round"), message, key)

    def receipt(
        self, update: bytes, device: str = DEVICE, key: PrivateKey | None = None
    ) -> tuple[str, bytes]:
        """The word that an update is counted, as it is said to `device`."""
        return self.said(self.topics.down(device, "receipt"), Receipt(update, self.round, "counted"), key)

    def chunk(self, chunk: Chunk, device: str = DEVICE, key: PrivateKey | None = None) -> tuple[str, bytes]:
        """A chunk as it travels to `device`."""
        return self.said(self.topics.down(device, "chunk"), chunk, key)

    def certificate(self, identity: Identity, name: str) -> CertificateResponse:
        """The authority's answer to what a device asks for."""
        request = identity.signing_request()
        issued = self._authority.issue_device(request, name, self.clock(), days=60)
        return CertificateResponse("issued", hashlib.sha256(request).digest(), issued.certificate)

    # The device

    @property
    def state(self) -> Path:
        """Folder of the device."""
        return self._directory / "state"

    def snapshot(self) -> tuple[Any, ...]:
        """Everything that an attacker would change."""
        store, keyring = self.store, self.keyring
        sealing = keyring.sealing_key
        return (
            replace(store.state(), answered=0),
            store.state().answered,
            tuple(entry.sha256 for entry in store.outbox()),
            (store.policy(), store.sending(), store.schedule()),
            (keyring.server_keys, keyring.publishers, sealing.raw if sealing else b""),
            self._installed(),
            {path.name: path.read_bytes() for path in self.state.glob("*.pem")},
        )

    def installed(self) -> Manifest:
        """Description of the package that the device runs."""
        return self.agent._installation.manifest(self.store.state().package)  # noqa: SLF001 - to look at

    def hear(self, *messages: tuple[str, bytes]) -> None:
        """Hand messages to the device and let it work until it is idle."""
        for topic, payload in messages:
            self.agent.handle(topic, payload)
            self.settle()

    def settle(self) -> None:
        """Let it train, ask for chunks and get them.

        Raises:
            AttackError: it does not come to rest.
        """
        for _ in range(MAX_TICKS):
            wanted = self.agent.tick()
            asked, self.sent = self.sent, []
            for topic, payload in asked:
                if topic == self.topics.up(DEVICE, "get"):
                    self._answer(peek(ChunkRequest, payload))
            if wanted is None and not self.sent:
                return
        raise AttackError("the device does not come to rest")

    def restart(self) -> None:
        """Start the device anew, on what is on its disk."""
        self.store.close()
        self._open()

    def close(self) -> None:
        """End the device."""
        logging.getLogger("agent").removeHandler(self._log)
        logging.getLogger("agent").setLevel(self._level)
        self.store.close()

    # Controls and attacks

    def honest_trust(self) -> str:
        """The true server's word on its keys is taken."""
        self.clock.advance(1)
        self.hear(self.trust())
        return _expect(self.keyring.sealing_key == self.sealing.public, "the true server's keys are taken")

    def honest_package(self, data: bytes) -> str:
        """A package of the publisher's is installed."""
        self.version += 1
        self.hear(self.announced(self.announcement(data, self.version)))
        state = self.store.state()
        done = (state.version, state.package) == (self.version, describe(data).sha256)
        return _expect(done, "the publisher's package is installed")

    def honest_release(self) -> str:
        """The next release is adopted."""
        self.clock.advance(1)
        self.release += 1
        self.hear(self.released(self.release))
        return _expect(self.store.state().release == self.release, "the true server's release is adopted")

    def honest_round(self) -> bytes:
        """The next round is answered; SHA-256 of the update, which waits for its receipt."""
        self.round += 1
        self.hear(self.opened(self.round))
        outbox = self.store.outbox()
        _expect(bool(outbox) and outbox[-1].round == self.round, "the true server's round is answered")
        return outbox[-1].sha256

    def refuses(
        self, messages: Iterable[tuple[str, bytes]], control: Callable[[], str], detail: str = ""
    ) -> Finding:
        """Hand something to the device that it must not follow, then what it must.

        Args:
            messages: of the attacker.
            control: an honest deed that has to work afterwards; returns what it was.
            detail: for the table.
        """
        before = self.snapshot()
        self._log.lines.clear()
        self.hear(*messages)
        changed = self.snapshot() != before
        trace = self.trace()
        return Finding(changed, "" if changed else control(), trace, detail)

    def trace(self) -> Trace:
        """What the device wrote into its log about messages that it dropped."""
        found = [line for line in self._log.lines if "dropped" in line or "refused" in line]
        return Trace("device", DEVICE, found[0]) if found else NOTHING

    def forget_log(self) -> None:
        """Begin a new page of the device's log."""
        self._log.lines.clear()

    def _open(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        self.store = Store(self.state / STORE_FILE)
        self.keyring = Keyring(self.store, FEDERATION, self.clock, root=self.roots[0])
        limits = LimitsConfig()
        config = AgentConfig(
            DEVICE,
            FEDERATION,
            source=SourceConfig(str(self._spool)),
            state_directory=str(self.state),
            identity_directory=str(self.state),
            root="root.json",
        )
        self.identity = Identity(self.state, DEVICE)
        self.agent = DeviceAgent(
            config,
            self.store,
            self._publish,
            self.clock,
            identity=self.identity,
            keyring=self.keyring,
            resources=Resources(limits, self.clock, slice_seconds=math.inf, system=self._directory),
        )
        self.agent.connected()

    def _publish(self, topic: str, payload: bytes, _retain: bool) -> bool:
        self.sent.append((topic, payload))
        return True

    def _answer(self, request: ChunkRequest) -> None:
        data = self._offer.get(request.artifact)
        if data is None:
            return
        artifact = describe(data)
        for index in request.indices:
            start, stop = artifact.chunk_range(index)
            self.agent.handle(*self.chunk(Chunk(request.artifact, index, data[start:stop])))

    def _installed(self) -> tuple[str, ...]:
        folder = self.state / "packages"
        return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))


class _Log(logging.Handler):
    """What the device writes down."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _expect(holds: bool, control: str) -> str:
    """The control's text.

    Raises:
        AttackError: it failed.
    """
    if not holds:
        raise AttackError(f"an honest control failed: {control}")
    return control
