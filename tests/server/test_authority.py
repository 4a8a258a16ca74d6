"""Certificates: what is granted, what is refused, and what is on disk when something crashes."""

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from server import authority_files
from server.authority import KINDS, Authority
from server.certificates import CLOCK_LAG_SECONDS, DAY_SECONDS, CertificateRequestError, moment, request_key
from server.errors import ServerError

NOW = 1_800_000_000.5
KEY = ec.generate_private_key(ec.SECP256R1())


def request(key: object = KEY, name: str = "whatever", *extensions: x509.ExtensionType) -> bytes:
    builder = x509.CertificateSigningRequestBuilder()
    builder = builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("data") / "ca", "plant", NOW)


def value(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> x509.ExtensionType:
    return certificate.extensions.get_extension_for_class(kind).value


def common_name(certificate: x509.Certificate) -> str:
    [attribute] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attribute.value)


@pytest.mark.parametrize("key", [KEY, ed25519.Ed25519PrivateKey.generate()], ids=["P-256", "Ed25519"])
def test_a_device_gets_a_certificate_for_its_key_and_name(
    authority: Authority, key: ec.EllipticCurvePrivateKey
) -> None:
    issued = authority.issue_device(request(key), "pump-1", NOW, days=90)
    certificate = x509.load_pem_x509_certificate(issued.certificate)
    certificate.verify_directly_issued_by(authority.certificate("devices"))
    assert certificate.public_key() == key.public_key()
    assert certificate.subject.rfc4514_string() == "CN=pump-1,O=plant"
    assert certificate.serial_number == issued.serial
    assert 0 < issued.serial < 2**159
    assert issued.not_before == certificate.not_valid_before_utc.timestamp() == int(NOW - CLOCK_LAG_SECONDS)
    assert issued.not_after == certificate.not_valid_after_utc.timestamp() == int(NOW + 90 * DAY_SECONDS)
    assert list(value(certificate, x509.ExtendedKeyUsage)) == [ExtendedKeyUsageOID.CLIENT_AUTH]  # type: ignore[call-overload]


def test_what_a_request_asks_for_beside_its_key_is_ignored(authority: Authority) -> None:
    greedy = request(
        KEY,
        "graftwork-server-plant",
        x509.BasicConstraints(ca=True, path_length=None),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.SubjectAlternativeName([x509.DNSName("broker.example")]),
    )
    certificate = x509.load_pem_x509_certificate(
        authority.issue_device(greedy, "pump-1", NOW, days=1).certificate
    )
    assert common_name(certificate) == "pump-1"
    assert value(certificate, x509.BasicConstraints) == x509.BasicConstraints(ca=False, path_length=None)
    assert value(certificate, x509.ExtendedKeyUsage) == x509.ExtendedKeyUsage(
        [ExtendedKeyUsageOID.CLIENT_AUTH]
    )
    usage = value(certificate, x509.KeyUsage)
    assert isinstance(usage, x509.KeyUsage)
    assert (usage.digital_signature, usage.key_cert_sign, usage.crl_sign) == (True, False, False)
    with pytest.raises(x509.ExtensionNotFound):
        value(certificate, x509.SubjectAlternativeName)


def test_serials_are_never_the_same(authority: Authority) -> None:
    asked = request()
    assert len({authority.issue_device(asked, "pump-1", NOW, days=1).serial for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "in DER"),
        (b"\x30\x80" * 1000, "in DER"),
        (b"x" * 8193, "at most 8192 bytes, got 8193"),
        (request() + b"\0", "in DER"),
        (request(rsa.generate_private_key(65537, 2048)), "P-256 or Ed25519"),
        (request(ec.generate_private_key(ec.SECP384R1())), "P-256 or Ed25519"),
        (request()[:-1] + bytes([request()[-1] ^ 1]), "not signed by the key"),
    ],
    ids=["empty", "nested", "large", "trailing byte", "RSA", "P-384", "signature of another"],
)
def test_a_request_that_is_not_one_is_refused(authority: Authority, data: bytes, message: str) -> None:
    with pytest.raises(CertificateRequestError, match=message):
        authority.issue_device(data, "pump-1", NOW, days=1)


@given(st.binary(max_size=300))
@example(b"\x30\x03\x02\x01\x00")
def test_hostile_bytes_are_no_request(data: bytes) -> None:
    with pytest.raises(CertificateRequestError):
        request_key(data)


_GOOD = request(KEY, "pump-1", x509.SubjectAlternativeName([x509.DNSName("a.example")]))


@given(st.integers(0, len(_GOOD) - 1), st.integers(1, 255))
def test_a_request_with_one_byte_changed_never_passes(position: int, change: int) -> None:
    data = bytearray(_GOOD)
    data[position] ^= change
    with pytest.raises(CertificateRequestError):
        request_key(bytes(data))


