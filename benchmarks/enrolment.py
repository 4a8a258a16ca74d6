"""A fleet enrols at one server, and something is killed with SIGKILL on the way: who has no identity?

Real programs: mosquitto for the fleet and mosquitto for newcomers, a server, and the agents' enrolment on TLS
links in a few processes (benchmarks/enrolling.py). In the end every device must have a certificate that fits
its key, is not revoked, opens the door for devices, and is registered under one key.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from agent.config import CERTIFICATE_FILE, KEY_FILE
from benchmarks.enrolling import Plan
from benchmarks.process import Child
from protocol.fleet import Device, FleetDescription, Split
from runtime.keys import load_or_make, read
from server.broker import BrokerSupervisor
from server.broker_settings import BROKER, ENROLMENT, REVOKED, authority_file
from server.keys import SIGNING_FILE
from server.store import Store
from simulation import vibration
from simulation.experiment import SERVER_CONFIG, Experiment, Settings, write_configurations
from simulation.processes import Program
from simulation.secure import ROOT_FILE, secure

VICTIMS = ("server", "broker", "enrolment broker")
DAY = 86_400.0
STOP_SECONDS = 20.0
LOOK_SECONDS = 0.02
PATIENCE_SECONDS = 900.0
HEARD_SECONDS = 30.0


class EnrolmentError(Exception):
    """A run did not come to its end."""


@dataclass(frozen=True)
class Kill:
    """What is killed, and when."""

    victim: str
    """One of VICTIMS."""
    after: int
    """Devices that are registered by then."""
    delay_seconds: float
    """Since then."""
    down_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.victim}, {self.delay_seconds:.3f} s after device {self.after}, "
            f"back after {self.down_seconds:.2f} s"
        )


@dataclass(frozen=True)
class Outcome:
    """What became of a fleet."""

    kill: Kill | None
    devices: int
    seconds: float
    """From the first attempt to connect to the last certificate."""
    problems: tuple[str, ...]
    """One for every device that is not as it should be."""

    @property
    def enrolled(self) -> int:
        """Devices with a working identity."""
        return self.devices - len(self.problems)


def make_kill(seed: int, number: int, devices: int) -> Kill:
    """The kill `number` of a seed: one of VICTIMS in turn, at any moment of the enrolment of `devices`."""
    draw = random.Random(f"enrolment {seed} {number}")  # noqa: S311 - a test plan, no secret
    return Kill(
        VICTIMS[number % len(VICTIMS)],
        draw.randrange(1, max(2, int(devices * 0.9))),
        draw.uniform(0.0, 0.2),
        draw.uniform(0.1, 1.5),
    )


class Site:
    """Brokers and server at which a fleet enrols; use as a context manager."""

    def __init__(self, directory: Path) -> None:
        """Set up everything in `directory`."""
        description = FleetDescription(
            vibration.SCHEMA,
            vibration.WINDOW,
            (Device("unused", "unused", "edge"),),
            Split("time"),
            "enrolment",
            "no data",
            simulated=True,
        )
        experiment = Experiment(directory, description, Settings(), (), ())
        self.directory = directory
        self.federation = experiment.federation
        data = experiment.server_directory / "data"
        secured = secure(experiment, load_or_make(data / SIGNING_FILE).public)
        changes = {**secured.server, "round": {"minimum_devices": 1}}
        write_configurations(experiment, 0, "auto", server_changes=changes)
        self.written = (directory / "broker").resolve()
        self.port = int(secured.device["broker"]["port"])
        self.enrolment_port = int(secured.device["enrolment"]["port"])
        self.store = Store(data)
        self.root = directory / ROOT_FILE
        self.root.write_bytes(self.store.roots()[0])
        self._brokers = {
            "broker": BrokerSupervisor(self.written, configuration=self.written / BROKER),
            "enrolment broker": BrokerSupervisor(self.written, configuration=self.written / ENROLMENT),
        }
        config = str(experiment.server_directory / SERVER_CONFIG)
        self._server = Program(
            "server", ["server", "--config", config, "run"], experiment.server_directory / "server.log"
        )

    def __enter__(self) -> "Site":
        with contextlib.ExitStack() as stack:
            stack.callback(self.store.close)
            for broker in self._brokers.values():
                stack.enter_context(broker)
            stack.callback(self._server.wait, STOP_SECONDS)
            stack.callback(self._server.signal, signal.SIGTERM)
            self._server.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def strike(self, kill: Kill) -> None:
        """Kill -9, and start again."""
        if kill.victim == "server":
            self._server.signal(signal.SIGKILL)
            self._server.wait(STOP_SECONDS)
        else:
            self._brokers[kill.victim].kill()
        time.sleep(kill.down_seconds)
        if kill.victim == "server":
            self._server.start()
        else:
            self._brokers[kill.victim].start()

    def registered(self) -> int:
        """Devices that the server has let in."""
        return len(self.store.devices())


def run(
    site: Site,
    names: Sequence[str],
    kill: Kill | None,
    *,
    processes: int = 2,
    at_once: int = 45,
    note: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Let devices enrol while something is killed; then look at every one of them.

    Args:
        site: running.
        names: of devices that the server does not know yet.
        kill: what happens; None: nothing.
        processes: over which the devices are spread.
        at_once: devices of each process that are connected at the same time.
        note: told how many are registered.

    Raises:
        EnrolmentError: it does not come to its end.
    """
    now = time.time()  # noqa: TID251 - tokens expire by the server's clock
    tokens = site.store.make_tokens(names, now + DAY, now)
    shares = [list(names[start::processes]) for start in range(processes)]
    plans = [_plan(site, f"{names[0]}-{i}", {n: tokens[n] for n in s}, at_once) for i, s in enumerate(shares)]
    before, started = site.registered(), time.monotonic()
    with _children(site, plans, "enrol") as children:
        struck = kill is None
        while any(child.process.poll() is None for child in children):
            if time.monotonic() - started > PATIENCE_SECONDS:
                raise EnrolmentError(
                    f"{site.registered() - before} of {len(names)} after {PATIENCE_SECONDS} s"
                )
            done = site.registered() - before
            note(done)
            if kill is not None and not struck and done >= kill.after:
                struck = True
                time.sleep(kill.delay_seconds)
                site.strike(kill)
            time.sleep(LOOK_SECONDS)
        seconds = time.monotonic() - started
    if not struck:
        raise EnrolmentError(f"all was over before the kill: {kill}")
    problems = _outcomes(plans)
    with _children(site, plans, "check") as children:
        for child in children:
            child.process.wait(PATIENCE_SECONDS)
    for name, problem in _outcomes(plans).items():
        problems[name] = problems[name] or problem
    _wait_until_heard(site, [name for name, problem in problems.items() if not problem])
    found = (f"{name}: {problems[name] or _flaw(site, name)}" for name in names)
    return Outcome(kill, len(names), seconds, tuple(text for text in found if not text.endswith(": ")))


