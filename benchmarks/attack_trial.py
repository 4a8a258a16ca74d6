"""A device in this process that is given a root of trust, and whoever owns keys and broker speaking to it.

The agent, its store, its training and its packages are real; messages are handed to it as a hostile broker
would. `Trial.honest_*` is the control: what the true server says has to be followed.
"""

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
from benchmarks.attack_voices import DEVICE, FEDERATION, Voices
from protocol.artifacts import describe
from protocol.messages import (
    Chunk,
    ChunkRequest,
    peek,
)
from protocol.package import Manifest

MAX_TICKS = 2000


class Trial(Voices):
    """One device and all the keys of its federation; `close` ends it."""

    def __init__(self, directory: Path, spool: Path, package: bytes) -> None:
        """Give a device its root, and have it follow release 1 of package 1.

        Args:
            directory: for its state.
            spool: recordings of the device.
            package: that fits them; it is signed anew, by the trial's publisher.
        """
        super().__init__(directory, package)
        self.sent: list[tuple[str, bytes]] = []
        self._directory, self._spool = directory, spool
        self._log = _Log()
        logger = logging.getLogger("agent")
        self._level = logger.level
        logger.addHandler(self._log)
        logger.setLevel(logging.WARNING)
        self._open()
        self.honest_trust()
        self.honest_package(self.package)
        self.honest_release()

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
        data = self.offers.get(request.artifact)
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