@pytest.mark.parametrize(
    "device",
    [
        "",
        "+",
        "#",
        "a/b",
        "%u",
        "a b",
        "a\n",
        "pump-1\0",
        "ü",
        "x" * 65,
        "graftwork-server-plant",
        "graftwork-",
    ],
)
def test_a_name_that_could_pass_for_another_is_refused(authority: Authority, device: str) -> None:
    with pytest.raises(CertificateRequestError):
        authority.issue_device(request(), device, NOW, days=1)


@given(st.text(st.sampled_from("abzAZ09_.-"), min_size=1, max_size=64))
def test_every_name_of_a_topic_level_is_granted_as_it_is(authority: Authority, device: str) -> None:
    issued = authority.issue_device(request(), device, NOW, days=1)
    assert common_name(x509.load_pem_x509_certificate(issued.certificate)) == device


def test_a_certificate_ends_with_the_ca_at_the_latest(tmp_path: Path) -> None:
    short = Authority.create(tmp_path / "ca", "plant", NOW, days=10)
    end = int(NOW + 10 * DAY_SECONDS)
    assert short.issue_device(request(), "pump-1", NOW, days=90).not_after == end
    assert short.issue_device(request(), "pump-1", end - 1, days=90).not_after == end
    with pytest.raises(ServerError, match=r"ended at .*run `graftwork-server ca init`"):
        short.issue_device(request(), "pump-1", end, days=90)


@pytest.mark.parametrize("days", [0, -1, 36501])
def test_days_are_bounded(authority: Authority, days: int) -> None:
    with pytest.raises(ServerError, match=f"expected 1 to 36500, got {days}"):
        authority.issue_device(request(), "pump-1", NOW, days=days)


def test_the_brokers_certificate_is_good_for_its_hosts(authority: Authority) -> None:
    credential = authority.issue_broker(["broker.example", "10.0.0.1", "::1"], NOW)
    certificate = x509.load_pem_x509_certificate(credential.certificate)
    certificate.verify_directly_issued_by(authority.certificate("services"))
    names = value(certificate, x509.SubjectAlternativeName)
    assert [str(name.value) for name in names] == ["broker.example", "10.0.0.1", "::1"]  # type: ignore[attr-defined]
    assert value(certificate, x509.ExtendedKeyUsage) == x509.ExtendedKeyUsage(
        [ExtendedKeyUsageOID.SERVER_AUTH]
    )


@pytest.mark.parametrize("host", ["", "a b", "-x y", "a/b", "*", "a..b", "x" * 64, "bröker"])
def test_a_host_must_be_a_name_or_an_address(authority: Authority, host: str) -> None:
    with pytest.raises(ServerError, match="host name or IP address"):
        authority.issue_broker([host], NOW)


def test_a_broker_without_hosts_is_refused(authority: Authority) -> None:
    with pytest.raises(ServerError, match="at least one host"):
        authority.issue_broker([], NOW)


def test_services_and_claims_have_certificates_of_their_own_ca(authority: Authority) -> None:
    made = {
        "graftwork-server-plant": ("services", authority.issue_server(NOW)),
        "graftwork-bridge-plant": ("services", authority.issue_bridge(NOW)),
        "claim-batch-7": ("claims", authority.issue_claim("batch-7", NOW, 30)),
    }
    for name, (kind, credential) in made.items():
        certificate = x509.load_pem_x509_certificate(credential.certificate)
        certificate.verify_directly_issued_by(authority.certificate(kind))
        assert common_name(certificate) == name
        key = load_pem_private_key(credential.key, None)
        assert key.public_key() == certificate.public_key()
        assert "PRIVATE" not in repr(credential)
    with pytest.raises(ServerError, match="name of the claim"):
        authority.issue_claim("a/b", NOW, 1)
    with pytest.raises(ServerError, match="at most 64 characters"):
        authority.issue_claim("x" * 64, NOW, 1)


def test_no_ca_signed_another(authority: Authority) -> None:
    certificates = {kind: authority.certificate(kind) for kind in KINDS}
    for kind, certificate in certificates.items():
        assert value(certificate, x509.BasicConstraints) == x509.BasicConstraints(ca=True, path_length=0)
        assert certificate.public_bytes(Encoding.PEM) == authority.trusted(kind)
        certificate.verify_directly_issued_by(certificate)
        for other in KINDS:
            if other != kind:
                with pytest.raises((InvalidSignature, ValueError)):
                    certificate.verify_directly_issued_by(certificates[other])


