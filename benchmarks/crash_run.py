"""One run of the crash matrix: a small federation of real processes that a point's blows hit."""

import contextlib
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.crash_events import Observer
from benchmarks.crash_points import Blow, Point
from benchmarks.crash_template import copy
from server.broker import BrokerSupervisor
from simulation.experiment import AGENT_CONFIG, SERVER_CONFIG, Experiment
from simulation.processes import Program

PATIENCE_SECONDS = 120.0
"""Several times what a run takes: chunks that were asked of a dead server are asked for again after 10 s,
updates sent again after 20 s."""
EVENT_SECONDS = 0.003
"""How often to look for the event that a point waits for."""
END_SECONDS = 0.1
STOP_SECONDS = 20.0
# Below the ports that systems give to outgoing connections: nothing takes the port while the broker is dead.
PORTS = range(20_000, 32_000)

_ports_taken: set[int] = set()
_ports_lock = threading.Lock()


class RunError(Exception):
    """A run did not come to its end."""


def run(template: Experiment, directory: Path, point: Point | None, stopping: threading.Event) -> None:
    """Run a federation to its end in `directory`, which is made anew.

    Args:
        template: from `crash_template.make_template`.
        directory: for the run.
        point: what is killed; None: nothing.
        stopping: ends the run early when it is set.

    Raises:
        RunError: it did not come to its end, or a process ended by itself.
    """
    with _free_port() as port, _Plant(copy(template, directory, port), port, stopping) as plant:
        if point is not None:
            plant.until(lambda: plant.observer.has_happened(point.event), EVENT_SECONDS, str(point.event))
            for blow in point.blows:
                stopping.wait(blow.after_seconds)
                plant.strike(blow)
            # Only then may their databases be looked at: see crash_events.
            plant.until(plant.all_connected, EVENT_SECONDS, "all programs are connected again")
        try:
            plant.until(lambda: not plant.observer.unfinished(), END_SECONDS, "the end of the last round")
        except RunError as error:
            raise RunError(f"{error}: {plant.observer.unfinished()}") from error
        plant.stop_in_order()


class _Plant:
    """The processes of one run."""

    def __init__(self, experiment: Experiment, port: int, stopping: threading.Event) -> None:
        directory = experiment.server_directory
        self._stopping = stopping
        self._broker = BrokerSupervisor(experiment.directory / "broker", port=port, kind="mosquitto")
        self._persisted = experiment.directory / "broker"
        server = ["server", "--config", str(directory / SERVER_CONFIG), "run"]
        self._programs = {"server": Program("server", server, directory / "server.log")}
        for participant in experiment.participants:
            name, home = participant.device.id, participant.directory
            arguments = ["agent", "--config", str(home / AGENT_CONFIG), "run"]
            self._programs[name] = Program(name, arguments, home / "agent.log")
        self._connections = dict.fromkeys(self._programs, 0)
        self.observer = Observer(directory, {p.device.id: p.directory for p in experiment.participants})

    def __enter__(self) -> "_Plant":
        self._broker.start()
        for program in self._programs.values():
            program.start()
        return self

    def __exit__(self, *_: object) -> None:
        for program in self._programs.values():
            program.signal(signal.SIGKILL)
        for program in self._programs.values():
            program.wait(STOP_SECONDS)
        self._broker.stop()

    def until(self, condition: Callable[[], bool], every_seconds: float, what: str) -> None:
        """Wait for something while all processes run.

        Raises:
            RunError: it does not come, a process ended, or the matrix is stopped.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            self._check()
            if time.monotonic() > deadline:
                raise RunError(f"waited {PATIENCE_SECONDS:.0f} s in vain for: {what}")
            if self._stopping.wait(every_seconds):
                raise RunError("stopped")

    def _check(self) -> None:
        for program in self._programs.values():
            if not program.running:
                raise RunError(f"{program.name} ended by itself; its log ends with:\n{program.last_words()}")

    def strike(self, blow: Blow) -> None:
        """Kill -9, and start again.

        Raises:
            RunError: a process had ended by itself before.
        """
        self._check()
        programs = [self._programs[name] for name in blow.processes if name != "broker"]
        for program in programs:
            program.signal(signal.SIGKILL)
        if "broker" in blow.processes:
            self._broker.kill()
        for program in programs:
            program.wait(STOP_SECONDS)
        if blow.forget:
            for path in self._persisted.glob("*.db*"):
                path.unlink()
        # All connect anew where the broker was killed, else those that were.
        for name in self._programs if "broker" in blow.processes else blow.processes:
            self._connections[name] = self.observer.logs[name].connections()
        for name, seconds in zip(blow.processes, blow.down_seconds, strict=True):
            self._stopping.wait(seconds)
            if name == "broker":
                self._broker.start()
            else:
                self._programs[name].start()

    def all_connected(self) -> bool:
        """Whether every program that lost its connection has a new one."""
        return all(
            self.observer.logs[name].connections() > before for name, before in self._connections.items()
        )

    def stop_in_order(self) -> None:
        """Stop all programs as a service manager does."""
        for program in self._programs.values():
            program.signal(signal.SIGTERM)
        for program in self._programs.values():
            program.wait(STOP_SECONDS)


@contextlib.contextmanager
def _free_port() -> Iterator[int]:
    """A port that no other run has, and that nothing listens on."""
    with _ports_lock:
        while True:
            port = random.choice(PORTS)  # noqa: S311 - any
            with socket.socket() as probe:
                if port in _ports_taken or probe.connect_ex(("127.0.0.1", port)) == 0:
                    continue
            _ports_taken.add(port)
            break
    try:
        yield port
    finally:
        _ports_taken.discard(port)
