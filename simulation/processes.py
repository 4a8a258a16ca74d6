"""The programs of a federation as child processes: one server and an agent per device, as on real machines.

Children have sessions of their own: Ctrl-C reaches only the runner, which then stops them in order.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from agent.config import KEY_FILE
from runtime.keys import load_or_make
from server.store import Store
from simulation.errors import SimulationError
from simulation.experiment import SERVER_CONFIG, Experiment, Participant

STOP_SECONDS = 10.0


class Program:
    """A child process with its log file."""

    def __init__(self, name: str, arguments: list[str], log_file: Path) -> None:
        self.name = name
        self.log_file = log_file
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it; its output is appended to the log file."""
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        with self.log_file.open("ab") as out:
            self._process = subprocess.Popen(  # noqa: S603 - our own programs
                [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-m", *self._arguments],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
            )

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id.

        Raises:
            SimulationError: it was not started.
        """
        if self._process is None:
            raise SimulationError(f"{self.name} was not started")
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if it is running."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, timeout: float) -> None:
        """Wait for its end; kill it when it does not come."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.01, timeout))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def last_words(self, lines: int = 8) -> str:
        """The end of its log file."""
        try:
            return "\n".join(self.log_file.read_text("utf-8", "replace").splitlines()[-lines:])
        except OSError:
            return ""


class Federation:
    """Server and agents of an experiment; use as a context manager."""

    def __init__(self, experiment: Experiment, *, verbose: bool = False) -> None:
        """Prepare the programs of an experiment.

        Args:
            experiment: what is run.
            verbose: whether they log every detail.
        """
        self._experiment = experiment
        directory = experiment.server_directory
        self.server = Program(
            "server",
            ["server", "--config", str(directory / SERVER_CONFIG), "run", *_details(verbose)],
            directory / "server.log",
        )
        self.agents = {
            participant.device.id: _agent(participant, verbose) for participant in experiment.participants
        }
        self.store = Store(directory / "data")
        """The server's own store, to look at while it runs."""

    def register(self) -> None:
        """Register every device with its key, as an operator does with `devices add`."""
        for participant in self._experiment.participants:
            key = load_or_make(participant.state / KEY_FILE).public
            self.store.register_device(participant.device.id, key, time.time())  # noqa: TID251

    def push(self, package: Path) -> None:
        """Push a package with the operators' command.

        Raises:
            SimulationError: the server refuses it.
        """
        config = self._experiment.server_directory / SERVER_CONFIG
        result = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-m", "server", "--config", str(config), "push", str(package)],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise SimulationError(f"the server refuses {package}: {result.stderr.strip()}")

    def start(self) -> None:
        """Run the server and all agents."""
        self.server.start()
        for agent in self.agents.values():
            agent.start()

    def check(self) -> None:
        """Raise if the server or an agent has ended by itself.

        Raises:
            SimulationError: with the last lines of its log.
        """
        for program in (self.server, *self.agents.values()):
            if not program.running:
                raise SimulationError(f"{program.name} ended; its log ends with:\n{program.last_words()}")

    def stop(self) -> None:
        """End all programs in good order, by force after a while."""
        programs = [*self.agents.values(), self.server]
        for program in programs:
            program.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for program in programs:
            program.wait(deadline - time.monotonic())
        self.store.close()

    def __enter__(self) -> "Federation":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _agent(participant: Participant, verbose: bool) -> Program:
    return Program(
        participant.device.id,
        ["agent", "--config", str(participant.config), "run", *_details(verbose)],
        participant.directory / "agent.log",
    )


def _details(verbose: bool) -> list[str]:
    return ["--verbose"] if verbose else []