def revoked(crl: bytes) -> dict[int, float]:
    return {
        entry.serial_number: entry.revocation_date_utc.timestamp() for entry in x509.load_pem_x509_crl(crl)
    }


def test_a_revocation_list_lasts_as_long_as_the_ca(authority: Authority) -> None:
    crl = authority.revocation_list([(7, NOW - 5), (2**159 - 1, NOW - 9)], NOW)
    found = x509.load_pem_x509_crl(crl)
    devices = authority.certificate("devices")
    key = devices.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert found.is_signature_valid(key)
    assert (found.issuer, found.next_update_utc) == (devices.subject, devices.not_valid_after_utc)
    assert revoked(crl) == {7: int(NOW - 5), 2**159 - 1: int(NOW - 9)}
    assert revoked(authority.revocation_list([], NOW)) == {}


@given(st.lists(st.floats(0, 3), min_size=2, max_size=30))
def test_each_revocation_list_begins_after_the_one_before_and_not_in_the_future(
    authority: Authority, waits: list[float]
) -> None:
    now, crl, before = NOW, b"", 0.0
    for wait in waits:
        now += wait
        crl = authority.revocation_list([], now, previous=crl)
        begins = x509.load_pem_x509_crl(crl).last_update_utc.timestamp()
        assert before < begins <= now
        before = begins


def test_a_revocation_list_of_a_clock_that_was_wrong_does_not_stop_the_fleet(authority: Authority) -> None:
    future = authority.revocation_list([(7, NOW)], NOW + 1e6)
    crl = authority.revocation_list([(7, NOW)], NOW, previous=future)
    assert x509.load_pem_x509_crl(crl).last_update_utc <= moment(NOW)


def test_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    Authority.create(tmp_path / "data" / "ca", "plant", NOW)
    directory = tmp_path / "data" / "ca"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == {f"{kind}.key": 0o600 for kind in KINDS} | {f"{kind}.crt": 0o644 for kind in KINDS}


def test_a_ca_is_read_again_and_never_overwritten(tmp_path: Path) -> None:
    made = Authority.create(tmp_path / "ca", "plant", NOW)
    found = Authority.open(tmp_path / "ca")
    assert (found.federation, found.trusted("claims")) == ("plant", made.trusted("claims"))
    with pytest.raises(ServerError, match="never overwritten"):
        Authority.create(tmp_path / "ca", "plant", NOW)
    assert Authority.open(tmp_path / "ca").trusted("devices") == made.trusted("devices")


@pytest.mark.parametrize("after", range(6))
def test_a_crash_while_it_is_made_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    written: list[Path] = []
    whole = authority_files.whole_files.write

    def crash(path: Path, data: bytes, mode: int) -> None:
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(path)
        whole(path, data, mode)

    with monkeypatch.context() as patch:
        patch.setattr(authority_files.whole_files, "write", crash)
        with pytest.raises(KeyboardInterrupt):
            Authority.create(tmp_path / "ca", "plant", NOW)
    with pytest.raises(ServerError, match="run `graftwork-server ca init`"):
        Authority.open(tmp_path / "ca")
    Authority.create(tmp_path / "ca", "plant", NOW)
    assert [path.name for path in tmp_path.iterdir()] == ["ca"]


def test_a_federation_whose_name_fits_no_certificate_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="choose a shorter one"):
        Authority.create(tmp_path / "ca", "x" * 48, NOW)
    assert list(tmp_path.iterdir()) == []
    Authority.create(tmp_path / "ca", "x" * 47, NOW).issue_bridge(NOW)


def test_damaged_files_are_named_and_never_quoted(tmp_path: Path) -> None:
    directory = tmp_path / "ca"
    Authority.create(directory, "plant", NOW)
    other = Authority.create(tmp_path / "other", "plant", NOW)
    (directory / "claims.crt").write_bytes(other.trusted("claims"))
    with pytest.raises(ServerError, match=r"not that of claims\.key"):
        Authority.open(directory)
    (directory / "services.key").write_text("hush", "ascii")
    with pytest.raises(ServerError, match=r"services\.key: not what") as error:
        Authority.open(directory)
    assert error.value.__cause__ is None
    (directory / "devices.key").unlink()
    with pytest.raises(ServerError, match=r"devices\.key: No such file .* backup"):
        Authority.open(directory)


def test_cas_of_two_federations_are_not_mixed(tmp_path: Path) -> None:
    Authority.create(tmp_path / "ca", "plant", NOW)
    Authority.create(tmp_path / "other", "farm", NOW)
    for ending in ("key", "crt"):
        (tmp_path / "other" / f"claims.{ending}").replace(tmp_path / "ca" / f"claims.{ending}")
    with pytest.raises(ServerError, match="different federations"):
        Authority.open(tmp_path / "ca")
