"""A real broker that queues too little, forgets, or dies with updates on their way: none is lost."""

import hashlib
import queue
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.config import STORE_FILE, AgentConfig, SourceConfig
from agent.device import DeviceAgent
from agent.keyring import Keyring
from agent.outbox import RESEND_SECONDS
from agent.store import Store as AgentStore
from protocol.charter import TrainingPolicy
from runtime.broker import BrokerConfig
from runtime.link import Connected, Link, Received
from server.broker import BrokerSupervisor
from server.config import ServerConfig
from server.coordinator import Coordinator
from server.round import RoundPolicy
from server.store import Store as ServerStore
from simulation.fake_broker import FakeClock
from tests.builders import (
    PARAMETERS,
    LogisticEngine,
    identity_of,
    private_key,
    server_keys,
    tiny_package,
    two_levels,
    write_recording,
)
from tests.system.conftest import Reference
from tests.system.plant import PATIENCE_SECONDS, TOPICS, Attacker, Plant, needs_mosquitto, until

pytestmark = [pytest.mark.system, needs_mosquitto]
DEVICES = tuple(f"pump-{number}" for number in range(1, 13))
ROUNDS = 2
PACKAGE = tiny_package()
SERVER_KEY = private_key(100)
FEDERATION = "pumps"


@dataclass
class Running:
    """A program with its link and its store."""

    program: Any
    link: Link
    store: Any

    def step(self) -> None:
        """Take what has come, and see the time."""
        while True:
            try:
                event = self.link.events.get(timeout=0.002)
            except queue.Empty:
                break
            if isinstance(event, Connected):
                self.program.connected()
            elif isinstance(event, Received):
                self.program.handle(event.topic, event.payload)
                self.link.acknowledge(event)
        self.program.tick()


