"""Configuration files: TOML into one frozen tree of dataclasses; unknown keys are errors."""

from pathlib import Path
from typing import TypeVar

from protocol import records, toml
from protocol.errors import SchemaError, SignatureError
from protocol.signing import PublicKey
from runtime.errors import SetupError

Config = TypeVar("Config")


def load(kind: type[Config], path: Path) -> Config:
    """Read a configuration file.

    Raises:
        SetupError: no such file, no TOML, unknown keys or values out of range; names file and key.
    """
    try:
        return records.from_named(kind, toml.loads(path.read_text("utf-8")))
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}; name another file with --config") from error
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SetupError(f"{path}: not TOML: {error}") from error
    except SchemaError as error:
        raise SetupError(f"{path}: {error}") from error


def check_public_key(name: str, text: str) -> None:
    """Check a public key in a configuration.

    Raises:
        ValueError: not 64 hexadecimal digits; names the key of the configuration.
    """
    try:
        PublicKey.from_hex(text)
    except SignatureError as error:
        raise ValueError(f"{name}: {error}") from error
