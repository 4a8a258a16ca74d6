"""Update bundles: what is verified was signed for code under our roots, and every byte of it was read."""

import contextlib
import datetime as dt
import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from firmware_tools.__main__ import main
from firmware_tools.build.plan import file_sha256
from firmware_tools.bundles import BundleFacts, Signer, make_bundle, verify_bundle
from firmware_tools.errors import FirmwareError
from firmware_tools.signing_keys import KEYRING, make_keys, make_signer

pytestmark = pytest.mark.skipif(
    shutil.which("rauc") is None or shutil.which("mksquashfs") is None,
    reason="needs rauc, mksquashfs: apt install rauc squashfs-tools",
)
FACTS = BundleFacts("graftwork-x86_64-uefi", "1.4.0")
YEAR = 365 * 86_400.0
NOW = dt.datetime.now(dt.timezone.utc).timestamp()


def signer_of(keys: Path) -> Signer:
    return Signer(str(keys / "signer.crt"), str(keys / "signer.key"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder, "plant", NOW)
    return folder


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rootfs") / "rootfs.squashfs"
    path.write_bytes(random.Random(1).randbytes(300_000))  # noqa: S311 - data, no secret
    return path


@pytest.fixture(scope="module")
def bundle(keys: Path, rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "update.raucb"
    make_bundle(rootfs, path, FACTS, signer_of(keys))
    assert [found.name for found in path.parent.iterdir()] == ["update.raucb"]
    return path


def test_a_good_bundle_says_what_it_is(bundle: Path, keys: Path) -> None:
    assert verify_bundle(bundle, keys / KEYRING) == FACTS
    assert [found.name for found in bundle.parent.iterdir()] == ["update.raucb"]


def test_a_byte_changed_anywhere_is_found(bundle: Path, keys: Path, tmp_path: Path) -> None:
    content = bundle.read_bytes()
    places = [len(content) * number // 20 for number in range(20)]
    places += [content.find(b"[update]"), len(content) - 9, len(content) - 1, len(content) - 700]
    passed = []
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1
        (tmp_path / "bad.raucb").write_bytes(changed)
        with contextlib.suppress(FirmwareError):
            verify_bundle(tmp_path / "bad.raucb", keys / KEYRING)
            passed.append(place)
    assert passed == []


@pytest.mark.parametrize("left", [0, 1, 4096, -1])
def test_a_bundle_that_is_cut_short_is_found(bundle: Path, keys: Path, tmp_path: Path, left: int) -> None:
    (tmp_path / "bad.raucb").write_bytes(bundle.read_bytes()[:left])
    with pytest.raises(FirmwareError, match="rauc: "):
        verify_bundle(tmp_path / "bad.raucb", keys / KEYRING)


def test_a_bundle_of_other_roots_is_refused(rootfs: Path, keys: Path, tmp_path: Path) -> None:
    make_keys(tmp_path / "others", "plant", NOW)
    make_bundle(rootfs, tmp_path / "other.raucb", FACTS, signer_of(tmp_path / "others"))
    assert verify_bundle(tmp_path / "other.raucb", tmp_path / "others" / KEYRING) == FACTS
    with pytest.raises(FirmwareError, match="signature verification failed"):
        verify_bundle(tmp_path / "other.raucb", keys / KEYRING)


def test_a_signer_under_the_second_root_is_taken_by_the_same_keyring(
    rootfs: Path, keys: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(keys, tmp_path / "keys")
    make_signer(folder, "plant", "root-2", NOW)
    make_bundle(rootfs, tmp_path / "new.raucb", FACTS, signer_of(folder))
    assert verify_bundle(tmp_path / "new.raucb", keys / KEYRING) == FACTS


def sign_past_rauc(rootfs: Path, output: Path, signer: Signer) -> None:
    """Make a bundle as somebody would who does not ask for the purpose of a certificate."""
    content = output.with_suffix(".content")
    content.mkdir()
    shutil.copy(rootfs, content / "rootfs.img")
    (content / "manifest.raucm").write_text(
        f"[update]\ncompatible={FACTS.compatible}\nversion={FACTS.version}\n[bundle]\nformat=verity\n"
        "[image.rootfs]\nfilename=rootfs.img\n"
    )
    command = ["rauc", f"--cert={signer.certificate}", f"--key={signer.key}", "bundle", content, output]
    subprocess.run(command, check=True, capture_output=True)


def without_purpose(keys: Path, folder: Path) -> Signer:
    """A certificate under our root that is not for signing code, as one for services would be."""
    root_key = serialization.load_pem_private_key((keys / "root-1.key").read_bytes(), None)
    signer = x509.load_pem_x509_certificate((keys / "signer.crt").read_bytes())
    builder = x509.CertificateBuilder(
        signer.issuer, signer.subject, signer.public_key(), x509.random_serial_number(),
        signer.not_valid_before_utc, signer.not_valid_after_utc,
    )  # fmt: skip
    for extension in signer.extensions:
        value = extension.value
        if isinstance(value, x509.ExtendedKeyUsage):
            value = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(value, extension.critical)
    made = builder.sign(root_key, hashes.SHA256())  # type: ignore[arg-type]
    (folder / "mail.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return Signer(str(folder / "mail.crt"), str(keys / "signer.key"))


def test_a_certificate_that_is_not_for_code_is_refused(rootfs: Path, keys: Path, tmp_path: Path) -> None:
    signer = without_purpose(keys, tmp_path)
    sign_past_rauc(rootfs, tmp_path / "mail.raucb", signer)
    with pytest.raises(FirmwareError, match="purpose"):
        verify_bundle(tmp_path / "mail.raucb", keys / KEYRING)


def test_a_signer_that_has_expired_is_refused(rootfs: Path, keys: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(keys, tmp_path / "keys")
    make_signer(folder, "plant", "root-1", NOW - 5 * YEAR)
    sign_past_rauc(rootfs, tmp_path / "old.raucb", signer_of(folder))
    with pytest.raises(FirmwareError, match="expired"):
        verify_bundle(tmp_path / "old.raucb", keys / KEYRING)


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(
    rootfs: Path, keys: Path, tmp_path: Path
) -> None:
    output = tmp_path / "update.raucb"
    with pytest.raises(FirmwareError, match="rauc: "):
        make_bundle(rootfs, output, FACTS, Signer("no.crt", "no.key"))
    assert list(tmp_path.iterdir()) == []
    output.write_text("precious")
    with pytest.raises(FirmwareError, match="never overwritten"):
        make_bundle(rootfs, output, FACTS, signer_of(keys))
    assert output.read_text() == "precious"
    with pytest.raises(FirmwareError, match=r"expected a version like"):
        make_bundle(rootfs, tmp_path / "x.raucb", BundleFacts("x", "latest"), signer_of(keys))


def test_the_commands_bundle_what_was_built_and_nothing_else(
    rootfs: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built, output = shutil.copy(rootfs, tmp_path / "rootfs.squashfs"), tmp_path / "update.raucb"
    command = ["bundle", str(built), "--keys", str(keys), "--output", str(output)]
    assert main(command) == 1
    assert "expected the description that `build` writes" in capsys.readouterr().err
    facts = {"compatible": FACTS.compatible, "version": "1.4.0", "rootfs_sha256": "0" * 64}
    (tmp_path / "release.json").write_text(json.dumps(facts))
    assert main(command) == 1
    assert "is not the file that" in capsys.readouterr().err
    (tmp_path / "release.json").write_text(json.dumps({**facts, "rootfs_sha256": file_sha256(built)}))
    assert main(command) == 0
    assert main(["verify", "bundle", str(output), "--keyring", str(keys / KEYRING)]) == 0
    assert "good: version 1.4.0 for graftwork-x86_64-uefi" in capsys.readouterr().out
    assert main([*command[:2], "--output", str(output)]) == 1
    assert "expected --keys DIR, or --cert and --key" in capsys.readouterr().err
