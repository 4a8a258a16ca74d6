"""A federation inside one process: the real coordinator and real agents around a fake broker and clock.

For tests of the state machines: thousands of messages a second, any disturbance at any moment, and the same
run for the same seed. What is fake is only the edge; stores, keys, recordings and packages are real.

The broker keeps what MQTT promises for QoS 1 and persistent sessions: retained messages, queues for clients
that are away, wills, and the order of a topic's retained messages. All else it may break as a test asks:

* a message is lost. The loss of a retained one breaks the link, as on TCP, for nobody repeats it without a
  new connection; any other one is lost silently, which is worse than MQTT: resends must repair it.
* a message comes more than once, late, and after later ones.
* the broker restarts, with or without its memory.

Programs die by `kill` between two steps, or by `kill_at` before or after any message they take or publish.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from paho.mqtt.client import topic_matches_sub

from agent.config import AgentConfig, SourceConfig
from agent.daemon import STORE_FILE
from agent.device import DeviceAgent, MakeEngine, onnxruntime_engine
from agent.store import Store as AgentStore
from protocol.messages import TrainingPolicy
from protocol.package import unpack
from protocol.signing import PrivateKey
from server.config import ServerConfig
from server.coordinator import Coordinator
from server.round import RoundPolicy
from server.store import Store as ServerStore
from simulation.errors import SimulationError

SERVER = "$server"
"""Name of the server among the programs; no device can have it."""
FEDERATION = "simulation"


class FakeClock:
    """Unix seconds that pass only when told to."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self._now = now

    def __call__(self) -> float:
        """Seconds now."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds


@dataclass(frozen=True)
class Disturbance:
    """What a broker and its network do wrong."""

    drop: float = 0.0
    """Share of messages that is lost on the way to the broker, and again on the way to each client."""
    duplicate: float = 0.0
    """Share that is delivered twice."""
    delay_seconds: float = 0.0
    """Longest delay; every message has its own, so they overtake one another."""


@dataclass(frozen=True)
class Delivery:
    """A message on its way to a client."""

    due: float
    sequence: int
    topic: str
    payload: bytes


@dataclass
class _Session:
    subscriptions: list[str]
    will: tuple[str, bytes]
    connected: bool = True
    queue: list[Delivery] = field(default_factory=list)


class FakeBroker:
    """An MQTT broker without network."""

    def __init__(self, clock: Callable[[], float], disturbance: Disturbance, seed: int) -> None:
        self.disturbance = disturbance
        self._clock = clock
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._retained: dict[str, bytes] = {}
        self._sessions: dict[str, _Session] = {}
        self._sequence = 0

    def connected(self, client: str) -> bool:
        """Whether a client's link is up."""
        return client in self._sessions and self._sessions[client].connected

    def connect(self, client: str, subscriptions: list[str], will: tuple[str, bytes]) -> None:
        """Take a client; its queue of before is delivered, then the retained messages."""
        session = self._sessions.setdefault(client, _Session(subscriptions, will))
        session.subscriptions, session.will, session.connected = subscriptions, will, True
        for topic, payload in list(self._retained.items()):
            self._deliver(client, session, topic, payload, retain=True)

    def disconnect(self, client: str) -> None:
        """Break a client's link: its will is published, its session stays."""
        session = self._sessions.get(client)
        if session and session.connected:
            session.connected = False
            self._route(*session.will, retain=True)

    def restart(self, *, forget: bool) -> None:
        """Stop and start again; all links break without a will.

        Args:
            forget: lose all retained messages, sessions and queues.
        """
        for session in self._sessions.values():
            session.connected = False
        if forget:
            self._retained.clear()
            self._sessions.clear()

    def publish(self, client: str, topic: str, payload: bytes, *, retain: bool) -> bool:
        """Take a message. False: the client's link is down."""
        if not self.connected(client):
            return False
        if not self._lost():
            self._route(topic, payload, retain=retain)
        elif retain:
            self.disconnect(client)
        return True

    def next(self) -> tuple[str, Delivery] | None:
        """The first message that is due for a connected client; it stays until it is acknowledged."""
        due = [
            (delivery, client)
            for client, session in self._sessions.items()
            for delivery in session.queue
            if session.connected and delivery.due <= self._clock()
        ]
        if not due:
            return None
        delivery, client = min(due, key=lambda entry: (entry[0].due, entry[0].sequence))
        return client, delivery

    def acknowledge(self, client: str, delivery: Delivery) -> None:
        """Forget a delivery; without this it comes again."""
        session = self._sessions.get(client)
        if session and delivery in session.queue:
            session.queue.remove(delivery)

    def _lost(self) -> bool:
        return bool(self._random.random() < self.disturbance.drop)

    def _route(self, topic: str, payload: bytes, *, retain: bool) -> None:
        if retain:
            self._retained[topic] = payload
        for client, session in list(self._sessions.items()):
            self._deliver(client, session, topic, payload, retain=retain)

    def _deliver(self, client: str, session: _Session, topic: str, payload: bytes, *, retain: bool) -> None:
        if not any(topic_matches_sub(pattern, topic) for pattern in session.subscriptions):
            return
        if self._lost():
            if retain:
                self.disconnect(client)  # it gets the message when it connects again
            return
        for _ in range(2 if self._random.random() < self.disturbance.duplicate else 1):
            due = self._clock() + self.disturbance.delay_seconds * float(self._random.random())
            if retain:
                due = max([due, *(other.due for other in session.queue if other.topic == topic)])
            self._sequence += 1
            session.queue.append(Delivery(due, self._sequence, topic, payload))


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
        make_engine: MakeEngine = onnxruntime_engine,
        disturbance: Disturbance | None = None,
        seed: int = 0,
    ) -> None:
        """Register all devices, push the package, and start every program.

        Args:
            directory: for all stores; what is in it is gone on with.
            package: the model package.
            spools: folder of recordings of each device.
            round_policy: when rounds open and close.
            training: how devices train.
            make_engine: opens an installed package.
            disturbance: what goes wrong from the start on.
            seed: of what goes wrong.
        """
        self.clock = FakeClock()
        self.broker = FakeBroker(self.clock, disturbance or Disturbance(), seed)
        self.server_store: ServerStore | None = None
        self.agent_stores: dict[str, AgentStore] = {}
        self.moments: dict[str, int] = {}
        """Messages that each program took, and twice those that it published: where it can be killed."""
        self._directory = directory
        self._spools = spools
        self._policy = round_policy
        self._training = training or TrainingPolicy()
        self._make_engine = make_engine
        self._programs: dict[str, Coordinator | DeviceAgent] = {}
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
        folder = self._directory / name
        if name == SERVER:
            self.server_store = ServerStore(folder)
            config = self._server_config()
            self._programs[name] = Coordinator(
                config, self.server_store, key_of(name), self._publisher(name), self.clock
            )
            return
        self.agent_stores[name] = AgentStore(folder / STORE_FILE)
        self._programs[name] = DeviceAgent(
            AgentConfig(
                name,
                FEDERATION,
                key_of(SERVER).public.raw.hex(),
                SourceConfig(str(self._spools[name])),
                str(folder),
            ),
            self.agent_stores[name],
            key_of(name),
            self._publisher(name),
            self.clock,
            make_engine=self._make_engine,
        )

    def kill(self, name: str) -> None:
        """Drop a program as kill -9 does: nothing but its folder is left, and its will is published."""
        if self._programs.pop(name, None) is None:
            return
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
            if not self.broker.connected(name):
                self.broker.connect(name, program.subscriptions, program.will())
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
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        store = ServerStore(self._directory / SERVER)
        for name in self._spools:
            store.register_device(name, key_of(name).public, self.clock())
        package = unpack(data, None)
        if store.newest_package() is None:
            name, sha256 = package.manifest.name, hashlib.sha256(data).digest()
            store.add_package(data, sha256, name, package.adapter, self.clock())
        store.close()

    def _server_config(self) -> ServerConfig:
        return ServerConfig(
            FEDERATION, str(self._directory / SERVER), round=self._policy, training=self._training
        )

    def _deliver(self) -> None:
        while found := self.broker.next():
            name, delivery = found
            program = self._programs[name]

            def take() -> None:
                self._moment(name)  # noqa: B023 - called at once
                program.handle(delivery.topic, delivery.payload)  # noqa: B023

            if self._perform(name, take):
                self.broker.acknowledge(name, delivery)

    def _perform(self, name: str, action: Callable[[], None]) -> bool:
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
            self._moment(name)
            return taken

        return publish

    def _moment(self, name: str) -> None:
        self.moments[name] = self.moments.get(name, 0) + 1
        if self.moments[name] == self._fatal.get(name):
            raise _Killed


def key_of(name: str) -> PrivateKey:
    """The signing key of a program: of its name, so that every run signs the same bytes."""
    return PrivateKey(hashlib.sha256(name.encode()).digest())
