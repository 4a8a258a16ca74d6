"""A federation inside one process: the real coordinator and real agents around a fake broker and clock.

For tests of the state machines: thousands of messages a second, any disturbance at any moment, and the same
run for the same seed. What is fake is only the edge; stores, keys, recordings and packages are real.

Programs die by `kill` between two steps, or by `kill_at` before or after any message they take or publish.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agent.config import KEY_FILE, STORE_FILE, AgentConfig, LimitsConfig, SourceConfig
from agent.device import DeviceAgent, MakeEngine, configured_engine
from agent.identity import Identity
from agent.keyring import Keyring
from agent.resources import Resources
from agent.store import Store as AgentStore
from protocol.charter import TrainingPolicy
from protocol.package import unpack
from protocol.sealing import SealingKey
from protocol.signing import PrivateKey
from runtime.keys import write_secret
from server.config import ServerConfig
from server.coordinator import Coordinator
from server.evaluation import first_default
from server.keys import ServerKeys
from server.round import RoundPolicy
from server.store import Store as ServerStore
from simulation.errors import SimulationError
from simulation.fake_broker import Disturbance, FakeBroker, FakeClock

SERVER = "$server"
"""Name of the server among the programs; no device can have it."""
FEDERATION = "simulation"


class _Killed(BaseException):
    """Ends a program where it stands; no `except Exception` may hold it."""


class InProcessFederation:
    """A server and its devices, moved on by `step`; everything starts with it."""

    def __init__(
        self,
        directory: Path,
        package: bytes,
        spools: Mapping[str, Path],
        round_policy: RoundPolicy,
        *,
        training: TrainingPolicy | None = None,
        server: Mapping[str, Any] | None = None,
        make_engine: MakeEngine = configured_engine,
        disturbance: Disturbance | None = None,
        seed: int = 0,
        training_seed: int = 0,
    ) -> None:
        """Register all devices, push the package, and start every program.

        Args:
            directory: for all stores; what is in it is gone on with.
            package: the model package.
            spools: folder of recordings of each device.
            round_policy: when rounds open and close.
            training: how devices train.
            server: more fields of the server's configuration, by name.
            make_engine: opens an installed package.
            disturbance: what goes wrong from the start on.
            seed: of what goes wrong.
            training_seed: of the order of training windows on the devices.
        """
        self.clock = FakeClock()
        self.broker = FakeBroker(self.clock, disturbance or Disturbance(), seed)
        self.server_store: ServerStore | None = None
        self.agent_stores: dict[str, AgentStore] = {}
        self.moments: dict[str, int] = {}
        """Messages that each program took, and twice those that it published: where it can be killed."""
        self.clock_errors: dict[str, float] = {}
        """Seconds that a device's own clock is ahead; it may change at any time."""
        self.traffic: dict[str, tuple[int, int]] = {}
        """Bytes (up, down) of topics and payloads of each program, over all its lives."""
        self.directory = directory
        self._spools = spools
        self._policy = round_policy
        self._training = training or TrainingPolicy()
        self._server = dict(server or {})
        self._training_seed = training_seed
        self._make_engine = make_engine
        self._programs: dict[str, Coordinator | DeviceAgent] = {}
        self._linked: set[str] = set()
        """Programs that believe that they are connected."""
        self._fatal: dict[str, int] = {}
        self._set_up(package)
        for name in (SERVER, *spools):
            self.start(name)

    @property
    def finished(self) -> bool:
        """Whether all rounds are released, and every device holds the last release and owes nothing."""
        newest = self.server_store.newest_release() if self.server_store else None
        return (
            newest is not None
            and self.agent_stores.keys() == self._spools.keys()
            and newest.number >= self._policy.rounds
            and all(s.state().release == newest.number and not s.outbox() for s in self.agent_stores.values())
        )

    @property
    def release_sha256(self) -> str:
        """Name of the newest release.

        Raises:
            SimulationError: the server is not running, or has none.
        """
        newest = self.server_store.newest_release() if self.server_store else None
        if newest is None:
            raise SimulationError("the server is not running, or has no release")
        return newest.sha256.hex()

    def running(self, name: str) -> bool:
        """Whether a program is alive."""
        return name in self._programs

    def start(self, name: str) -> None:
        """Start a program on what its store holds; it connects in the next step."""
        folder = self.directory / name
        if name == SERVER:
            self.server_store = ServerStore(folder)
            config = self._server_config()
            self._programs[name] = Coordinator(
                config, self.server_store, server_keys(), self._publisher(name), self.clock
            )
            return
        self.agent_stores[name] = AgentStore(folder / STORE_FILE)

        def now() -> float:
            return self.clock() + self.clock_errors.get(name, 0.0)

        self._programs[name] = DeviceAgent(
            AgentConfig(
                name,
                FEDERATION,
                key_of(SERVER).public.raw.hex(),
                SourceConfig(str(self._spools[name])),
                str(folder),
                seed=self._training_seed,
            ),
            self.agent_stores[name],
            self._publisher(name),
            now,
            identity=_identity(folder, name),
            keyring=Keyring(
                self.agent_stores[name], FEDERATION, now, server_key=key_of(SERVER).public.raw.hex()
            ),
            traffic=lambda: self.traffic.get(name, (0, 0)),
            make_engine=self._make_engine,
            # Whole trainings at once: how fast the machine is must not decide the order of messages.
            listen_again=lambda: self.broker.listen_again(name),
            resources=Resources(LimitsConfig(), now, slice_seconds=math.inf, system=self.directory),
        )

    def kill(self, name: str) -> None:
        """Drop a program as kill -9 does: nothing but its folder is left, and its will is published."""
        if self._programs.pop(name, None) is None:
            return
        self._linked.discard(name)
        if name == SERVER and self.server_store:
            self.server_store.close()
            self.server_store = None
        else:
            self.agent_stores.pop(name).close()
        self.broker.disconnect(name)

    def kill_at(self, name: str, moment: int) -> None:
        """Kill a program when its count in `moments` gets there."""
        self._fatal[name] = moment

    def step(self, seconds: float = 1.0) -> None:
        """Let time pass, links come back, messages arrive, and every program see the time."""
        self.clock.advance(seconds)
        for name, program in list(self._programs.items()):
            if name in self._linked and not self.broker.connected(name):
                self._linked.discard(name)
                self._perform(name, program.disconnected)
            if self.broker.running and not self.broker.connected(name):
                self.broker.connect(name, program.subscriptions, program.will())
                self._linked.add(name)
                self._perform(name, program.connected)
        self._deliver()
        for name, program in list(self._programs.items()):
            self._perform(name, program.tick)
        self._deliver()

    def run(self, steps: int = 5_000, *, seconds: float = 1.0) -> str:
        """Step until `finished`; returns the last release's SHA-256.

        Raises:
            SimulationError: it does not get there.
        """
        for _ in range(steps):
            if self.finished:
                return self.release_sha256
            self.step(seconds)
        raise SimulationError(f"the federation is not through after {steps} steps of {seconds} s")

    def close(self) -> None:
        """Close all stores."""
        for name in list(self._programs):
            self.kill(name)

    def __enter__(self) -> "InProcessFederation":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_up(self, data: bytes) -> None:
        for name in (SERVER, *self._spools):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        store = ServerStore(self.directory / SERVER)
        for name in self._spools:
            store.register_device(name, key_of(name).public, self.clock())
        package = unpack(data, None)
        if store.newest_package() is None:
            name, sha256 = package.manifest.name, hashlib.sha256(data).digest()
            default = first_default(package.manifest.tasks)
            store.add_package(data, sha256, name, package.adapter, self.clock(), default=default)
        store.close()

    def _server_config(self) -> ServerConfig:
        return ServerConfig(
            FEDERATION,
            str(self.directory / SERVER),
            round=self._policy,
            **{"training": self._training, **self._server},
        )

    def _deliver(self) -> None:
        while found := self.broker.next():
            name, delivery = found
            program = self._programs[name]

            def take() -> None:
                self._moment(name)  # noqa: B023 - called at once
                self._note_traffic(name, down=len(delivery.topic) + len(delivery.payload))  # noqa: B023
                program.handle(delivery.topic, delivery.payload)  # noqa: B023

            if self._perform(name, take):
                self.broker.acknowledge(name, delivery)

    def _perform(self, name: str, action: Callable[[], object]) -> bool:
        """Let a program act, unless it is killed before or on the way."""
        if name not in self._programs:
            return False
        try:
            action()
        except _Killed:
            self.kill(name)
            return False
        return True

    def _publisher(self, name: str) -> Callable[[str, bytes, bool], bool]:
        def publish(topic: str, payload: bytes, retain: bool) -> bool:
            self._moment(name)
            taken = self.broker.publish(name, topic, payload, retain=retain)
            if taken:
                self._note_traffic(name, up=len(topic) + len(payload))
            self._moment(name)
            return taken

        return publish

    def _note_traffic(self, name: str, up: int = 0, down: int = 0) -> None:
        before_up, before_down = self.traffic.get(name, (0, 0))
        self.traffic[name] = before_up + up, before_down + down

    def _moment(self, name: str) -> None:
        self.moments[name] = self.moments.get(name, 0) + 1
        if self.moments[name] == self._fatal.get(name):
            raise _Killed


def key_of(name: str) -> PrivateKey:
    """The signing key of a program: of its name, so that every run signs the same bytes."""
    return PrivateKey(hashlib.sha256(name.encode()).digest())


def server_keys() -> ServerKeys:
    """The server's keys, the same in every run."""
    return ServerKeys(key_of(SERVER), (SealingKey(hashlib.sha256(b"sealing").digest()),))


def _identity(folder: Path, name: str) -> Identity:
    """A device's identity with the key that every run gives it."""
    path = folder / KEY_FILE
    if not path.exists():
        write_secret(path, key_of(name).raw)
    return Identity(folder, name)
