"""The brokers' configuration: complete, as in the example, and kept up to date without losing anything."""

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from server import broker_config
from server.authority import Authority
from server.broker import BrokerSupervisor
from server.broker_settings import BrokerSettings
from server.certificates import DAY_SECONDS
from server.config import load
from server.errors import ServerError
from tests.server.test_command_line import Operator

NOW = 1_800_000_000.0
EXAMPLE = Path(__file__).parents[2] / "deploy" / "mosquitto"
EXAMPLE_SETTINGS = BrokerSettings("plant", Path("/var/lib/graftwork/broker"))
CERTIFICATES = ("broker.crt", "broker.key", "bridge.crt", "bridge.key")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("data") / "ca", "plant", NOW)


@pytest.fixture
def operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(tmp_path, capsys)


def write(directory: Path, authority: Authority, now: float = NOW, **choices: object) -> BrokerSettings:
    choices = {"hosts": ["broker.example"], **choices}
    return broker_config.write(directory, "plant", authority, now=now, **choices)  # type: ignore[arg-type]


def contents(directory: Path, *names: str) -> list[bytes]:
    return [(directory / name).read_bytes() for name in names]


def revoked(directory: Path) -> set[int]:
    return {entry.serial_number for entry in x509.load_pem_x509_crl((directory / "devices.crl").read_bytes())}


def test_the_example_is_what_the_command_writes() -> None:
    assert {path.name: path.read_text("utf-8") for path in EXAMPLE.iterdir()} == EXAMPLE_SETTINGS.texts()


def test_every_file_that_a_configuration_names_is_there(tmp_path: Path, authority: Authority) -> None:
    write(tmp_path / "broker", authority)
    options = ("cafile", "certfile", "keyfile", "crlfile", "acl_file", "bridge_cafile", "bridge_certfile")
    named = []
    for name in ("mosquitto.conf", "enrolment.conf"):
        for line in (tmp_path / "broker" / name).read_text("utf-8").splitlines():
            option, _, path = line.partition(" ")
            if option in (*options, "bridge_keyfile", "persistence_location"):
                named.append(Path(path))
    assert len(named) == 17
    assert [path for path in named if not path.exists()] == []


def test_what_is_secret_is_for_the_broker_alone(tmp_path: Path, authority: Authority) -> None:
    directory = tmp_path / "broker"
    write(directory, authority)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert stat.S_IMODE(directory.stat().st_mode) == modes.pop("state") == 0o700
    secret = {name for name, mode in modes.items() if mode == 0o600}
    assert secret == {"broker.key", "bridge.key", "enrolment.conf"}
    assert set(modes.values()) == {0o600, 0o644}


def test_the_bridges_id_is_drawn_anew(tmp_path: Path, authority: Authority) -> None:
    first = write(tmp_path / "broker", authority).bridge_id
    assert f"\nlocal_clientid {first}\n" in (tmp_path / "broker" / "enrolment.conf").read_text("utf-8")
    assert first != write(tmp_path / "broker", authority).bridge_id
    assert len(bytes.fromhex(first)) == 16


def test_certificates_stay_while_they_are_good(tmp_path: Path, authority: Authority) -> None:
    write(tmp_path, authority)
    first = contents(tmp_path, *CERTIFICATES)
    write(tmp_path, authority, NOW + 790 * DAY_SECONDS)
    assert contents(tmp_path, *CERTIFICATES) == first
    write(tmp_path, authority, NOW + 796 * DAY_SECONDS)  # 29 days before they end
    assert not set(contents(tmp_path, *CERTIFICATES)) & set(first)


def test_other_hosts_make_another_certificate(tmp_path: Path, authority: Authority) -> None:
    write(tmp_path, authority, hosts=["a.example", "10.0.0.1"])
    first = contents(tmp_path, *CERTIFICATES)
    write(tmp_path, authority, hosts=["10.0.0.1", "a.example", "a.example", "localhost"])
    assert contents(tmp_path, *CERTIFICATES) == first
    write(tmp_path, authority, hosts=["a.example"])
    second = contents(tmp_path, *CERTIFICATES)
    assert [one == other for one, other in zip(first, second, strict=True)] == [False, False, True, True]


