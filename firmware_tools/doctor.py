"""Whether this machine can build, flash and boot images: every tool is tried, not looked for.

A tool that is there and does not work here is as good as none: user namespaces may be forbidden, /dev/kvm may
open and still run no guest. Each probe does a small piece of the real work, and names the Debian packages
where it fails.
"""

import contextlib
import os
import struct
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from firmware_tools.build.squashfs import pack
from firmware_tools.errors import FirmwareError
from firmware_tools.machine_models import MODELS

PROBE_SECONDS = 60.0
KVM_SECONDS = 20.0
REGISTER = (
    "with qemu-user-static installed, as root: mount -t binfmt_misc none /proc/sys/fs/binfmt_misc; "
    "cat /usr/lib/binfmt.d/qemu-aarch64.conf > /proc/sys/fs/binfmt_misc/register"
)
"""What a machine without systemd has to be told by hand; with it the package does so."""
ARM64_PROGRAM = (
    b"\x7fELF\x02\x01\x01" + bytes(9)
    + struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    + struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, 0x84, 0x84, 0x1000)
    + struct.pack("<III", 0xD2800000, 0xD2800BA8, 0xD4000001)
)  # fmt: skip
"""An ELF program that ends with status 0: mov x0, 0; mov x8, 93 (exit); svc 0."""
SUFFIX = ":/usr/sbin:/sbin"


@dataclass(frozen=True)
class Finding:
    """What came of one probe."""

    name: str
    needed_for: str
    works: bool
    detail: str
    """Version, or what went wrong."""
    packages: str
    """Of Debian, to install."""
    optional: bool = False


@dataclass(frozen=True)
class _Probe:
    name: str
    needed_for: str
    packages: str
    run: Callable[[Path], str]
    """Does a piece of work in a folder; raises where it fails; returns what to show."""
    optional: bool = False


class _FailedError(Exception):
    """A probe did not work."""


def examine() -> list[Finding]:
    """Try everything; nothing outside temporary folders is touched."""
    findings = []
    for probe in PROBES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                detail, works = probe.run(Path(folder)), True
            except _FailedError as error:
                detail, works = str(error), False
        findings.append(
            Finding(probe.name, probe.needed_for, works, detail, probe.packages, optional=probe.optional)
        )
    return findings


def install_line(findings: Sequence[Finding]) -> str:
    """The command that installs what is missing; empty: nothing is."""
    packages = sorted(
        {name for finding in findings if not finding.works for name in finding.packages.split()}
    )
    return f"apt install --no-install-recommends {' '.join(packages)}" if packages else ""


