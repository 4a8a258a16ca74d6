"""What an image is made of: a bill of materials (CycloneDX 1.6, JSON), the same bytes for the same image.

Debian's packages come from the root file system's own dpkg status, Python's distributions from the lock,
each with the hash of the wheel that was installed. The serial number is made of the content, the time is the
one of every file.
"""

import datetime as dt
import json
import re
import tarfile
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firmware_tools.build.spec import TargetSpec
from firmware_tools.build.tar_merge import MOMENT
from firmware_tools.build.ways import way_of
from firmware_tools.errors import FirmwareError

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

NAME = "sbom.cdx.json"
_STATUS = ("./var/lib/dpkg/status", "var/lib/dpkg/status")
_LOCKED = re.compile(r"(?P<name>[\w.-]+)==(?P<version>\S+)(?P<hashes>(?:\s+--hash=sha256:[0-9a-f]{64})+)")
_NAMESPACE = uuid.UUID("0b0c2f0c-6d2f-5b43-9d5a-2d9b3c0f1e77")


@dataclass(frozen=True)
class Package:
    """A Debian package."""

    name: str
    version: str
    architecture: str


@dataclass(frozen=True)
class Distribution:
    """A Python distribution."""

    name: str
    version: str
    sha256: tuple[str, ...]
    """Of its wheel."""


def dpkg_status(system: Path) -> str:
    """Read dpkg's status from the tar of a system.

    Raises:
        FirmwareError: there is none in it.
    """
    with tarfile.open(system) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name in _STATUS else None
            if file is not None:
                return file.read().decode("utf-8")
    raise FirmwareError(f"{system}: expected var/lib/dpkg/status in it")


def packages(status: str) -> list[Package]:
    """The packages that are installed, of dpkg's status."""
    found = []
    for paragraph in status.split("\n\n"):
        lines = [line for line in paragraph.splitlines() if line[:1].strip() and ": " in line]
        fields = dict(line.split(": ", 1) for line in lines)
        if fields.get("Status", "").split()[-1:] == ["installed"]:
            found.append(Package(fields["Package"], fields["Version"], fields["Architecture"]))
    return found


def distributions(lock: str) -> list[Distribution]:
    """What a lock names.

    Raises:
        FirmwareError: a line that is no requirement with a hash.
    """
    found = []
    for line in lock.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = _LOCKED.fullmatch(line.strip())
        if match is None:
            raise FirmwareError(f"expected NAME==VERSION --hash=sha256:..., got {line!r}")
        hashes = tuple(re.findall(r"sha256:([0-9a-f]{64})", match["hashes"]))
        found.append(Distribution(match["name"], match["version"], hashes))
    return found


def own_wheel(wheel: Path, sha256: str) -> Distribution:
    """The agent itself, which is in no lock."""
    name, version = wheel.name.split("-")[:2]
    return Distribution(name, version, (sha256,))


def bill_of_materials(
    spec: TargetSpec,
    release: dict[str, str],
    system: Iterable[Package],
    agent: Iterable[Distribution],
) -> str:
    """Write the bill, as JSON.

    Args:
        spec: the target.
        release: what `build` says of it: version, and the SHA-256 of each file, e.g. rootfs_sha256.
        system: Debian's packages.
        agent: Python's distributions.

    Raises:
        FirmwareError: the library is not installed.
    """
    try:
        from cyclonedx.model.bom import Bom, BomMetaData  # noqa: PLC0415 - of the extra; devices do without
        from cyclonedx.output.json import JsonV1Dot6  # noqa: PLC0415
    except ImportError as error:
        raise FirmwareError(
            f"no {NAME} is written, as {error.name} is missing: pip install 'graftwork[firmware]'"
        ) from error
    image = _image(spec, release)
    components = [*(_debian(spec, found) for found in system), *map(_python, agent)]
    facts = [[found.bom_ref.value, sorted(h.content for h in found.hashes)] for found in components]
    content = json.dumps([spec.name, release, sorted(facts)], sort_keys=True)
    bom = Bom(
        serial_number=uuid.uuid5(_NAMESPACE, content),
        metadata=BomMetaData(component=image, timestamp=dt.datetime.fromtimestamp(MOMENT, dt.timezone.utc)),
        components=components,
    )
    bom.register_dependency(image, components)
    text: str = JsonV1Dot6(bom).output_as_string(indent=1)
    return text + "\n"


def _image(spec: TargetSpec, release: dict[str, str]) -> "Component":
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415

    # An image holds all of it; where there is none, what the maker's tools flash has hashes of its own.
    files = [
        Component(
            type=ComponentType.FILE,
            name=file_name,
            version=release["version"],
            bom_ref=name,
            hashes=_hashes([release[f"{name}_sha256"]]),
        )
        for name, file_name in way_of(spec).products.items()
        if name != "image"
    ]
    return Component(
        type=ComponentType.FIRMWARE,
        name=f"graftwork image of {spec.name}",
        version=release["version"],
        description=f"for boards that are compatible with {spec.compatible}",
        bom_ref="image",
        hashes=_hashes([release["image_sha256"]] if "image_sha256" in release else []),
        components=files,
    )


def _debian(spec: TargetSpec, found: Package) -> "Component":
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
    from packageurl import PackageURL  # noqa: PLC0415

    qualifiers = {"arch": found.architecture, "distro": spec.suite}
    purl = PackageURL("deb", "debian", found.name, found.version, qualifiers)
    kind = ComponentType.OPERATING_SYSTEM if found.name == "base-files" else ComponentType.LIBRARY
    return Component(type=kind, name=found.name, version=found.version, purl=purl, bom_ref=purl.to_string())


def _python(found: Distribution) -> "Component":
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
    from packageurl import PackageURL  # noqa: PLC0415

    purl = PackageURL("pypi", None, found.name, found.version)
    return Component(
        type=ComponentType.LIBRARY,
        name=found.name,
        version=found.version,
        purl=purl,
        bom_ref=purl.to_string(),
        hashes=_hashes(found.sha256),
    )


def _hashes(values: Iterable[str]) -> list[Any]:
    from cyclonedx.model import HashAlgorithm, HashType  # noqa: PLC0415

    return [HashType(alg=HashAlgorithm.SHA_256, content=value) for value in values]
