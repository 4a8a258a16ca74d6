"""A package over a real broker, cut off in the middle: what arrived is kept, only the rest is asked for."""

import hashlib
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.config import AgentConfig, SourceConfig
from agent.device import DeviceAgent
from agent.installation import Installation
from agent.keyring import Keyring
from agent.store import Store as AgentStore
from protocol.artifacts import describe
from runtime.broker import BrokerConfig
from runtime.link import Connected, Link, Received
from server import proceedings
from server.broker import BrokerSupervisor
from server.config import ServerConfig
from server.coordinator import Coordinator
from server.store import Store as ServerStore
from tests.builders import (
    PARAMETERS,
    LogisticEngine,
    identity_of,
    private_key,
    server_keys,
    tiny_package,
)
from tests.system.plant import PATIENCE_SECONDS, needs_mosquitto

pytestmark = [pytest.mark.system, needs_mosquitto]
CHUNK_BYTES = 1024
PACKAGE = tiny_package(filler=150_000)
ARTIFACT = describe(PACKAGE, CHUNK_BYTES)
WINDOW = 4


class Site:
    """A coordinator and a device agent, each with a real link, moved on by the test's own thread."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.broker = BrokerConfig(port=port)
        self.chunks_sent = 0
        self.installation = Installation(directory / "device" / "packages", [])

    @contextmanager
    def server(self) -> Iterator[tuple[Any, Link]]:
        store = ServerStore(self.directory / "server")
        key = private_key(100)
        store.register_device("pump-1", private_key(1).public, 1.0)
        if store.newest_package() is None:
            adapter = np.zeros(PARAMETERS, np.float32)
            store.add_package(PACKAGE, hashlib.sha256(PACKAGE).digest(), "tiny", adapter, 1.0)
        config = ServerConfig("pumps", str(self.directory / "server"), broker=self.broker)
        with self._linked(partial(Coordinator, config, store, server_keys(key)), "server", store) as both:
            yield both

    @contextmanager
    def device(self) -> Iterator[tuple[Any, Link]]:
        folder = self.directory / "device"
        (folder / "spool").mkdir(exist_ok=True)
        store = AgentStore(folder / "agent.sqlite")
        config = AgentConfig(
            "pump-1",
            "pumps",
            private_key(100).public.raw.hex(),
            SourceConfig(str(folder / "spool")),
            str(folder),
        )
        agent = partial(
            DeviceAgent, replace(config, broker=self.broker), store,
            identity=identity_of(folder, "pump-1", private_key(1)),
            keyring=Keyring(store, config.federation, time.time, server_key=config.server_key),  # noqa: TID251
            make_engine=lambda *_: LogisticEngine(),
        )  # fmt: skip
        with self._linked(agent, "pump-1", store) as both:
            yield both

    @contextmanager
    def _linked(self, make: Callable[..., Any], name: str, store: Any) -> Iterator[tuple[Any, Link]]:
        links: list[Link] = []

        def publish(topic: str, payload: bytes, retain: bool) -> bool:
            self.chunks_sent += topic.endswith("/chunk")
            return links[0].publish(topic, payload, retain=retain)

        program = make(publish, time.time)  # noqa: TID251 - a daemon's part
        links.append(Link(self.broker, name, program.subscriptions))
        links[0].start()
        try:
            yield program, links[0]
        finally:
            links[0].stop()
            store.close()

    def kept(self) -> int:
        return len(self.installation.have(ARTIFACT))

    def installed(self) -> bool:
        return self.installation.path(ARTIFACT.sha256).is_dir()

    def serve(self, *programs: tuple[Any, Link], until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not until():
            assert time.monotonic() < deadline, "waited in vain"
            for program, link in programs:
                try:
                    event = link.events.get(timeout=0.01)
                except queue.Empty:
                    event = None
                if isinstance(event, Connected):
                    program.connected()
                elif isinstance(event, Received):
                    program.handle(event.topic, event.payload)
                    link.acknowledge(event)
                program.tick()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerSupervisor]:
    with BrokerSupervisor(tmp_path / "broker", kind="mosquitto") as broker:
        yield broker


@pytest.fixture
def site(tmp_path: Path, broker: BrokerSupervisor, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(proceedings, "describe", lambda data: describe(data, CHUNK_BYTES))
    return Site(tmp_path, broker.port)


def test_a_device_that_dies_in_the_middle_goes_on(site: Site) -> None:
    with site.server() as server:
        with site.device() as device:
            site.serve(server, device, until=lambda: site.kept() >= 20)
        kept = site.kept()
        assert 20 <= kept < len(ARTIFACT.chunk_sha256)
        with site.device() as device:
            site.serve(server, device, until=site.installed)
            assert device[0]._state.package == ARTIFACT.sha256
    assert site.chunks_sent <= len(ARTIFACT.chunk_sha256) + 2 * WINDOW


@pytest.mark.parametrize("how", ["killed", "killed, memory lost", "restarted in order"])
def test_a_broker_that_dies_in_the_middle(site: Site, broker: BrokerSupervisor, how: str) -> None:
    with ExitStack() as stack:
        programs = [stack.enter_context(site.server()), stack.enter_context(site.device())]
        site.serve(*programs, until=lambda: site.kept() >= 20)
        if how == "restarted in order":
            broker.stop()
        else:
            broker.kill()
        if "memory lost" in how:
            for path in (site.directory / "broker").glob("*.db*"):
                path.unlink()
        broker.start()
        site.serve(*programs, until=site.installed)
    assert site.chunks_sent <= len(ARTIFACT.chunk_sha256) + 4 * WINDOW
