"""What the device's image says of itself, for the server: its version, and what became of its last update."""

import json
from pathlib import Path
from typing import NamedTuple

from agent.config import FirmwareConfig

MAX_VERSION, MAX_UPDATE = 64, 200


class Firmware(NamedTuple):
    """Of a device."""

    version: str = ""
    update: str = ""


def read(config: FirmwareConfig) -> Firmware:
    """Read both files; what is not there, or cannot be read, is empty: nothing is claimed."""
    return Firmware(_version(config.release_file)[:MAX_VERSION], _update(config.update_file)[:MAX_UPDATE])


def _version(name: str) -> str:
    if not name:
        return ""
    try:
        lines = Path(name).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    return next((line.partition("=")[2] for line in lines if line.startswith("version=")), "")


def _update(name: str) -> str:
    if not name:
        return ""
    try:
        text = json.loads(Path(name).read_text("utf-8"))["text"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return text if isinstance(text, str) else ""
