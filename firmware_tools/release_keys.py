"""Keys of an index of releases (Ed25519): one file each, for their owner alone, never beside what is served.

A key's id is the key itself, so that it is found whatever its file is called, in whichever folder it lies.
"""

from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, SSlibKey

from firmware_tools.errors import FirmwareError
from firmware_tools.release_index import KEY_NAME
from runtime import whole_files

ROOT_FILE = "root.json"
"""The root that these keys made first: what images are built with, and what signing begins at."""
Signers = dict[str, CryptoSigner]
"""By the id of the key."""


def check_apart(index: Path, keys: Path) -> None:
    """Refuse a folder of keys that would be served.

    Raises:
        FirmwareError: one folder is in the other.
    """
    served, secret = index.resolve(), keys.resolve()
    if served == secret or served in secret.parents or secret in served.parents:
        raise FirmwareError(
            f"{keys} is in {index}, or holds it: expected a folder of keys apart from what is served"
        )


def make_key(folder: Path, name: str, file_name: str) -> CryptoSigner:
    """Make a key, never over another.

    Args:
        folder: made if it is not there.
        name: stands in the root, e.g. root-1.
        file_name: without .key.

    Raises:
        FirmwareError: there is a file already, or it cannot be written.
    """
    path = folder / f"{file_name}.key"
    if path.exists():
        raise FirmwareError(f"{path} exists; keys are never overwritten")
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        whole_files.write(path, pem, whole_files.SECRET)
    except OSError as error:
        raise FirmwareError(f"{path}: {error.strerror}") from error
    return _signer(private, name)


def load_keys(folders: Sequence[Path]) -> Signers:
    """All keys in some folders.

    Raises:
        FirmwareError: a file with that ending is no Ed25519 key, or others may read it.
    """
    signers: Signers = {}
    for path in (path for folder in folders for path in sorted(folder.glob("*.key"))):
        if path.stat().st_mode & 0o077 and not _on_a_stick(path):
            raise FirmwareError(f"{path} can be read by others than its owner: chmod 600 {path}")
        try:
            private = serialization.load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise FirmwareError(f"{path}: expected a private key (PEM): {error}") from error
        if isinstance(private, Ed25519PrivateKey):  # others, e.g. those of bundles, are none of ours
            signer = _signer(private, path.stem)
            signers[signer.public_key.keyid] = signer
    return signers


def first_root(folders: Sequence[Path]) -> bytes:
    """The root that lies beside the keys.

    Raises:
        FirmwareError: in none of the folders.
    """
    for folder in folders:
        if (folder / ROOT_FILE).exists():
            return (folder / ROOT_FILE).read_bytes()
    raise FirmwareError(
        f"expected {ROOT_FILE} of `release init` in {' or '.join(map(str, folders))}: it says whose "
        "signatures are to be believed"
    )


def _on_a_stick(path: Path) -> bool:
    """Whether it lies where permissions mean nothing, as on FAT: there every file has the same."""
    return path.stat().st_mode & 0o777 == path.parent.stat().st_mode & 0o777


def _signer(private: Ed25519PrivateKey, name: str) -> CryptoSigner:
    public = private.public_key().public_bytes_raw().hex()
    key = SSlibKey(public, "ed25519", "ed25519", {"public": public}, {KEY_NAME: name})
    return CryptoSigner(private, key)
