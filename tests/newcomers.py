"""Devices that enrol, and the server's side of it, in memory: real stores, keys, authority and messages."""

from collections.abc import Callable
from pathlib import Path

from agent.enrolment import Enrolment as NewcomersEnrolment
from agent.identity import Identity
from agent.keyring import Keyring
from agent.store import Store as AgentStore
from protocol.errors import ProtocolError
from protocol.identity import CertificateResponse, EnrolmentRequest, Trust
from protocol.messages import peek, sign_message
from protocol.sealing import SealingKey, unseal
from protocol.signing import PrivateKey
from protocol.topics import Topics
from server.authority import DIRECTORY, Authority
from server.enrolment import Enrolment
from server.store import Store
from tests.builders import SEALING, Clock, private_key
from tests.server.databases import Database, sqlite

TOPICS = Topics("pumps")
SERVER = private_key(100)
NOW = 1_800_000_000.0
DAY = 86_400.0
Act = Callable[[], None]


class Registrar:
    """A server that does nothing but let devices in; `restart` kills it and starts another one."""

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        *,
        mode: str = "token",
        database: Database = sqlite,
        authority: bool = True,
    ) -> None:
        self.directory, self.clock, self.mode, self.url = directory, clock, mode, database(directory)
        self.key, self.sealing = SERVER, [SEALING]
        if authority:
            Authority.create(directory / DIRECTORY, "pumps", clock())
        self.issued: list[str] = []
        self.refusals: list[str] = []
        self.fail: Act = lambda: None
        """Called when a certificate is made, before it is committed."""
        self.start()

    def start(self) -> None:
        self.store = Store(self.directory, self.url)
        directory = self.directory / DIRECTORY
        self.authority = Authority.open(directory) if directory.exists() else None
        self.enrolment = Enrolment(
            self.store,
            self if self.authority else None,  # type: ignore[arg-type]
            self.sealing,
            self.clock,
            mode=self.mode,
            days=60,
        )

    def restart(self) -> None:
        self.store.close()
        self.start()

    def issue_device(self, csr_der: bytes, device: str, now: float, *, days: int) -> object:
        assert self.authority is not None
        issued = self.authority.issue_device(csr_der, device, now, days=days)
        self.fail()
        self.issued.append(device)
        return issued

    def token(self, device: str = "pump-1", *, days: float = 90, replace: bool = False) -> str:
        now = self.clock()
        return self.store.make_tokens([device], now + days * DAY, now, replace=replace)[device]

    def trust(self, sealing: SealingKey | None = None) -> bytes:
        now = self.clock()
        word = Trust((), (sealing or self.sealing[0]).public.raw, now, now + 90 * DAY)
        return sign_message(word, self.key, TOPICS.all("trust"))

    def answer(self, topic: str, payload: bytes) -> bytes | None:
        """The signed answer on the nonce's topic; None: there is none."""
        nonce = TOPICS.parse_enrolment(topic)
        assert nonce is not None
        try:
            _, response = self.enrolment.enrol(topic, payload)
        except ProtocolError as error:
            self.refusals.append(str(error))
            return None
        return sign_message(response, self.key, TOPICS.enroll(nonce, "response"))


class Newcomer:
    """A device in a folder; `restart` kills it and starts another one."""

    def __init__(self, folder: Path, clock: Clock, name: str = "pump-1", token: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.clock, self.name, self.token = folder, clock, name, token
        self.sent: list[tuple[str, bytes]] = []
        self.start()

    def start(self) -> None:
        self.store = AgentStore(self.folder / "agent.sqlite")
        self.identity = Identity(self.folder, self.name)
        self.keyring = Keyring(self.store, "pumps", self.clock, server_key=SERVER.public.raw.hex())
        self.program = NewcomersEnrolment(
            self.name,
            TOPICS,
            self._publish,
            self.clock,
            identity=self.identity,
            keyring=self.keyring,
            token=self.token,
        )

    def close(self) -> None:
        self.store.close()

    def restart(self) -> None:
        self.close()
        self.sent.clear()
        self.start()

    @property
    def key(self) -> PrivateKey:
        return self.identity.key()

    def _publish(self, topic: str, payload: bytes, retain: bool) -> bool:
        assert not retain
        self.sent.append((topic, payload))
        return True

    def hear(self, registrar: Registrar) -> None:
        """Connect, and hear what is retained."""
        self.program.connected()
        self.program.handle(TOPICS.all("trust"), registrar.trust())

    def asked(self) -> list[tuple[str, bytes]]:
        """What it asks at the next tick."""
        self.program.tick()
        sent, self.sent[:] = list(self.sent), []
        return sent

    def request(self) -> tuple[str, bytes]:
        """The one thing that it asks."""
        [asked] = self.asked()
        return asked

    def told(self, response: bytes | CertificateResponse, key: PrivateKey = SERVER, nonce: str = "") -> None:
        """Receive an answer."""
        topic = TOPICS.enroll(nonce or self.program.nonce, "response")
        payload = response if isinstance(response, bytes) else sign_message(response, key, topic)
        self.program.handle(topic, payload)

    def enrol(self, registrar: Registrar) -> bool:
        """Ask once and hear the answer; whether there is a certificate now."""
        self.hear(registrar)
        for topic, payload in self.asked():
            answer = registrar.answer(topic, payload)
            if answer is not None:
                self.told(answer)
        return self.program.finished


def opened(topic: str, payload: bytes, key: SealingKey = SEALING) -> tuple[bytes, EnrolmentRequest]:
    """(envelope, request) of what a newcomer sent, whose signature is not looked at."""
    envelope = unseal(payload, [key], topic, limit=1 << 16).plaintext
    return envelope, peek(EnrolmentRequest, envelope)
