"""A publisher's key in a file that only its owner can read: an Ed25519 private key, 64 hexadecimal digits."""

import os
from pathlib import Path

from models.errors import ModelError
from protocol.errors import SignatureError
from protocol.signing import PrivateKey, PublicKey


def write_new_key(file: Path) -> PublicKey:
    """Make a key, write it to a new file with mode 0600 and return its public half.

    Raises:
        ModelError: the file exists or cannot be written.
    """
    key = PrivateKey.generate()
    try:
        # O_EXCL: a key that signed releases is never overwritten; the mode is set before the first byte.
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ModelError(f"{file} exists", "choose another name; a key is never overwritten") from error
    except OSError as error:
        raise ModelError(f"{file}: cannot be written: {error.strerror}") from error
    with os.fdopen(handle, "w", encoding="ascii") as stream:
        stream.write(key.raw.hex() + "\n")
    return key.public


def read_key(file: Path) -> PrivateKey:
    """Read a private key.

    Raises:
        ModelError: the file is missing or holds something else.
    """
    try:
        # The content is a secret: no message may quote it.
        return PrivateKey(bytes.fromhex(file.read_text(encoding="ascii").strip()))
    except OSError as error:
        raise ModelError(f"{file}: not readable: {error.strerror}", "make one with keygen") from error
    except (ValueError, SignatureError):
        raise ModelError(f"{file}: expected 64 hexadecimal digits", "make a key with keygen") from None


def parse_public_key(text: str) -> PublicKey:
    """Read a public key from 64 hexadecimal digits.

    Raises:
        ModelError: the text is something else.
    """
    try:
        return PublicKey.from_hex(text)
    except SignatureError as error:
        raise ModelError(f"--publisher: {error}", "keygen and pretrain print it") from error
