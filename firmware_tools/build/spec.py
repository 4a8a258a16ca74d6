"""The description of a target: one typed tree, read from TOML; unknown keys are errors."""

import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from firmware_tools.errors import FirmwareError
from runtime import configuration
from runtime.errors import SetupError

ARCHITECTURES = ("amd64", "arm64")
BOOTS = ("grub-efi", "rpi-tryboot", "jetson")
"""Each is a file in build/ways."""
INITRAMFS = ("most", "list")
MIB = 1024 * 1024
_VERSION = re.compile(r"(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})")


@dataclass(frozen=True)
class Sizes:
    """Of the partitions, in MiB."""

    esp: int = 64
    """Of the boot loader's partition; on a Raspberry Pi that of autoboot.txt."""
    boot: int = 128
    """Of each of the two boot partitions of a Raspberry Pi."""
    bootenv: int = 2
    rootfs: int = 512
    """Of each of the two slots."""
    seed: int = 4
    identity: int = 16
    data: int = 512
    """At least; the last partition, so that it can grow with the medium."""

    def __post_init__(self) -> None:
        for name, least in (
            ("esp", 34), ("boot", 64), ("bootenv", 2), ("rootfs", 64), ("seed", 2), ("identity", 8),
            ("data", 64),
        ):  # fmt: skip
            value = getattr(self, name)
            if not least <= value <= 1 << 20:
                raise ValueError(f"{name}: expected {least} to {1 << 20} MiB, got {value}")


@dataclass(frozen=True)
class TargetSpec:
    """What an image is built of. The version is not part of it: each build is given one."""

    name: str
    compatible: str
    """Boards with the same value can run each other's images."""
    architecture: str
    suite: str
    """Of Debian."""
    kernel: str
    """Package of the kernel; empty: the board's maker brings one."""
    python: str
    """Of the suite, MAJOR.MINOR: decides which wheels fit."""
    wheel_platforms: tuple[str, ...]
    boot: str = "grub-efi"
    board: str = ""
    """As NVIDIA's flash tools call it, for Jetson alone."""
    console: str = ""
    """Kernel console beside the screen, e.g. ttyS0,115200; empty: none."""
    packages: tuple[str, ...] = ()
    """More packages of Debian."""
    sources: tuple[str, ...] = ()
    """Lines of APT beside Debian's, e.g. of the archive that the kernel comes from."""
    initramfs: str = "most"
    """Drivers in the initramfs: "most" of the kernel's, or a "list" with what disks and cards need: for
    foreign architectures, as each driver costs seconds of emulation."""
    sizes: Sizes = field(default_factory=Sizes)

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"architecture: expected one of {', '.join(ARCHITECTURES)}, got {self.architecture!r}"
            )
        if self.boot not in BOOTS:
            raise ValueError(f"boot: expected one of {', '.join(BOOTS)}, got {self.boot!r}")
        if self.initramfs not in INITRAMFS:
            raise ValueError(f"initramfs: expected one of {', '.join(INITRAMFS)}, got {self.initramfs!r}")
        if not re.fullmatch(r"3\.\d{1,2}", self.python):
            raise ValueError(f"python: expected MAJOR.MINOR, e.g. 3.13, got {self.python!r}")
        if not re.fullmatch(r"[A-Za-z0-9,]*", self.console):
            raise ValueError(f"console: expected e.g. ttyS0,115200, got {self.console!r}")
        if (self.boot == "jetson") != bool(re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.board)):
            raise ValueError(
                f"board: expected a name of NVIDIA's for jetson, and none else, got {self.board!r}"
            )
        for name in ("name", "compatible", "suite", "kernel"):
            empty = name == "kernel" and not self.kernel
            if not empty and not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9._+-]{0,63}", getattr(self, name)):
                raise ValueError(
                    f"{name}: expected 1 to 64 of A-Z a-z 0-9 . _ + -, got {getattr(self, name)!r}"
                )


def load_spec(name: str) -> TargetSpec:
    """Read a target by its name, or from a file.

    Raises:
        FirmwareError: there is no such target, or the file is malformed; names the targets that there are.
    """
    path = Path(name)
    if path.suffix != ".toml":
        folder = Path(str(resources.files("firmware_tools"))) / "targets"
        path = folder / f"{name}.toml"
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in folder.glob("*.toml")))
            raise FirmwareError(f"no target {name!r}; expected a .toml file or one of {known}")
    try:
        return configuration.load(TargetSpec, path)
    except SetupError as error:
        raise FirmwareError(str(error)) from error


def check_version(version: str) -> str:
    """Return a version if it is one of an image.

    Raises:
        FirmwareError: not MAJOR.MINOR.PATCH in plain numbers, which is what devices compare.
    """
    if not _VERSION.fullmatch(version):
        raise FirmwareError(f"expected a version like 1.4.0, got {version!r}")
    return version