def _wait_until_heard(site: Site, names: Sequence[str]) -> None:
    """The broker has what the devices said; let the server take it, if it does."""
    deadline = time.monotonic() + HEARD_SECONDS
    while time.monotonic() < deadline:
        heard = {row["id"] for row in site.store.devices() if row["last_seen"] is not None}
        if heard >= set(names):
            return
        time.sleep(LOOK_SECONDS)


def _plan(site: Site, name: str, tokens: dict[str, str], at_once: int) -> Path:
    folder = site.directory / "fleet"
    folder.mkdir(exist_ok=True)
    path = site.directory / f"plan-{name}.json"
    Plan(
        str(folder),
        tokens,
        site.federation,
        site.enrolment_port,
        site.port,
        str(site.written / authority_file("services")),
        str(site.root),
        at_once,
        str(path.with_suffix(".outcome")),
    ).write(path)
    return path


@contextlib.contextmanager
def _children(site: Site, plans: Sequence[Path], action: str) -> Iterator[list[Child]]:
    """A process of devices for each plan."""
    home = Path(__file__).parents[1]
    paths = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH", "")]))
    children = []
    try:
        for plan in plans:
            plan.with_suffix(".outcome").unlink(missing_ok=True)
            command = [sys.executable, "-m", "benchmarks.enrolling", str(plan), action]
            log = plan.with_suffix(".log")
            children.append(Child(command, log, cwd=site.directory, environment={"PYTHONPATH": paths}))
        yield children
    finally:
        for child in children:
            child.stop()


def _outcomes(plans: Sequence[Path]) -> dict[str, str]:
    """By device, what went wrong by its own account."""
    outcomes: dict[str, str] = {}
    for plan in plans:
        try:
            outcomes |= json.loads(plan.with_suffix(".outcome").read_text("utf-8"))
        except OSError as error:
            log = plan.with_suffix(".log").read_text("utf-8", "replace")
            raise EnrolmentError(f"the devices of {plan.name} ended: {log[-2000:]}") from error
    return outcomes


def _flaw(site: Site, name: str) -> str:
    """What is wrong with a device's identity; empty: nothing."""
    folder = site.directory / "fleet" / name
    pem = (folder / CERTIFICATE_FILE).read_bytes()
    certificate = x509.load_pem_x509_certificate(pem)
    key = load_pem_private_key(pem, None)
    if key.public_key() != certificate.public_key():
        return "its certificate is for another key"
    [common_name] = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    if common_name.value != name:
        return f"its certificate says {common_name.value!r}"
    revoked = x509.load_pem_x509_crl((site.written / REVOKED).read_bytes())
    if revoked.get_revoked_certificate_by_serial_number(certificate.serial_number):
        return "its certificate is on the revocation list"
    if site.store.device_key(name) != read(folder / KEY_FILE).public:
        return "another key is registered under its name"
    rows = [
        row for row in site.store.certificates(name) if row["serial"] == f"{certificate.serial_number:040x}"
    ]
    if len(rows) != 1 or rows[0]["revoked_at"] is not None:
        return "the server does not know its certificate"
    [row] = [row for row in site.store.devices() if row["id"] == name]
    return "" if row["last_seen"] is not None else "the server did not take its word"
