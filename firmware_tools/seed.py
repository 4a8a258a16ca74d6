"""A seed: what a device needs to know at its first boot, as a folder of small files.

    seed.toml             who the device is and where it belongs; the SHA-256 of each other file. Written
    last. services-ca.crt       certificate of the services' CA, for TLS
    root.json             the federation's root of trust, where no server key is in seed.toml
    settings.toml         the owner's further settings of the agent, e.g. [source] and [limits]
    enrolment.token       secret: the one-time token with which the device enrols
    device.key            secret, air-gapped fleets only: the device's key, made at the factory

By default a device makes its keys itself at its first boot, and no private key ever is in a seed.
What a seed says is written here and read in device_identity.py; how it gets into an image, in seed_image.py.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from firmware_tools.errors import FirmwareError
from protocol import records, toml
from protocol.errors import SchemaError
from protocol.topics import check_device, check_name
from runtime import configuration

SEED_FILE = "seed.toml"
SERVICES_CA, ROOT, SETTINGS = "services-ca.crt", "root.json", "settings.toml"
TOKEN, DEVICE_KEY = SECRETS = ("enrolment.token", "device.key")
FILES = (SERVICES_CA, ROOT, SETTINGS, *SECRETS)
FILE_BYTES = 256 * 1024
"""Most that one file of a seed may hold."""
VERSION = 1
_OURS = ("device", "federation", "server_key", "root", "identity_directory", "broker", "enrolment")


@dataclass(frozen=True)
class SeedDescription:
    """What seed.toml says."""

    device: str
    federation: str
    broker_host: str
    broker_port: int = 8883
    enrolment_port: int = 0
    """Of the broker's listener for newcomers; 0: the device needs no certificate."""
    server_key: str = ""
    """The server's public key (hexadecimal); empty: root.json is there."""
    files: dict[str, str] = field(default_factory=dict)
    """By name of a further file, its SHA-256 in hexadecimal."""
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(
                f"version: expected {VERSION}, got {self.version}: use another version of Graftwork"
            )
        check_device(self.device)
        check_name(self.federation)
        check_host(self.broker_host)
        for name, port, least in (("broker", self.broker_port, 1), ("enrolment", self.enrolment_port, 0)):
            if not least <= port <= 65535:
                raise ValueError(f"{name}_port: expected {least} to 65535, got {port}")
        odd = set(self.files) - set(FILES)
        if odd:
            raise ValueError(f"files: expected some of {', '.join(FILES)}, got {min(odd)!r}")
        if bool(self.server_key) == (ROOT in self.files):
            raise ValueError(f"server_key and {ROOT}: expected one of them")
        if self.server_key:
            configuration.check_public_key("server_key", self.server_key)
        if self.enrolment_port and SERVICES_CA not in self.files:
            raise ValueError(f"{SERVICES_CA}: expected the services' CA, as the device is to enrol")

    @property
    def secrets(self) -> tuple[str, ...]:
        """Names of the files that nobody else may read, and that the device wipes."""
        return tuple(name for name in SECRETS if name in self.files)


def check_host(host: str) -> str:
    """Return `host` if it can be the name or address of a broker.

    Raises:
        ValueError: it is empty, too long, or has characters that no host's name or address has.
    """
    if not 0 < len(host) <= 253 or not all(c.isascii() and (c.isalnum() or c in "-.:%_") for c in host):
        raise ValueError(f"broker_host: expected the name or address of a host, got {host!r}")
    return host


def parse(data: bytes, where: Path) -> SeedDescription:
    """Read seed.toml.

    Raises:
        FirmwareError: it is not whole, or has other keys or values than it should.
    """
    try:
        return records.from_named(SeedDescription, toml.loads(data.decode()))
    except (toml.TOMLDecodeError, UnicodeDecodeError, SchemaError) as error:
        raise FirmwareError(
            f"{where}: expected the description of a seed: {error}; provision anew"
        ) from error


def describe(description: SeedDescription) -> bytes:
    """What `parse` reads."""
    values = {name: value for name, value in vars(description).items() if name != "files" and value}
    lines = _lines(values)
    return (lines + "\n[files]\n" + _lines({f'"{k}"': v for k, v in description.files.items()})).encode()


