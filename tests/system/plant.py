"""A small plant for system tests: three simulated machines, real programs, a real broker.

Keys are made of the devices' names, so that every run signs the same bytes and updates can be compared.
"""

import hashlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.config import KEY_FILE
from protocol.charter import TrainingPolicy
from protocol.sealing import SealingKey
from protocol.signing import PrivateKey
from protocol.topics import Topics
from runtime.keys import write_secret
from server.broker import BrokerSupervisor, find_mosquitto
from server.keys import SEALING_FILE, SIGNING_FILE
from simulation import vibration
from simulation.experiment import SERVER_CONFIG, Experiment, Settings, prepare, write_configurations
from simulation.machines import machines
from simulation.processes import Federation

PATIENCE_SECONDS = 120.0
"""Longer than any machine needs; nothing here waits for it to pass."""
PACKAGE = Path(str(resources.files("simulation"))) / "demo" / "vibration.zip"
TOPICS = Topics("simulation")

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for something and return it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE_SECONDS:.0f} s in vain: {what}")


def key_of(name: str) -> PrivateKey:
    return PrivateKey(hashlib.sha256(name.encode()).digest())


def _write_key(path: Path, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(key_of(name).raw.hex() + "\n", "ascii")
    path.chmod(0o600)


class Plant:
    """An experiment of a few machines whose programs a test starts, stops and kills one by one."""

    def __init__(
        self,
        directory: Path,
        fleet: Path,
        *,
        rounds: int = 2,
        deadline_seconds: float = 3600.0,
        maximum_update_bytes: int = 64 * 1024,
        minimum_devices: int | None = None,
        broker_settings: Mapping[str, str] | None = None,
    ) -> None:
        settings = Settings(
            rounds=rounds,
            labels_per_class=5,
            training=replace(TrainingPolicy(), epochs=5),
            deadline_seconds=deadline_seconds,
            gather_seconds=3600.0,
        )
        directory.mkdir(parents=True, exist_ok=True)
        self.experiment: Experiment = prepare(directory, fleet, settings)
        self.names = tuple(participant.device.id for participant in self.experiment.participants)
        self.states = {p.device.id: p.state for p in self.experiment.participants}
        self.broker = BrokerSupervisor(directory / "broker", kind="mosquitto", settings=broker_settings)
        _write_key(self.experiment.server_directory / "data" / SIGNING_FILE, "server")
        self.sealing = SealingKey(bytes(range(32)))
        write_secret(self.experiment.server_directory / "data" / SEALING_FILE, self.sealing.raw)
        for name, state in self.states.items():
            _write_key(state / KEY_FILE, name)
        write_configurations(self.experiment, self.broker.port, "auto")
        path = self.experiment.server_directory / SERVER_CONFIG
        count = len(self.names) if minimum_devices is None else minimum_devices
        text = re.sub(r"minimum_devices = \d+", f"minimum_devices = {count}", path.read_text("utf-8"))
        path.write_text(f"maximum_update_bytes = {maximum_update_bytes}\n{text}", "utf-8")
        self.programs = Federation(self.experiment)
        self.store = self.programs.store

    @contextmanager
    def running(self, *, held: bool = False, late: tuple[str, ...] = ()) -> Iterator["Plant"]:
        """Run broker, server and agents; all end with the context.

        Args:
            held: leave round 1 open: every device but the first is counted, the first one is stopped.
            late: devices that are neither registered nor started; `join` does both.
        """
        with self.broker, self.programs:
            try:
                self.programs.register()
                for name in late:
                    self.store.remove_device(name)
                self.programs.push(PACKAGE)
                self.programs.server.start()
                last = self.names[-1]
                for name in self.names:
                    if name not in late and not (held and name == last):
                        self.agent(name).start()
                if held:
                    self.hold(self.names[0], last)
                yield self
            finally:
                for name in self.names:
                    self.signal(name, signal.SIGCONT)

    def join(self, name: str) -> None:
        """Register and start a device that was late."""
        self.store.register_device(name, key_of(name).public, time.time())  # noqa: TID251 - as an operator
        self.agent(name).start()

    def agent(self, name: str) -> Any:
        return self.programs.agents[name]

    def hold(self, name: str, last: str) -> None:
        """Stop `name` when it is ready, and only then let `last` come, without which no round opens."""
        until(lambda: self.is_ready(name), f"{name} is ready for round 1")
        self.signal(name, signal.SIGSTOP)
        self.agent(last).start()
        others = set(self.names) - {name}
        until(lambda: set(self.updates(1)) == others, f"all but {name} are counted")

    def is_ready(self, name: str) -> bool:
        return any(
            row["id"] == name and row["online"] and row["release"] == 0 and row["labelled_windows"]
            for row in self.store.devices()
        )

    def signal(self, name: str, number: signal.Signals) -> None:
        self.agent(name).signal(number)

    def kill(self, program: Any) -> None:
        """Kill -9."""
        program.signal(signal.SIGKILL)
        program.wait(PATIENCE_SECONDS)

    def updates(self, number: int) -> dict[str, bytes]:
        """SHA-256 of each counted update of a round."""
        return {
            device: hashlib.sha256(envelope).digest()
            for device, envelope, *_ in self.store.journalled_updates(number)
        }

    def finish(self) -> str:
        """Wait for all rounds and for every report on the last release; returns its SHA-256."""
        rounds = self.experiment.settings.rounds

        def done() -> bool:
            self.programs.check()
            newest = self.store.newest_release()
            return bool(newest and newest.number >= rounds and len(self.store.reports(newest.number)) > 0)

        until(done, f"release {rounds}")
        return self.store.releases()[0]["sha256"].hex()

    def refusals(self) -> list[str]:
        return [row["reason"] for row in self.store.refusals()]


class Attacker:
    """A client of the broker that publishes what it likes, and may listen."""

    def __init__(self, port: int, listen_to: str | None = None) -> None:
        self.heard: list[str] = []
        """Topics of the messages that came."""
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "attacker", protocol=paho.MQTTv5)
        self._client.on_message = lambda _client, _data, message: self.heard.append(message.topic)
        self._client.connect("127.0.0.1", port)
        if listen_to:
            self._client.subscribe(listen_to, 1)
        self._client.loop_start()

    def publish(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, qos=1).wait_for_publish(PATIENCE_SECONDS)

    def __enter__(self) -> "Attacker":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def write_small_fleet(directory: Path) -> Path:
    """Three machines of the demo, one of each kind, as fleet directory."""
    chosen = [machine for machine in machines(0) if machine.id in ("pump-1", "fan-1", "gearbox-1")]
    vibration.write_fleet(directory, 0, tuple(chosen))
    return directory


def memory(pid: int, field: str) -> int:
    """VmRSS, VmHWM or RssAnon of a process in bytes."""
    text = Path(f"/proc/{pid}/status").read_text("utf-8")
    match = re.search(rf"{field}:\s+(\d+) kB", text)
    assert match, text
    return int(match[1]) * 1024


def processes_of(word: str) -> list[str]:
    """Command lines of all other processes that hold `word`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if word in line and int(folder.name) != os.getpid():
            found.append(f"{folder.name} {line}")
    return found
