"""A run as in production: what is set up is what the programs read, and lets each device in once."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent import config as agent_config
from agent.identity import Identity
from protocol.errors import TrustError
from protocol.trust import first_root
from runtime.keys import read
from server import config as server_config
from server.admission import Claim
from server.authority import DIRECTORY, Authority
from server.errors import ServerError
from server.identities import NewCertificate, Refused
from server.keys import SIGNING_FILE, ServerKeys
from server.store import Store
from simulation.experiment import Experiment, Participant, Settings, write_configurations
from simulation.secure import HOLDERS, ROOT_FILE, THRESHOLD, TOKEN_FILE, Secured, secure

NAMES = ("pump-1", "pump-2")


class Run:
    """A run directory that was set up."""

    def __init__(self, directory: Path) -> None:
        device: Any = SimpleNamespace
        self.experiment = Experiment(
            directory,
            device(),
            Settings(),
            tuple(Participant(device(id=name), directory / "devices" / name, 9, 9, 9) for name in NAMES),
            (),
        )
        data = self.data
        data.mkdir(parents=True)
        (directory / "broker").mkdir(exist_ok=True)
        (directory / "root-keys").mkdir()
        self.keys = ServerKeys.load_or_make(data, "x25519")
        self.secured: Secured = secure(self.experiment, self.keys.signing.public)
        write_configurations(
            self.experiment, 1883, "auto",
            server_changes=self.secured.server, device_changes=self.secured.device,
        )  # fmt: skip

    @property
    def data(self) -> Path:
        return self.experiment.server_directory / "data"

    def folder(self, name: str) -> Path:
        return self.experiment.directory / "devices" / name


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_the_server_reads_its_configuration_and_finds_every_file(run: Run) -> None:
    config = server_config.load(run.experiment.server_directory / "server.toml")
    assert config.enrolment == "token"
    for path in (config.broker.tls_ca, config.broker.tls_certificate, config.broker.tls_key):
        assert Path(path).is_file()
    assert (Path(config.trust.broker_directory) / "mosquitto.conf").is_file()
    assert Authority.open(Path(config.data_directory) / DIRECTORY).federation == config.federation


@pytest.mark.parametrize("name", NAMES)
def test_a_device_reads_its_configuration_and_finds_every_file(run: Run, name: str) -> None:
    config = agent_config.load(run.folder(name) / "agent.toml")
    assert (config.device, config.server_key) == (name, "")
    for path in (config.root, config.broker.tls_ca, config.enrolment.token_file):
        assert Path(path).is_file()
    assert config.enrolment.port not in (0, config.broker.port)
    assert not (Path(config.identity_directory) / "identity.pem").exists()  # it enrols


def test_two_of_three_holders_signed_the_root(run: Run) -> None:
    data = (run.folder(NAMES[0]) / ROOT_FILE).read_bytes()
    root = first_root(data)
    assert (root.federation, root.version) == (run.experiment.federation, 1)
    assert root.server_keys == (run.keys.signing.public,)
    keys = [read(run.experiment.directory / "root-keys" / f"{holder}.key") for holder in HOLDERS]
    signers = {signature["keyid"] for signature in json.loads(data)["signatures"]}
    assert signers == {key.public.raw.hex() for key in keys[:THRESHOLD]}
    for key in keys[:THRESHOLD]:
        with pytest.raises(TrustError):
            first_root(data.replace(key.public.raw.hex().encode(), b"0" * 64))
    store = Store(run.data)
    newest = store.newest_root()
    store.close()
    assert newest is not None
    assert newest.data == data
    assert ServerKeys.load_or_make(run.data, "x25519", newest).signing.public == run.keys.signing.public


def test_each_token_lets_its_device_in_once(run: Run) -> None:
    store, authority = Store(run.data), Authority.open(run.data / DIRECTORY)
    now = authority.certificate("devices").not_valid_before_utc.timestamp() + 7200
    for name, other in zip(NAMES, reversed(NAMES), strict=True):
        path = run.folder(name) / TOKEN_FILE
        assert path.stat().st_mode & 0o777 == 0o600
        token = path.read_text("ascii").strip()
        identity = Identity(run.folder(name) / "state", name)
        csr = identity.signing_request()

        def issue(csr: bytes = csr, name: str = name) -> NewCertificate:
            issued = authority.issue_device(csr, name, now, days=60)
            return NewCertificate(issued.serial, b"r" * 32, issued.not_after, issued.certificate)

        with pytest.raises(Refused):
            store.enrol(Claim(other, identity.key().public, token, b"r" * 32), now, issue, approval=False)
        claim = Claim(name, identity.key().public, token, b"r" * 32)
        identity.adopt(store.enrol(claim, now, issue, approval=False))
        assert identity.validity() is not None
    store.close()


def test_a_directory_that_holds_a_run_is_left_alone(run: Run) -> None:
    before = (run.data / DIRECTORY / "devices.key").read_bytes()
    with pytest.raises(ServerError, match="never overwritten"):
        secure(run.experiment, run.keys.signing.public)
    assert (run.data / DIRECTORY / "devices.key").read_bytes() == before
    assert (run.data / SIGNING_FILE).exists()