def configure(description: SeedDescription, settings: bytes, *, token_file: str, identity: str) -> bytes:
    """Write agent.toml, without any secret.

    Args:
        description: of the seed.
        settings: the owner's further settings, TOML.
        token_file: where the token will be.
        identity: the folder for the device's keys.

    Raises:
        FirmwareError: the settings are no TOML, or hold what the seed says.
    """
    further = check_settings(settings)
    trust = {"server_key": description.server_key} if description.server_key else {"root": ROOT}
    top = {"device": description.device, "federation": description.federation, **trust}
    tables = {"broker": {"host": description.broker_host, "port": description.broker_port}}
    if SERVICES_CA in description.files:
        tables["broker"]["tls_ca"] = SERVICES_CA
    if description.enrolment_port:
        tables["enrolment"] = {"port": description.enrolment_port}
        if TOKEN in description.files:
            tables["enrolment"]["token_file"] = token_file
    # Keys outside of tables come first in TOML: ours, then the owner's, then his tables, then ours.
    parts = [_lines({**top, "identity_directory": identity}), further]
    parts += [f"[{name}]\n{_lines(table)}" for name, table in tables.items()]
    return "\n".join(part for part in parts if part).encode()


def check_settings(settings: bytes) -> str:
    """Return an owner's settings as text.

    Raises:
        FirmwareError: they are no TOML, or hold what the seed says.
    """
    try:
        text = settings.decode()
        taken = [name for name in toml.loads(text) if name in _OURS]
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FirmwareError(f"settings of the agent: not TOML: {error}") from error
    if taken:
        raise FirmwareError(f"settings of the agent: expected none of {', '.join(_OURS)}, got {taken[0]!r}")
    return text.rstrip() + "\n" if text.strip() else ""


def write(directory: Path, description: SeedDescription, files: Mapping[str, bytes]) -> None:
    """Write a seed into a new folder; only its owner can read it. The caller has it synced.

    Args:
        directory: to be made.
        description: what seed.toml says, with the hashes of `files`.
        files: content by name.

    Raises:
        FirmwareError: the folder is there already.
    """
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError as error:
        raise FirmwareError(
            f"{directory} exists; a seed is never overwritten, choose another folder"
        ) from error
    for name, content in {**files, SEED_FILE: describe(description)}.items():
        descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)


def read(directory: Path) -> tuple[SeedDescription, dict[str, bytes]]:
    """Read a whole seed that no device has taken yet.

    Raises:
        FirmwareError: a file is missing or is not the one that seed.toml speaks of.
    """
    description = parse(read_file(directory / SEED_FILE), directory / SEED_FILE)
    files = {name: read_file(directory / name) for name in description.files}
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != description.files[name]:
            raise FirmwareError(f"{directory / name}: not what {SEED_FILE} speaks of; provision anew")
    return description, files


def read_file(path: Path) -> bytes:
    """Read a file of a seed, and no more than it may hold.

    Raises:
        FirmwareError: it is missing or too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise FirmwareError(
            f"{path}: {error.strerror}; expected a seed, see: graftwork-firmware provision"
        ) from error
    if len(data) > FILE_BYTES:
        raise FirmwareError(f"{path}: expected at most {FILE_BYTES} bytes")
    return data


def check_token(content: bytes, where: Path) -> None:
    """Check the form of an enrolment token without quoting it.

    Raises:
        FirmwareError: it has another one.
    """
    text = content.decode("ascii", errors="replace").strip()
    if not 16 <= len(text) <= 128 or not (text.isascii() and text.isalnum()):
        raise FirmwareError(
            f"{where}: expected a token from `graftwork-server devices token NAME --output DIR`"
        )


def _lines(values: Mapping[str, object]) -> str:
    """Keys with strings or integers as TOML; the strings are checked to need no escapes but these."""

    def text(value: object) -> str:
        if isinstance(value, int):
            return str(value)
        return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'

    return "".join(f"{name} = {text(value)}\n" for name, value in values.items())
