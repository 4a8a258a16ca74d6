"""The device's keys on disk: for itself alone, and whole whatever crashes at which write."""

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from agent import identity as identities
from agent.config import CERTIFICATE_FILE, KEY_FILE
from agent.identity import Identity, Validity
from runtime.errors import SetupError
from server.authority import Authority

NOW = 1_800_000_000.0
NEXT_KEY, NEXT_REQUEST = "next.key", "next.csr"


class Folder:
    """A device's folder, and the authority that answers it."""

    def __init__(self, path: Path, authority: Authority) -> None:
        self.path, self.authority = path, authority

    def identity(self) -> Identity:
        """As after a start."""
        return Identity(self.path, "pump-1")

    def answer(self, request: bytes, *, days: int = 60) -> bytes:
        return self.authority.issue_device(request, "pump-1", NOW, days=days).certificate

    def names(self) -> set[str]:
        return {path.name for path in self.path.iterdir()}

    def check(self) -> None:
        """What lies there is a key with its own certificate."""
        pem = (self.path / CERTIFICATE_FILE).read_bytes()
        key, certificate = load_pem_private_key(pem, None), x509.load_pem_x509_certificate(pem)
        assert key.public_key() == certificate.public_key()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("data") / "ca", "pumps", NOW)


@pytest.fixture
def folder(tmp_path: Path, authority: Authority) -> Folder:
    return Folder(tmp_path / "identity", authority)


def public(request: bytes) -> bytes:
    key = x509.load_der_x509_csr(request).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_all_that_is_secret_is_for_its_owner_alone(folder: Folder) -> None:
    identity = folder.identity()
    identity.key()
    identity.signing_request()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.path.iterdir()}
    assert modes == {KEY_FILE: 0o600, NEXT_KEY: 0o600, NEXT_REQUEST: 0o600}
    identity.adopt(folder.answer(identity.signing_request()))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.path.iterdir()}
    assert modes == {KEY_FILE: 0o600, CERTIFICATE_FILE: 0o600}
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_the_signing_key_is_made_once(folder: Folder) -> None:
    assert folder.identity().key().public == folder.identity().key().public


def test_a_request_is_the_same_until_it_is_answered(folder: Folder) -> None:
    identity = folder.identity()
    assert identity.pending_request() == b""
    request = identity.signing_request()
    assert {identity.signing_request(), folder.identity().signing_request(), identity.pending_request()} == {
        request
    }
    found = x509.load_der_x509_csr(request)
    assert found.is_signature_valid
    [name] = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "pump-1"
    identity.adopt(folder.answer(request))
    assert identity.pending_request() == b""
    assert public(identity.signing_request()) != public(request)  # the next one has a key of its own


def test_a_certificate_is_taken_with_its_time(folder: Folder) -> None:
    identity = folder.identity()
    assert identity.validity() is None
    taken = identity.adopt(folder.answer(identity.signing_request()))
    assert taken == identity.validity() == Validity(NOW - 3600, NOW + 60 * 86_400)
    assert taken.renew_at == pytest.approx(NOW + 40 * 86_400, abs=3600)
    folder.check()


def test_the_certificate_before_stays_until_the_next_one_is_here(folder: Folder) -> None:
    identity = folder.identity()
    identity.adopt(folder.answer(identity.signing_request()))
    before = (folder.path / CERTIFICATE_FILE).read_bytes()
    request = identity.signing_request()
    assert (folder.path / CERTIFICATE_FILE).read_bytes() == before
    identity.adopt(folder.answer(request, days=30))
    assert identity.validity() == Validity(NOW - 3600, NOW + 30 * 86_400)
    folder.check()


def test_a_certificate_for_another_key_is_refused(folder: Folder, tmp_path: Path) -> None:
    identity = folder.identity()
    request = identity.signing_request()
    other = Identity(tmp_path / "other", "pump-1").signing_request()
    with pytest.raises(SetupError, match="for another key than was asked for"):
        identity.adopt(folder.answer(other))
    assert (identity.validity(), identity.pending_request()) == (None, request)


