"""Update bundles: RAUC's verity format, signed for code; and looking at every byte of one.

`rauc info` checks the signature of the manifest and never reads the payload, so a bundle is verified by
extracting it.
"""

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from firmware_tools.build.spec import check_version
from firmware_tools.errors import FirmwareError


@dataclass(frozen=True)
class Signer:
    """What signs: files, or PKCS #11 URIs of a token."""

    certificate: str
    key: str
    module: str = ""
    """PKCS #11 module, where the key is a URI."""


@dataclass(frozen=True)
class BundleFacts:
    """What a verified bundle says of itself."""

    compatible: str
    version: str


def make_bundle(rootfs: Path, output: Path, facts: BundleFacts, signer: Signer) -> None:
    """Make and sign a bundle of a root file system.

    Raises:
        FirmwareError: rauc is missing or refuses; the output exists.
    """
    check_version(facts.version)
    if output.exists():
        raise FirmwareError(f"{output} exists; a bundle is never overwritten")
    # RAUC unpacks what is called a tar, and writes anything else into the slot as it is.
    name = "rootfs.tar.gz" if rootfs.name.endswith(".tar.gz") else "rootfs.img"
    manifest = (
        f"[update]\ncompatible={facts.compatible}\nversion={facts.version}\n\n[bundle]\nformat=verity\n\n"
        f"[image.rootfs]\nfilename={name}\n"
    )
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        content = Path(folder) / "content"
        content.mkdir()
        (content / "manifest.raucm").write_text(manifest, "utf-8")
        try:
            os.link(rootfs, content / name)
        except OSError:  # of another file system
            shutil.copyfile(rootfs, content / name)
        # The payload is packed already: zstd over it would cost time and gain nothing.
        partial = Path(folder) / "bundle"
        command = [
            *("rauc", "bundle", f"--cert={signer.certificate}", f"--key={signer.key}"),
            *("--mksquashfs-args=-comp gzip -noD -noI -noF", str(content), str(partial)),
        ]
        environment = {"RAUC_PKCS11_MODULE": signer.module} if signer.module else {}
        _rauc(command, environment)
        partial.replace(output)


def verify_bundle(bundle: Path, keyring: Path) -> BundleFacts:
    """Check a bundle's signature, and every byte of its payload.

    Raises:
        FirmwareError: names what does not hold.
    """
    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        _rauc(["rauc", f"--keyring={keyring}", "extract", str(bundle), str(Path(folder) / "content")])
    printed = _rauc(["rauc", f"--keyring={keyring}", "info", "--output-format=shell", str(bundle)])
    found = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
    try:
        return BundleFacts(found["RAUC_MF_COMPATIBLE"].strip("'\""), found["RAUC_MF_VERSION"].strip("'\""))
    except KeyError as error:
        raise FirmwareError(f"{bundle}: rauc says nothing of {error}") from error


def _rauc(command: list[str], environment: dict[str, str] | None = None) -> str:
    if shutil.which("rauc") is None:
        raise FirmwareError("rauc is not installed; on Debian: apt install rauc")
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as configuration:
        configuration.write(
            "[system]\ncompatible=any\nbootloader=noop\n\n[keyring]\ncheck-purpose=codesign\n"
        )
        configuration.flush()
        result = subprocess.run(  # noqa: S603 - fixed commands
            [command[0], f"--conf={configuration.name}", *command[1:]],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **(environment or {})},
        )
    if result.returncode:
        said = (result.stderr or result.stdout).strip().splitlines()
        raise FirmwareError(f"rauc: {said[-1] if said else f'status {result.returncode}'}")
    return result.stdout
