"""Key files: 64 hexadecimal digits, readable by their owner alone."""

import os
from pathlib import Path

from protocol.signing import PrivateKey
from runtime.errors import SetupError


def load_or_make(path: Path) -> PrivateKey:
    """Read a private key; make it first where there is none. A crash leaves no half-written key.

    Raises:
        SetupError: the file holds something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(PrivateKey.generate().raw.hex())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    try:
        return PrivateKey(bytes.fromhex(path.read_text("ascii").strip()))
    except ValueError as error:
        raise SetupError(f"{path}: expected 64 hexadecimal digits") from error