class Yard:
    """A coordinator and a dozen tiny agents with real links; only the clock is the test's own."""

    def __init__(self, directory: Path, broker: BrokerSupervisor) -> None:
        self.directory = directory
        self.broker = BrokerConfig(port=broker.port)
        self.clock = FakeClock()
        store = ServerStore(directory / "server")
        for index, name in enumerate(DEVICES):
            store.register_device(name, private_key(index + 1).public, 1.0)
            spool = directory / name / "spool"
            spool.mkdir(parents=True)
            write_recording(spool / "a.csv", two_levels(6 + index))
        adapter = np.zeros(PARAMETERS, np.float32)
        store.add_package(PACKAGE, hashlib.sha256(PACKAGE).digest(), "tiny", adapter, 1.0)
        store.close()

    @contextmanager
    def server(self) -> Iterator[Running]:
        forever = 1e9
        config = ServerConfig(
            FEDERATION,
            str(self.directory / "server"),
            round=RoundPolicy(len(DEVICES), len(DEVICES), 1.0, forever, forever, rounds=ROUNDS),
            training=TrainingPolicy(learning_rate=0.1, epochs=2),
        )
        store = ServerStore(self.directory / "server")
        with self._linked(
            partial(Coordinator, config, store, server_keys(SERVER_KEY)), "server", store
        ) as running:
            yield running

    @contextmanager
    def device(self, name: str) -> Iterator[Running]:
        folder = self.directory / name
        store = AgentStore(folder / STORE_FILE)
        config = AgentConfig(
            name, FEDERATION, SERVER_KEY.public.raw.hex(), SourceConfig(str(folder / "spool")), str(folder)
        )
        key = private_key(DEVICES.index(name) + 1)
        agent = partial(
            DeviceAgent,
            config,
            store,
            identity=identity_of(folder, name, key),
            keyring=Keyring(store, FEDERATION, self.clock, server_key=config.server_key),
            make_engine=lambda *_: LogisticEngine(),
        )
        with self._linked(agent, name, store) as running:
            yield running

    @contextmanager
    def _linked(self, make: Callable[..., Any], name: str, store: Any) -> Iterator[Running]:
        links: list[Link] = []

        def publish(topic: str, payload: bytes, retain: bool) -> bool:
            return links[0].publish(topic, payload, retain=retain)

        program = make(publish, self.clock)
        links.append(Link(self.broker, name, program.subscriptions))
        links[0].set_will(*program.will())
        links[0].start()
        try:
            yield Running(program, links[0], store)
        finally:
            links[0].stop()
            store.close()

    def serve(self, *programs: Running, until: Callable[[], Any], server: Running | None = None) -> None:
        """Let time pass for these programs, and for the server after each of them."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not until():
            assert time.monotonic() < deadline, "waited in vain"
            self.clock.advance(0.2)
            for program in programs:
                program.step()
                if server:
                    server.step()

    def run(self, away: Callable[[list[Running]], None] | None) -> str:
        """Run all rounds; returns the last release's SHA-256.

        Args:
            away: called with the devices when round 1 has just opened and the server is gone.
        """
        with ExitStack() as stack:
            devices = [stack.enter_context(self.device(name)) for name in DEVICES]
            server = stack.enter_context(self.server())
            # One after the other: the tiny queue is to overflow when the server is away, not before.
            for device in devices:
                self.serve(
                    device, server=server, until=lambda device=device: device.store.state().release == 0
                )
            self.serve(server, until=server.store.open_round_record)
            if away:
                server.link.stop()
                away(devices)
                server = stack.enter_context(self.server())
            self.serve(
                *devices,
                server=server,
                until=lambda: (
                    server.store.newest_release().number == ROUNDS
                    and all(d.store.state().release == ROUNDS and not d.store.outbox() for d in devices)
                ),
            )
            for number in range(1, ROUNDS + 1):
                counted = [device for device, *_ in server.store.journalled_updates(number)]
                assert sorted(counted) == sorted(DEVICES)
            return server.store.releases()[0]["sha256"].hex()


def yard(directory: Path, stack: ExitStack, settings: dict[str, str]) -> tuple[Yard, BrokerSupervisor]:
    broker = stack.enter_context(BrokerSupervisor(directory / "broker", kind="mosquitto", settings=settings))
    return Yard(directory, broker), broker


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    with ExitStack() as stack:
        return yard(tmp_path_factory.mktemp("undisturbed"), stack, {})[0].run(None)


@pytest.mark.parametrize(
    "limit",
    [
        {"max_queued_messages": "20"},
        {"max_queued_messages": "0", "max_queued_bytes": "4000"},
    ],
    ids=["messages", "bytes"],
)
def test_more_comes_than_the_broker_queues_while_the_server_is_away(
    tmp_path: Path, undisturbed: str, limit: dict[str, str]
) -> None:
    with ExitStack() as stack:
        site, broker = yard(tmp_path, stack, {"max_inflight_messages": "20", **limit})

        def away(devices: list[Running]) -> None:
            site.serve(*devices, until=lambda: all(device.store.outbox() for device in devices))
            for _ in range(10):  # they repeat themselves, and report at each reconnect
                site.clock.advance(RESEND_SECONDS)
                for device in devices:
                    device.program.connected()
                    device.step()
            until(lambda: "being dropped for client server" in broker.log_file.read_text("utf-8"), "overflow")
            assert all(len(device.store.outbox()) == 1 for device in devices)

        assert site.run(away) == undisturbed


def test_the_broker_dies_with_its_queue_full_of_updates(tmp_path: Path, undisturbed: str) -> None:
    """PUBACK promised to keep them; nothing was kept, and the server was away all the time."""
    with ExitStack() as stack:
        site, broker = yard(tmp_path, stack, {"persistence": "false"})

        def away(devices: list[Running]) -> None:
            site.serve(*devices, until=lambda: all(device.store.outbox() for device in devices))
            broker.kill()
            broker.start()

        assert site.run(away) == undisturbed


@pytest.mark.parametrize("persistence", ["true", "false"])
def test_the_broker_is_restarted_in_order_in_mid_round(
    tmp_path: Path, fleet: Path, reference: Reference, persistence: str
) -> None:
    settings = {"persistence": persistence}
    with Plant(tmp_path, fleet, broker_settings=settings).running(held=True) as plant:
        plant.broker.stop()
        plant.broker.start()
        plant.signal(plant.names[0], signal.SIGCONT)
        assert plant.finish() == reference.release
        assert plant.updates(1) == reference.updates[1]
        assert plant.updates(2) == reference.updates[2]


@pytest.mark.parametrize("persistence", ["true", "false"])
def test_the_broker_is_killed_while_an_update_is_on_its_way(
    tmp_path: Path, fleet: Path, reference: Reference, persistence: str
) -> None:
    """The server hangs: the broker has taken the update, and nobody has it yet."""
    settings = {"persistence": persistence, "autosave_interval": "1800", "autosave_on_changes": "false"}
    with (
        Plant(tmp_path, fleet, broker_settings=settings).running(held=True) as plant,
        Attacker(plant.broker.port, TOPICS.up("+", "update")) as witness,
    ):
        victim = plant.names[0]
        plant.programs.server.signal(signal.SIGSTOP)
        try:
            plant.signal(victim, signal.SIGCONT)
            until(lambda: TOPICS.up(victim, "update") in witness.heard, "the broker has the update")
            assert victim not in plant.updates(1)
            plant.broker.kill()
            plant.broker.start()
        finally:
            plant.programs.server.signal(signal.SIGCONT)
        assert plant.finish() == reference.release
        assert plant.updates(1) == reference.updates[1]
        assert plant.updates(2) == reference.updates[2]
