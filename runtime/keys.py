"""Key files: hexadecimal digits, readable by their owner alone."""

import contextlib
import os
from pathlib import Path

from protocol.errors import SignatureError
from protocol.signing import PrivateKey
from runtime.errors import SetupError


def make(path: Path) -> PrivateKey:
    """Make a key in a new file of mode 0600.

    Raises:
        SetupError: the file exists (a key is never overwritten) or cannot be written.
    """
    key = PrivateKey.generate()
    write_secret(path, key.raw)
    return key


def read(path: Path) -> PrivateKey:
    """Read a private key.

    Raises:
        SetupError: the file is missing or holds something else. What it holds is never quoted.
    """
    try:
        return PrivateKey(read_secret(path))
    except SignatureError:
        raise SetupError(f"{path}: expected a key of 64 hexadecimal digits") from None


def load_or_make(path: Path) -> PrivateKey:
    """Read a private key; make it first where there is none.

    Raises:
        SetupError: the file holds something else, or cannot be read or written.
    """
    return read(path) if path.exists() else make(path)


def write_secret(path: Path, secret: bytes) -> None:
    """Write a secret in hexadecimal into a new file of mode 0600; see `write_text_secret`."""
    write_text_secret(path, secret.hex())


def write_text_secret(path: Path, text: str) -> None:
    """Write a secret into a new file of mode 0600. A crash leaves no half-written one.

    Raises:
        SetupError: the file exists (a secret is never overwritten) or cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            raise SetupError(f"{path} exists; choose another name, a key is never overwritten")
        partial.rename(path)
    except OSError as error:
        raise SetupError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def read_secret(path: Path) -> bytes:
    """Read a secret.

    Raises:
        SetupError: the file is missing or holds something else. What it holds is never quoted.
    """
    try:
        return bytes.fromhex(path.read_text("ascii").strip())
    except OSError as error:
        raise SetupError(f"{path}: not readable: {error.strerror}") from error
    except ValueError:
        raise SetupError(f"{path}: expected a key of 64 hexadecimal digits") from None