def _call(command: Sequence[str | Path], *, text: str | None = None, limit: float = PROBE_SECONDS) -> str:
    try:
        result = subprocess.run(  # noqa: S603 - fixed probes
            [str(word) for word in command],
            input=text,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
            env={**os.environ, "PATH": os.environ.get("PATH", "") + SUFFIX, "LC_ALL": "C.UTF-8"},
        )
    except FileNotFoundError:
        raise _FailedError(f"{command[0]} is not installed") from None
    except OSError as error:
        raise _FailedError(f"{command[0]} cannot be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise _FailedError(f"{command[0]} did not end within {limit:g} s") from None
    if result.returncode:
        said = (result.stderr or result.stdout).strip().splitlines()
        raise _FailedError(said[-1][:200] if said else f"{command[0]}: status {result.returncode}")
    return result.stdout


def _mmdebstrap(folder: Path) -> str:
    """Runs a command within an empty tree, in the mode that a build would take."""
    _call(
        ["mmdebstrap", "--quiet", "--variant=custom",
         "--skip=check/empty,update,cleanup/apt,output/dev,check/qemu",
         '--setup-hook=mkdir -p "$1/etc" && : > "$1/etc/probe"', "", folder / "out.tar",
         "deb [trusted=yes] copy:/nonexistent ./"]
    )  # fmt: skip
    return _call(["mmdebstrap", "--version"]).strip()


def _squashfs(folder: Path) -> str:
    """Two packings of the same tar must give the same bytes."""
    (folder / "file").write_text("content")
    _call(["tar", "-cf", folder / "tree.tar", "-C", folder, "file"])
    outputs = []
    for number in (1, 2):
        output = folder / f"{number}.squashfs"
        _pack(folder / "tree.tar", output)
        outputs.append(output.read_bytes())
    if outputs[0] != outputs[1]:
        raise _FailedError("two packings of the same files differ")
    return "reproducible"


def _pack(tree: Path, output: Path) -> None:
    try:
        pack(tree, output, moment=1)
    except FirmwareError as error:
        raise _FailedError(str(error).splitlines()[-1]) from None


def _fat(folder: Path) -> str:
    image, file = folder / "fat", folder / "file"
    with image.open("wb") as target:
        target.truncate(4 << 20)
    file.write_text("content")
    _call(["mkfs.vfat", "--invariant", image])
    _call(["mcopy", "-i", image, file, "::/file"])
    if _call(["mtype", "-i", image, "::/file"]) != "content":
        raise _FailedError("a file that was copied into FAT does not come out again")
    return "writes without mounting"


def _partitions(folder: Path) -> str:
    image = folder / "image"
    with image.open("wb") as target:
        target.truncate(8 << 20)
    _call(["sfdisk", "--quiet", image], text="label: gpt\nstart=2048, size=2048, name=probe\n")
    if "probe" not in _call(["sfdisk", "--json", image]):
        raise _FailedError("sfdisk does not read its own table")
    return "writes without loop devices"


def _grub(folder: Path) -> str:
    output = folder / "grub.efi"
    _call(["grub-mkimage", "-O", "x86_64-efi", "-o", output, "-p", "(memdisk)/boot/grub",
           "memdisk", "tar", "part_gpt", "fat", "squash4", "hashsum", "loadenv"])  # fmt: skip
    return f"{output.stat().st_size:,} bytes"


def _rauc(_folder: Path) -> str:
    return _call(["rauc", "--version"]).strip()


def _bmaptool(_folder: Path) -> str:
    return _call(["bmaptool", "--version"]).strip()


def _qemu(architecture: str) -> str:
    model = MODELS[architecture]
    version = _call([model.program, "--version"]).splitlines()[0]
    if not model.code.exists():
        raise _FailedError(f"{model.code} is missing")
    return version


def _foreign(folder: Path) -> str:
    """Runs a program of arm64: that an emulator is installed does not say that the kernel knows of it."""
    program = folder / "arm64"
    program.write_bytes(ARM64_PROGRAM)
    program.chmod(0o755)
    try:
        _call([program], limit=10)
    except _FailedError as error:
        raise _FailedError(f"{error}; {REGISTER}") from None
    return "a program of arm64 runs"


def _kvm(folder: Path) -> str:
    """Boots firmware and boot loader; that /dev/kvm opens, or that a few instructions run, proves nothing."""
    efi = folder / "grub.efi"
    text = "serial --unit=0 --speed=115200\nterminal_output serial\necho graftwork-probe\nhalt\n"
    (folder / "grub.cfg").write_text(text)
    _call(
        [
            *("grub-mkstandalone", "-O", "x86_64-efi", "-o", efi, "--modules=serial terminal echo halt"),
            *("--locales=", "--themes=", "--fonts=", f"boot/grub/grub.cfg={folder / 'grub.cfg'}"),
        ]
    )
    disk, serial = folder / "disk", folder / "serial"
    with disk.open("wb") as target:
        target.truncate(34 << 20)
    _call(["mkfs.vfat", disk])
    _call(["mmd", "-i", disk, "::/EFI", "::/EFI/BOOT"])
    _call(["mcopy", "-i", disk, efi, "::/EFI/BOOT/BOOTX64.EFI"])
    command = [
        *("qemu-system-x86_64", "-M", "q35", "-accel", "kvm", "-cpu", "max", "-m", "256", "-display", "none"),
        *("-nodefaults", "-no-reboot", "-serial", f"file:{serial}"),
        *("-drive", f"if=pflash,format=raw,readonly=on,file={MODELS['amd64'].code}"),
        *("-drive", f"file={disk},format=raw,if=virtio"),
    ]
    with contextlib.suppress(subprocess.TimeoutExpired, FileNotFoundError):
        subprocess.run(command, capture_output=True, timeout=KVM_SECONDS, check=False)  # noqa: S603 - a fixed probe
    if not serial.exists() or b"graftwork-probe" not in serial.read_bytes():
        raise _FailedError("a guest does not get as far as its boot loader; boot tests go without KVM anyway")
    return "a guest boots"


PROBES = (
    _Probe("mmdebstrap", "build", "mmdebstrap uidmap", _mmdebstrap),
    _Probe("squashfs", "build", "squashfs-tools", _squashfs),
    _Probe("FAT", "build, provision", "dosfstools mtools", _fat),
    _Probe("partitions", "build, provision", "fdisk", _partitions),
    _Probe("GRUB", "build", "grub-efi-amd64-bin grub-common", _grub),
    _Probe("rauc", "bundle, verify bundle", "rauc", _rauc),
    _Probe("bmaptool", "comparing block maps", "bmap-tools", _bmaptool, optional=True),
    _Probe("QEMU", "boottest", MODELS["amd64"].packages, lambda _folder: _qemu("amd64")),
    _Probe(
        "QEMU arm64", "boottest of arm64", MODELS["arm64"].packages, lambda _: _qemu("arm64"), optional=True
    ),
    _Probe("arm64", "build of arm64", "qemu-user-static arch-test", _foreign, optional=True),
    _Probe("KVM", "nothing; it would be faster", "", _kvm, optional=True),
)