@pytest.mark.parametrize("damage", ["another key", "no key", "no certificate", "another CA"])
def test_a_broken_pair_is_made_anew(tmp_path: Path, authority: Authority, damage: str) -> None:
    directory = tmp_path / "broker"
    write(directory, authority)
    first = contents(directory, "broker.key", "broker.crt")
    if damage == "another key":
        (directory / "broker.key").write_bytes((directory / "bridge.key").read_bytes())
    elif damage == "no key":
        (directory / "broker.key").write_bytes(b"")
    elif damage == "no certificate":
        (directory / "broker.crt").unlink()
    else:
        other = Authority.create(tmp_path / "ca", "plant", NOW)
        (directory / "broker.crt").write_bytes(other.issue_broker(["broker.example"], NOW).certificate)
    write(directory, authority)
    assert not set(contents(directory, "broker.key", "broker.crt")) & set(first)


def test_a_revoked_certificate_stays_revoked(tmp_path: Path, authority: Authority) -> None:
    write(tmp_path, authority)
    assert revoked(tmp_path) == set()
    broker_config.write_revocations(tmp_path, authority, [(5, NOW), (6, NOW)], NOW)
    before = contents(tmp_path, "devices.crl")
    write(tmp_path, authority, NOW + 9)
    write(tmp_path, authority, NOW + 9, revocations=authority.revocation_list([(5, NOW)], NOW))
    assert contents(tmp_path, "devices.crl") == before
    write(tmp_path, authority, NOW + 9, revocations=authority.revocation_list([(7, NOW)], NOW))
    assert revoked(tmp_path) == {5, 6, 7}
    broker_config.write_revocations(tmp_path, authority, [(7, NOW)], NOW)  # the server knows what has ended
    assert revoked(tmp_path) == {7}


def test_a_damaged_revocation_list_is_not_taken_for_an_empty_one(
    tmp_path: Path, authority: Authority
) -> None:
    write(tmp_path, authority)
    (tmp_path / "devices.crl").write_bytes(b"-----BEGIN X509 CRL-----\n")
    with pytest.raises(ServerError, match="not a revocation list"):
        write(tmp_path, authority)
    with pytest.raises(ServerError, match="expected a revocation list in PEM"):
        write(tmp_path / "other", authority, revocations=b"x")


def test_the_list_of_a_ca_that_was_replaced_goes(tmp_path: Path, authority: Authority) -> None:
    other = Authority.create(tmp_path / "ca", "plant", NOW)
    directory = tmp_path / "broker"
    write(directory, other, revocations=other.revocation_list([(5, NOW)], NOW))
    write(directory, authority)
    key = authority.certificate("devices").public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    crl = x509.load_pem_x509_crl((directory / "devices.crl").read_bytes())
    assert crl.is_signature_valid(key)
    assert revoked(directory) == set()


def test_without_enrolment_there_is_no_enrolment_broker(tmp_path: Path, authority: Authority) -> None:
    write(tmp_path, authority)
    write(tmp_path, authority, enrolment_port=0)
    assert [path.name for path in tmp_path.glob("*.conf")] == ["mosquitto.conf"]


