"""What a signed index of releases says: which bundle is which version for which boards, and the lowest one.

An index is a repository of The Update Framework (TUF 1.0) in a folder that any web server or USB stick holds:

    metadata/   N.root.json, N.targets.json, N.snapshot.json, timestamp.json
    targets/    SHA256.COMPATIBLE-VERSION.raucb

Beside TUF's own fields, `targets` has the floors, and `timestamp` when it was signed: a device whose clock
starts in 1970 takes that as the time.
"""

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from firmware_tools.build.spec import check_version
from firmware_tools.errors import FirmwareError
from firmware_tools.versions import numbers

METADATA, BUNDLES = "metadata", "targets"
"""Folders."""
FLOORS, SIGNED, KEY_NAME = "x-graftwork-floors", "x-graftwork-signed", "x-graftwork-name"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}\.raucb")
_COMPATIBLE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._+-]{0,63}")


@dataclass(frozen=True)
class Release:
    """One bundle."""

    name: str
    compatible: str
    version: str
    length: int
    """In bytes."""
    sha256: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise FirmwareError(f"expected the name of a bundle, got {self.name!r}")
        check_compatible(self.compatible)
        check_version(self.version)
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256) or self.length < 1:
            raise FirmwareError(f"{self.name}: expected a length and a SHA-256, got {self}")

    @property
    def file_name(self) -> str:
        """In the folder of bundles."""
        return f"{self.sha256}.{self.name}"


@dataclass(frozen=True)
class Index:
    """All of them."""

    releases: tuple[Release, ...]
    """By board and version."""
    floors: Mapping[str, str]
    """The lowest version that devices may install, by `compatible`."""

    def newest(self, compatible: str) -> Release | None:
        """The newest release for a board; None: there is none."""
        found = [release for release in self.releases if release.compatible == compatible]
        return found[-1] if found else None


def read_index(targets: Targets) -> Index:
    """Read what is in metadata whose signatures were checked.

    Raises:
        FirmwareError: it was signed, but means nothing that we know.
    """
    releases = []
    for name, target in targets.targets.items():
        custom: Any = target.custom
        try:
            releases.append(
                Release(name, custom["compatible"], custom["version"], target.length, target.hashes["sha256"])
            )
        except (KeyError, TypeError) as error:
            raise FirmwareError(f"{name}: expected compatible and version in the index: {error!r}") from error
    floors = targets.unrecognized_fields.get(FLOORS, {})
    if not isinstance(floors, dict):
        raise FirmwareError(f"{FLOORS}: expected versions by compatible, got {floors!r}")
    for compatible, version in floors.items():
        check_compatible(compatible)
        check_version(version)
    ordered = sorted(releases, key=lambda release: (release.compatible, numbers(release.version)))
    return Index(tuple(ordered), floors)


def check_compatible(text: str) -> str:
    """Return what boards call themselves, if it is of that form.

    Raises:
        FirmwareError: it is not.
    """
    if not _COMPATIBLE.fullmatch(text):
        raise FirmwareError(f"expected a compatible, 1 to 64 of A-Z a-z 0-9 . _ + -, got {text!r}")
    return text


def check_root(data: bytes, *, name: str) -> Metadata[Root]:
    """Read a root of trust that was given by hand; it must be signed by a threshold of its own keys.

    Args:
        data: its bytes.
        name: of the file, for the message.

    Raises:
        FirmwareError: it is none.
    """
    try:
        metadata: Metadata[Root] = Metadata.from_bytes(data)
        if metadata.signed.type != Root.type:
            raise FirmwareError(f"{name}: expected root metadata, got {metadata.signed.type}")
        metadata.signed.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError, RecursionError) as error:
        raise FirmwareError(
            f"{name}: expected the root.json that `release init` wrote beside the keys: {error}"
        ) from error
    return metadata


def signed_at(fields: Mapping[str, Any]) -> float:
    """When metadata was signed, as it says itself; Unix seconds, 0: it does not say."""
    try:
        return dt.datetime.strptime(fields[SIGNED], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except (KeyError, TypeError, ValueError):
        return 0.0


def moment(now: float) -> dt.datetime:
    """Unix seconds as TUF writes time: whole seconds, UTC."""
    return dt.datetime.fromtimestamp(now, dt.timezone.utc).replace(microsecond=0)


def written(now: float) -> str:
    """Unix seconds as text."""
    return moment(now).strftime("%Y-%m-%dT%H:%M:%SZ")
