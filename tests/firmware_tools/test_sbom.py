"""The bill of materials: what is installed and nothing else, valid, and the same bytes each time."""

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from firmware_tools import build_commands
from firmware_tools.build import sbom
from firmware_tools.build.sbom import Distribution, Package, bill_of_materials, distributions, packages
from firmware_tools.build.spec import load_spec
from firmware_tools.errors import FirmwareError

pytest.importorskip("cyclonedx", reason="needs cyclonedx-python-lib: pip install 'graftwork[firmware]'")

SPEC = load_spec("x86_64-uefi")
RELEASE = {"version": "1.4.0", "image_sha256": "a" * 64, "rootfs_sha256": "b" * 64}
STATUS = """\
Package: base-files
Essential: yes
Status: install ok installed
Priority: required
Architecture: amd64
Version: 13.8+deb13u1
Conffiles:
 /etc/debian_version 0123
 /etc/issue: 0123
Description: Debian base system miscellaneous files
 This package contains: a hierarchy
 .
 Status: install ok installed

Package: libgomp1
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Version: 14.2.0-19
Source: gcc-14

Package: removed
Status: deinstall ok config-files
Architecture: all
Version: 1.0

Package: tzdata
Status: hold ok installed
Architecture: all
Version: 2026a-0+deb13u1~1
"""
PACKAGES = [
    Package("base-files", "13.8+deb13u1", "amd64"),
    Package("libgomp1", "14.2.0-19", "amd64"),
    Package("tzdata", "2026a-0+deb13u1~1", "all"),
]


def locked() -> list[Distribution]:
    path = Path(str(build_commands.LOCKS)) / "x86_64-uefi.lock"
    own = sbom.own_wheel(Path("x/graftwork-0.1.0-py3-none-any.whl"), "c" * 64)
    return [*distributions(path.read_text("utf-8")), own]


def bill(**changed: Any) -> str:
    agent: list[Distribution] = changed.get("agent", locked())
    return bill_of_materials(SPEC, changed.get("release", RELEASE), changed.get("system", PACKAGES), agent)


def test_what_is_installed_is_named_and_nothing_else() -> None:
    assert packages(STATUS) == PACKAGES


def test_the_status_is_read_from_the_system_that_was_built(tmp_path: Path) -> None:
    for name in ("./var/lib/dpkg/status", "./etc/passwd"):
        with tarfile.open(tmp_path / "system.tar", "w") as tar:
            info = tarfile.TarInfo(name)
            info.size = len(STATUS)
            tar.addfile(info, io.BytesIO(STATUS.encode()))
        if name.endswith("status"):
            assert sbom.dpkg_status(tmp_path / "system.tar") == STATUS
    with pytest.raises(FirmwareError, match="expected var/lib/dpkg/status"):
        sbom.dpkg_status(tmp_path / "system.tar")


def test_every_wheel_of_the_lock_is_there_with_its_hash() -> None:
    components = {found["purl"]: found for found in json.loads(bill())["components"]}
    lines = (build_commands.LOCKS / "x86_64-uefi.lock").read_text("utf-8").splitlines()
    wheels = [line for line in lines if "--hash" in line]
    assert len(wheels) > 10
    for line in wheels:
        name, _, rest = line.partition("==")
        version, _, digest = rest.partition(" --hash=sha256:")
        found = components[f"pkg:pypi/{name}@{version}"]
        assert found["hashes"] == [{"alg": "SHA-256", "content": digest}]
    assert components["pkg:pypi/graftwork@0.1.0"]["hashes"][0]["content"] == "c" * 64
    debian = [purl for purl in components if purl.startswith("pkg:deb/debian/")]
    assert len(debian) == len(PACKAGES)
    assert "pkg:deb/debian/libgomp1@14.2.0-19?arch=amd64&distro=trixie" in debian


def test_the_image_is_what_the_bill_is_of() -> None:
    image = json.loads(bill())["metadata"]["component"]
    assert (image["type"], image["version"]) == ("firmware", "1.4.0")
    assert image["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    assert image["components"][0]["hashes"] == [{"alg": "SHA-256", "content": "b" * 64}]


def test_where_there_is_no_image_the_bill_has_what_is_flashed() -> None:
    jetson = load_spec("jetson")
    release = {"version": "1.4.0", "rootfs_sha256": "b" * 64, "plan_sha256": "c" * 64}
    lock = (build_commands.LOCKS / "jetson.lock").read_text("utf-8")
    bill = bill_of_materials(jetson, release, PACKAGES, distributions(lock))
    image = json.loads(bill)["metadata"]["component"]
    assert not image.get("hashes")
    files = {found["name"]: found["hashes"][0]["content"] for found in image["components"]}
    assert files == {"rootfs.tar.gz": "b" * 64, "flash-plan.sh": "c" * 64}


@pytest.mark.parametrize("target", ["x86_64-uefi", "qemu-x86_64", "arm64-generic", "rpi", "jetson"])
def test_every_targets_lock_is_read(target: str) -> None:
    assert len(distributions((build_commands.LOCKS / f"{target}.lock").read_text("utf-8"))) > 10


def test_it_is_valid_cyclonedx() -> None:
    pytest.importorskip("jsonschema", reason="needs cyclonedx-python-lib[json-validation]")
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415 - skipped without
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(bill()) is None
    assert validator.validate_str(bill().replace('"firmware"', '"firmwares"')) is not None


def test_the_same_image_has_the_same_bill() -> None:
    shuffled = random.Random(4)  # noqa: S311 - an order
    first, agent, system = bill(), locked(), list(PACKAGES)
    shuffled.shuffle(agent)
    shuffled.shuffle(system)
    assert bill(agent=agent, system=system) == first
    assert '"timestamp": "2023-11-14T22:13:20+00:00"' in first
    serials = {json.loads(first)["serialNumber"]}
    for other in (
        bill(system=PACKAGES[:-1]),
        bill(agent=[]),
        bill(release={**RELEASE, "image_sha256": "d" * 64}),
        bill(agent=[*locked()[:-1], sbom.own_wheel(Path("graftwork-0.1.0-x.whl"), "e" * 64)]),
    ):
        serials.add(json.loads(other)["serialNumber"])
    assert len(serials) == 5


@pytest.mark.parametrize("line", ["numpy", "numpy==2.0", "numpy>=2 --hash=sha256:00", "-r other.txt"])
def test_a_lock_without_hashes_is_no_lock(line: str) -> None:
    with pytest.raises(FirmwareError, match="expected NAME==VERSION"):
        distributions(f"# target\n{line}\n")


def test_without_the_library_the_build_says_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "system.tar", "w") as tar:
        info = tarfile.TarInfo("./var/lib/dpkg/status")
        info.size = len(STATUS)
        tar.addfile(info, io.BytesIO(STATUS.encode()))
    build_commands._describe(SPEC, RELEASE, tmp_path / "system.tar", locked(), tmp_path)
    assert (tmp_path / sbom.NAME).read_text("utf-8") == bill()
    monkeypatch.setitem(__import__("sys").modules, "cyclonedx.model.bom", None)
    build_commands._describe(SPEC, RELEASE, tmp_path / "system.tar", locked(), tmp_path)
    assert not (tmp_path / sbom.NAME).exists()
    assert "pip install 'graftwork[firmware]'" in capsys.readouterr().err
