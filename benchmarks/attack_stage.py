"""Where attacks are played: a secured federation of real processes, whose broker has a second master.

mosquitto runs what `broker-config` wrote, and one listener more, on which everything is allowed: the hand of
whoever owns the broker's machine. It reads every topic, and publishes what it likes as if anybody had sent
it. Attackers have that, a certificate of their own as "mallory", or nothing; "honest" is what mallory would
be if it were. Three machines with real agents learn meanwhile.
"""

import contextlib
import re
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from benchmarks.attack_client import PATIENCE_SECONDS, AttackError, Client
from benchmarks.attack_logs import Logs
from benchmarks.attack_parties import Parties, clock
from protocol.charter import TrainingPolicy
from protocol.errors import ProtocolError
from protocol.sealing import unseal
from protocol.signing import PrivateKey
from runtime.keys import load_or_make
from server.broker import BrokerSupervisor, free_port
from server.broker_settings import BROKER
from server.keys import SIGNING_FILE, ServerKeys
from simulation import vibration
from simulation.experiment import SERVER_CONFIG, Settings, prepare, write_configurations
from simulation.machines import machines
from simulation.processes import Federation
from simulation.secure import secure

MACHINES = ("pump-1", "fan-1", "gearbox-1")
PACKAGE = Path(str(resources.files("simulation"))) / "demo" / "vibration.zip"
BACK_DOOR = """
# The hand of whoever owns this machine.
listener {port} 127.0.0.1
allow_anonymous true
"""
ROUNDS = 2
LATE = "late"
"""A device that never comes: while it is registered, no round opens."""


class Stage(Parties):
    """The federation; use as a context manager."""

    def __init__(self, directory: Path) -> None:
        """Set up everything in `directory`; entering starts it."""
        chosen = tuple(machine for machine in machines(0) if machine.id in MACHINES)
        fleet = directory / "fleet"
        vibration.write_fleet(fleet, 0, chosen)
        settings = Settings(
            rounds=ROUNDS,
            labels_per_class=4,
            training=replace(TrainingPolicy(), epochs=2),
            deadline_seconds=3600.0,
            gather_seconds=3600.0,
            server={"round": {"minimum_devices": len(MACHINES)}},
        )
        self.experiment = prepare(directory / "run", fleet, settings)
        key = load_or_make(self.experiment.server_directory / "data" / SIGNING_FILE)
        secured = secure(self.experiment, key.public)
        write_configurations(
            self.experiment, 0, "auto", server_changes=secured.server, device_changes=secured.device
        )
        self.programs = Federation(self.experiment, verbose=True)
        super().__init__(directory, self.experiment, secured, self.programs)
        self.back_door = free_port()
        self._hand = Client(self.back_door, "hand")
        with (self.written / BROKER).open("a", encoding="utf-8") as file:
            file.write(BACK_DOOR.format(port=self.back_door))
        self.broker = BrokerSupervisor(self.written, configuration=self.written)
        self.logs = Logs(self.experiment, self.store, self.programs.server, self.broker.log_file)
        self._phase = 0
        self.revocation_seconds: list[float] = []
        """From the operator's command to the end of each session."""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Stage":
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.broker)
            stack.enter_context(self.programs)
            stack.callback(self._let_go)
            self.programs.push(PACKAGE)
            self.programs.server.start()
            stack.enter_context(self._hand)
            self._hand.connect(clean_start=False)
            self._hand.listen("#")
            self.until(lambda: self.hand.payloads(self.topics.all("trust")), "the server's word on its keys")
            self.keys = ServerKeys.load_or_make(self.data, "", self.store.newest_root())
            for name in ("mallory", "honest"):
                self.enrol(name)
                with self.connected(name) as client:  # whom the server never heard, rounds would wait for
                    client.publish(self.topics.up(name, "state"), self.state(name))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def hand(self) -> Client:
        """Hears and publishes everything; comes back when the broker was started anew for a revocation."""
        if self._hand.disconnected:
            self._hand.come_back()
        return self._hand

    def updates(self, number: int) -> dict[str, bytes]:
        """Envelope of each update that is counted in a round."""
        return {device: envelope for device, envelope, *_ in self.store.journalled_updates(number)}

    def reach(self, phase: int) -> None:
        """Go on to a phase: 1 and 2, all but the first machine are counted in that open round; 3, the end."""
        for step in range(self._phase + 1, phase + 1):
            (self._open_first, self._open_second, self._release)[step - 1]()
            self._phase = step

    def _open_first(self) -> None:
        """Hold the first machine when it is ready, and only then let the last come: none opens without."""
        first, *others = MACHINES
        for name in (first, *others[:-1]):
            self.programs.agents[name].start()
        self.until(lambda: self._is_ready(first, 0), f"{first} is ready for round 1")
        self.hold(first)
        self.programs.agents[others[-1]].start()
        self.until(lambda: set(self.updates(1)) == set(others), "all but one are counted in round 1")

    def _open_second(self) -> None:
        first, *others = MACHINES
        self.store.register_device(LATE, PrivateKey.generate().public, clock())
        self.let_go(first)
        self.until(lambda: self._is_ready(first, 1), f"{first} is ready for round 2")
        self.hold(first)
        self.store.remove_device(LATE)
        self.until(lambda: set(self.updates(2)) == set(others), "all but one are counted in round 2")

    def _release(self) -> None:
        self._let_go()
        self.until(lambda: len(self.store.reports(ROUNDS)) == len(MACHINES), "all report on the last release")

    def _is_ready(self, name: str, release: int) -> bool:
        row = self.row(name)
        return bool(row and row["online"] and row["release"] == release and row["labelled_windows"])

    def sealed(self, device: str, number: int) -> bytes:
        """What a device sent as its update of a round.

        Raises:
            AttackError: it was not heard.
        """
        for payload in self.hand.payloads(self.topics.up(device, "update")):
            try:
                found = unseal(payload, self.keys.sealing, self.topics.up(device, "update"), limit=1 << 24)
            except ProtocolError:
                continue  # what an attack left
            if found.number == number and found.plaintext == self.updates(number).get(device):
                return payload
        raise AttackError(f"no update of {device} in round {number} was heard")

    def hold(self, name: str) -> None:
        """Stop a machine where it stands."""
        self.programs.agents[name].signal(signal.SIGSTOP)

    def let_go(self, name: str) -> None:
        """Let it go on."""
        self.programs.agents[name].signal(signal.SIGCONT)

    def restart(self, program: Any) -> None:
        """Kill -9, and start again."""
        program.signal(signal.SIGKILL)
        program.wait(PATIENCE_SECONDS)
        program.start()

    def set_epochs(self, epochs: int) -> None:
        """Change the charter in the server's configuration; a restart makes it hold."""
        path = self.experiment.server_directory / SERVER_CONFIG
        text, count = re.subn(r"(?m)^epochs = \d+$", f"epochs = {epochs}", path.read_text("utf-8"))
        if count != 1:
            raise AttackError(f"{path}: expected one line with epochs, got {count}")
        path.write_text(text, "utf-8")

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        """Start an operator's command."""
        config = str(self.experiment.server_directory / SERVER_CONFIG)
        return subprocess.Popen(
            [sys.executable, "-m", "server", "--config", config, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _let_go(self) -> None:
        for name in MACHINES:
            self.let_go(name)
