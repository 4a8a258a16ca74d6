"""Who takes part in a secured federation beside its machines: newcomers, an honest device, and impostors."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent.config import CERTIFICATE_FILE, KEY_FILE
from agent.identity import Identity as DeviceFiles
from benchmarks.attack_client import PATIENCE_SECONDS, AttackError, Attempt, Client, Identity
from benchmarks.enrolling import enrol
from protocol.messages import DeviceState, sign_message
from protocol.signing import PrivateKey
from protocol.topics import Topics
from runtime.keys import read
from server.authority import DIRECTORY, Authority
from server.broker_settings import authority_file
from simulation.experiment import Experiment
from simulation.processes import Federation
from simulation.secure import ROOT_FILE, Secured


def clock() -> float:
    """Unix seconds."""
    return time.time()  # noqa: TID251 - certificates are checked by the clocks of all programs


REPEAT_SECONDS = 3.0


class Parties:
    """Devices of a federation, and what they need to connect."""

    def __init__(
        self, directory: Path, experiment: Experiment, secured: Secured, programs: Federation
    ) -> None:
        """Take a federation that is set up.

        Args:
            directory: for identities, and for the CA of another operator.
            experiment: what is run.
            secured: its ports.
            programs: with the server's store.
        """
        self.topics = Topics(experiment.federation)
        self.data = experiment.server_directory / "data"
        self.written = (experiment.directory / "broker").resolve()
        self.port = int(secured.device["broker"]["port"])
        self.enrolment_port = int(secured.device["enrolment"]["port"])
        self.service_port = int(secured.server["broker"]["port"])
        self.trusted = self.written / authority_file("services")
        self.authority = Authority.open(self.data / DIRECTORY)
        self.foreign = Authority.create(directory / "foreign", experiment.federation, clock())
        self.store = programs.store
        self.root = (experiment.participants[0].directory / ROOT_FILE).read_bytes()
        self.homes = {p.device.id: p.directory for p in experiment.participants}
        self._server = programs.server
        self._identities = directory / "identities"
        self._identities.mkdir()
        self._sessions: dict[str, int] = {}

    def token(self, name: str, *, replacing: bool = False) -> str:
        """A one-time token, as an operator makes it."""
        return self.store.make_tokens([name], clock() + 3600, clock(), replace=replacing)[name]

    def enrol(self, name: str, token: str | None = None, folder: str = "") -> str:
        """Enrol a device as its agent does; what the server said if it refused, else empty.

        Args:
            name: of the device.
            token: None: one is made.
            folder: of its files; the name by default.
        """
        return enrol(
            self._identities / (folder or name),
            name,
            self.token(name) if token is None else token,
            federation=self.topics.federation,
            port=self.enrolment_port,
            trusted=self.trusted,
            root=self.root,
        )

    def home(self, name: str) -> Path:
        """Folder of a device's identity."""
        return self.homes[name] / "state" if name in self.homes else self._identities / name

    def key(self, name: str) -> PrivateKey:
        """What a device signs with."""
        return read(self.home(name) / KEY_FILE)

    def identity(self, name: str) -> Identity:
        """Certificate and TLS key of a device that enrolled."""
        path = self.home(name) / CERTIFICATE_FILE
        return Identity(path, path)

    def files(self, name: str) -> DeviceFiles:
        """The files of a device, made where they are missing."""
        return DeviceFiles(self.home(name), name)

    def issue(self, name: str, *, at: float = 0.0, days: int = 30, foreign: bool = False) -> Identity:
        """A certificate for a device, `at` seconds from now; the server knows nothing of it."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, SHA256())
        authority = self.foreign if foreign else self.authority
        issued = authority.issue_device(request.public_bytes(Encoding.DER), name, clock() + at, days=days)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return self.keep(name, issued.certificate, pem)

    def keep(self, name: str, certificate: bytes, key: bytes) -> Identity:
        """Write a certificate and its key into files of their own."""
        stem = f"{len(list(self._identities.iterdir()))}-{name}"
        identity = Identity(self._identities / f"{stem}.crt", self._identities / f"{stem}.key")
        identity.certificate.write_bytes(certificate)
        identity.key.write_bytes(key)
        return identity

    def client(
        self, identity: Identity | None, client_id: str, port: int | None = None, **choices: Any
    ) -> Client:
        """A client with TLS that has yet to connect, by default to the listener for devices."""
        choices = {"trusted": self.trusted, **choices}
        return Client(port or self.port, client_id, identity=identity, **choices)

    @contextlib.contextmanager
    def connected(self, name: str, *, clean_start: bool = True, **choices: Any) -> Iterator[Client]:
        """A device that enrolled, connected.

        Raises:
            AttackError: it does not get in.
        """
        with self.client(self.identity(name), name, **choices) as client:
            attempt = client.connect(clean_start=clean_start)
            if attempt != Attempt(True, "Success"):
                raise AttackError(f"{name} does not get in: {attempt.reason}")
            yield client

    def state(self, name: str) -> bytes:
        """A signed state of a device that is not there to train."""
        session = self._sessions[name] = self._sessions.get(name, int(clock() * 1000)) + 1
        key = self.key(name)
        return sign_message(DeviceState(False, session, key.public.raw), key, self.topics.up(name, "state"))

    def honest_word(self) -> str:
        """The control: an honest device connects, says something, and the server takes it.

        Raises:
            AttackError: it does not work.
        """
        word = self.state("honest")
        wanted = self._sessions["honest"]

        def heard() -> bool:
            return bool(self.row("honest")["session"] == wanted)

        def say() -> bool:
            # Again and again, as devices do: a server that is just connecting has not subscribed yet.
            with self.connected("honest") as honest:
                answer = honest.publish(self.topics.up("honest", "state"), word)
            if answer != "Success":
                raise AttackError(f"an honest device may not say its state: {answer}")
            deadline = time.monotonic() + REPEAT_SECONDS
            while not heard() and time.monotonic() < deadline:
                time.sleep(0.02)
            return heard()

        self.until(say, "the server takes an honest word")
        return "honest device heard"

    def row(self, name: str) -> dict[str, Any]:
        """What the server knows of a device; empty: it is not registered."""
        return next((row for row in self.store.devices() if row["id"] == name), {})

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for something and return it.

        Raises:
            AttackError: it does not come.
        """
        deadline = time.monotonic() + 2 * PATIENCE_SECONDS
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            time.sleep(0.02)
        raise AttackError(f"waited in vain: {what}; the server says: {self._server.last_words(3)}")