def test_choices_are_in_the_text(tmp_path: Path) -> None:
    def text(**choices: object) -> str:
        settings = BrokerSettings("plant", tmp_path, **choices)  # type: ignore[arg-type]
        return "".join(settings.texts().values())

    assert "\nrequire_certificate false\n" in text()
    assert "\nrequire_certificate false\n" not in text(require_claim=True)
    assert "\nlog_type debug\n" not in text(audit=False)
    assert "\nlistener 8883\n" in text()
    assert "\nlistener 1 10.0.0.1\n" in text(port=1, bind="10.0.0.1")
    assert "\naddress 127.0.0.1:8885\n" in text(service_bind="0.0.0.0")  # noqa: S104
    assert "\naddress 10.0.0.2:5\n" in text(service_bind="10.0.0.2", service_port=5)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"port": 8884}, "different ones"),
        ({"port": 0}, "different ones"),
        ({"port": 65536}, "1 to 65535"),
        ({"bind": "all"}, "expected an IP address to listen on, got 'all'"),
        ({"bind": "0.0.0.0\nallow_anonymous true"}, "expected an IP address"),
        ({"service_bind": ""}, "got none"),
        ({"service_bind": "::1"}, "IPv4"),
        ({"hosts": []}, "at least one host"),
        ({"hosts": ["a b"]}, "host name or IP address"),
    ],
)
def test_a_wrong_choice_is_told(
    tmp_path: Path, authority: Authority, choices: dict[str, object], message: str
) -> None:
    with pytest.raises(ServerError, match=message):
        write(tmp_path / "broker", authority, **choices)


def test_a_directory_cannot_carry_an_option(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(ServerError, match="printable"):
        write(tmp_path / "a\nallow_anonymous true", authority)


def test_another_federations_ca_is_refused(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(ServerError, match="expected the CA of 'farm', got that of 'plant'"):
        broker_config.write(tmp_path, "farm", authority, hosts=["a"], now=NOW)


def test_a_supervisor_needs_a_configuration_with_a_listener(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"mosquitto\.conf: No such file .*broker-config"):
        BrokerSupervisor(tmp_path, configuration=tmp_path / "mosquitto.conf")
    with pytest.raises(ServerError, match=r"expected a mosquitto\.conf with a listener"):
        BrokerSupervisor(tmp_path, configuration=tmp_path)


def test_an_operator_sets_up_ca_and_broker(operator: Operator) -> None:
    folder = operator.folder
    assert "run `graftwork-server ca init`" in operator.mistake("ca", "show")
    status, out, _ = operator("ca", "init", "--days", "1000")
    assert (status, "good until" in out) == (0, True)
    assert "never overwritten" in operator.mistake("ca", "init")
    rows = operator.table("ca", "show")
    assert [row["ca"] for row in rows] == ["devices", "services", "claims"]
    assert rows[0]["subject"] == "CN=graftwork-devices-ca,O=pumps"
    assert "graftwork-devices" in operator("ca", "show")[1]
    status, out, _ = operator(
        "broker-config", str(folder / "mq"), "--host", "broker.example", "--port", "9000"
    )
    assert status == 0
    for program in ("mosquitto.conf", "enrolment.conf"):
        assert f"  mosquitto -c {folder / 'mq' / program}\n" in out
    server, agent = (text.split("\n\n")[0] for text in out.split("[broker]\n")[1:])
    assert agent.splitlines() == ['host = "broker.example"', "port = 9000", 'tls_ca = "services-ca.crt"']
    operator.configure(f"[broker]\n{server}\n")
    broker = load(folder / "server.toml").broker
    assert (broker.host, broker.port) == ("127.0.0.1", 8885)
    for path in (broker.tls_ca, broker.tls_certificate, broker.tls_key):
        assert Path(path).is_file()
    assert stat.S_IMODE(Path(broker.tls_key).stat().st_mode) == 0o600
    _, out, _ = operator("broker-config", str(folder / "mq"), "--host", "a", "--enrolment-port", "0")
    assert "enrolment.conf" not in out


def test_an_operator_makes_a_claim_certificate_once(operator: Operator) -> None:
    operator("ca", "init")
    output = operator.folder / "claims"
    assert "expected: ca claim NAME --output DIR" in operator.mistake("ca", "claim", "batch-1")
    assert "expected: ca show, got a name" in operator.mistake("ca", "show", "batch-1")
    assert operator("ca", "claim", "batch-1", "--output", str(output))[0] == 0
    assert stat.S_IMODE((output / "batch-1.key").stat().st_mode) == 0o600
    assert "holds a claim 'batch-1' already" in operator.mistake(
        "ca", "claim", "batch-1", "--output", str(output)
    )
    assert "name of the claim" in operator.mistake("ca", "claim", "../x", "--output", str(output))
