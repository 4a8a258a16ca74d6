"""TOML, by the standard library or, on Python 3.10, by the package that it came from."""

import sys
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]  # absent where newer

TOMLDecodeError = tomllib.TOMLDecodeError


def loads(text: str) -> dict[str, Any]:
    """Parse a TOML document.

    Raises:
        TOMLDecodeError: it is none.
    """
    document: dict[str, Any] = tomllib.loads(text)
    return document