@pytest.mark.parametrize(
    "data", [b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"]
)
def test_what_is_no_certificate_is_refused(folder: Folder, data: bytes) -> None:
    identity = folder.identity()
    request = identity.signing_request()
    with pytest.raises(SetupError, match="cannot be used"):
        identity.adopt(data)
    assert (identity.validity(), identity.pending_request()) == (None, request)


def test_a_certificate_that_nobody_asked_for_is_refused(folder: Folder, tmp_path: Path) -> None:
    other = Identity(tmp_path / "other", "pump-1").signing_request()
    with pytest.raises(SetupError, match="cannot be used"):
        folder.identity().adopt(folder.answer(other))
    assert folder.names() == set()


def test_a_damaged_certificate_file_is_named(folder: Folder) -> None:
    identity = folder.identity()
    (folder.path / CERTIFICATE_FILE).write_bytes(b"hush")
    with pytest.raises(SetupError, match=r"identity\.pem: expected a key and a certificate") as error:
        identity.validity()
    assert "hush" not in str(error.value)


class Crash(BaseException):
    """Ends the program where it stands."""


class Power:
    """Goes off before or after a given one of the writes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.moments, self.off_at = 0, -1
        patch.setattr(identities, "write", self._around(identities.write))
        patch.setattr(Path, "unlink", self._around(Path.unlink))

    def _around(self, act: Callable[..., None]) -> Callable[..., None]:
        def acted(*arguments: object, **keywords: object) -> None:
            self._moment()
            act(*arguments, **keywords)
            self._moment()

        return acted

    def _moment(self) -> None:
        self.moments += 1
        if self.moments == self.off_at:
            raise Crash


@pytest.fixture
def power(monkeypatch: pytest.MonkeyPatch) -> Iterator[Power]:
    return Power(monkeypatch)


def crashes(power: Power, act: Callable[[], object]) -> bool:
    try:
        act()
    except Crash:
        return True
    finally:
        power.off_at = -1
    return False


def goes_on(folder: Folder) -> None:
    """After the start: ask, be answered, and have a certificate; then do it once more."""
    for _ in range(2):
        request = folder.identity().signing_request()
        assert folder.identity().signing_request() == request
        folder.identity().adopt(folder.answer(request))
        folder.check()
        assert folder.identity().validity() is not None


@pytest.mark.parametrize("left", ["nothing", "a certificate", "what a crash left"])
@pytest.mark.parametrize("moment", range(1, 9))
def test_a_crash_while_a_request_is_made(folder: Folder, power: Power, left: str, moment: int) -> None:
    if left != "nothing":
        request = folder.identity().signing_request()
        key = (folder.path / NEXT_KEY).read_bytes()
        folder.identity().adopt(folder.answer(request))
        if left == "what a crash left":
            (folder.path / NEXT_KEY).write_bytes(key)
            (folder.path / NEXT_REQUEST).write_bytes(request)
    power.moments, power.off_at = 0, moment
    assert crashes(power, folder.identity().signing_request)
    goes_on(folder)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("moment", range(1, 8))
def test_a_crash_while_a_certificate_is_adopted(
    folder: Folder, power: Power, first: bool, moment: int
) -> None:
    if not first:
        folder.identity().adopt(folder.answer(folder.identity().signing_request(), days=30))
    request = folder.identity().signing_request()
    certificate = folder.answer(request)
    power.moments, power.off_at = 0, moment
    assert crashes(power, lambda: folder.identity().adopt(certificate))
    identity = folder.identity()
    if moment == 1:  # nothing was written
        assert identity.pending_request() == request
        identity.adopt(folder.answer(request))
    assert identity.validity() == Validity(NOW - 3600, NOW + 60 * 86_400)
    folder.check()
    assert identity.pending_request() == b""
    goes_on(folder)


def test_the_moments_are_all_that_there_are(folder: Folder, power: Power) -> None:
    request = folder.identity().signing_request()
    assert power.moments == 8
    power.moments = 0
    folder.identity().adopt(folder.answer(request))
    assert power.moments == 7


def test_a_request_whose_key_is_gone_is_made_anew(folder: Folder) -> None:
    request = folder.identity().signing_request()
    (folder.path / NEXT_KEY).unlink()
    assert folder.identity().pending_request() == b""
    assert public(folder.identity().signing_request()) != public(request)
    goes_on(folder)


def test_a_disk_that_takes_nothing_is_named(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    request = folder.identity().signing_request()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(identities, "write", full)
    with pytest.raises(SetupError, match=r"identity\.pem: cannot be written: No space left"):
        folder.identity().adopt(folder.answer(request))
    (folder.path / NEXT_REQUEST).unlink()
    with pytest.raises(SetupError, match=r"next\.csr: No space left"):
        folder.identity().signing_request()
