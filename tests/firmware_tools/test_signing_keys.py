"""Keys for bundles: never overwritten, for their owner alone, and good for signing code only."""

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from firmware_tools.__main__ import main
from firmware_tools.errors import FirmwareError
from firmware_tools.signing_keys import KEYRING, ROOTS, make_keys, make_signer
from runtime import whole_files

NOW = 1_800_000_000.0
FILES = {KEYRING, *(f"{pair}.{kind}" for pair in (*ROOTS, "signer") for kind in ("key", "crt"))}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys", "plant", NOW)
    return tmp_path / "keys"


def certificate(keys: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((keys / f"{name}.crt").read_bytes())


def test_keys_are_for_their_owner_alone(keys: Path) -> None:
    assert {path.name for path in keys.iterdir()} == FILES
    assert keys.stat().st_mode & 0o777 == 0o700
    for path in keys.glob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_signer_signs_code_and_no_certificates(keys: Path) -> None:
    signer, root = certificate(keys, "signer"), certificate(keys, "root-1")
    signer.verify_directly_issued_by(root)
    extensions = signer.extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CODE_SIGNING
    ]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert isinstance(signer.public_key(), ec.EllipticCurvePublicKey)  # RAUC takes no Ed25519
    start = dt.datetime.fromtimestamp(NOW, dt.timezone.utc)
    assert signer.not_valid_before_utc < start < signer.not_valid_after_utc < root.not_valid_after_utc


def test_the_keyring_holds_both_roots_and_no_key(keys: Path) -> None:
    text = (keys / KEYRING).read_bytes()
    assert x509.load_pem_x509_certificates(text) == [certificate(keys, root) for root in ROOTS]
    assert b"PRIVATE" not in text


def test_a_new_signer_may_come_from_either_root(keys: Path) -> None:
    roots = {root: (keys / f"{root}.key").read_bytes() for root in ROOTS}
    before = (keys / "signer.key").read_bytes()
    make_signer(keys, "plant", "root-2", NOW)
    certificate(keys, "signer").verify_directly_issued_by(certificate(keys, "root-2"))
    assert (keys / "signer.key").read_bytes() != before
    assert {root: (keys / f"{root}.key").read_bytes() for root in ROOTS} == roots
    key = serialization.load_pem_private_key((keys / "signer.key").read_bytes(), None)
    assert key.public_key() == certificate(keys, "signer").public_key()


@pytest.mark.parametrize("left", sorted(FILES - {f"{pair}.crt" for pair in (*ROOTS, "signer")}))
def test_keys_are_never_overwritten_not_even_half_made_ones(tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_text("precious")
    with pytest.raises(FirmwareError, match=f"holds {left} already; keys are never overwritten"):
        make_keys(tmp_path, "plant", NOW)
    assert [path.name for path in tmp_path.iterdir()] == [left]
    assert (tmp_path / left).read_text() == "precious"


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole_files.os, "fsync", full)
    with pytest.raises(FirmwareError, match="No space left"):
        make_keys(tmp_path / "keys", "plant", NOW)


def test_a_root_that_is_in_its_safe_or_locked_is_named(keys: Path) -> None:
    path = keys / "root-2.key"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    (keys / "root-1.key").unlink()
    for root in ROOTS:
        with pytest.raises(FirmwareError, match=f"the root {root} cannot be used"):
            make_signer(keys, "plant", root, NOW)


def test_the_commands_say_what_belongs_into_a_safe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "init", str(tmp_path / "keys")]) == 0
    assert "root-1.key and root-2.key into two safes" in capsys.readouterr().out
    assert main(["keys", "init", str(tmp_path / "keys")]) == 1
    assert "never overwritten" in capsys.readouterr().err
    assert main(["keys", "signer", str(tmp_path / "keys"), "--root", "root-2"]) == 0
    assert "a new signer under root-2" in capsys.readouterr().out
