"""Virtual machines by architecture: QEMU's program and arguments, the firmware, and their packages."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from firmware_tools.errors import FirmwareError


@dataclass(frozen=True)
class MachineModel:
    """One kind of virtual machine; all of them without KVM, with one CPU."""

    program: str
    machine: tuple[str, ...]
    """Arguments that make it what it is."""
    code: Path
    """UEFI firmware."""
    variables: Path
    """What its variables are at first."""
    packages: str
    """Of Debian."""

    def check(self) -> None:
        """Raise FirmwareError where the program or its firmware is missing."""
        if shutil.which(self.program) is None or not self.code.exists():
            raise FirmwareError(
                f"{self.program} or {self.code} is missing; on Debian: apt install {self.packages}"
            )


MODELS = {
    "amd64": MachineModel(
        "qemu-system-x86_64",
        # Without AVX: QEMU 7.2 emulates it with errors, and numpy's sorting crashes on them.
        ("-M", "q35", "-cpu", "Westmere,+rdrand,+rdseed"),
        Path("/usr/share/OVMF/OVMF_CODE_4M.fd"),
        Path("/usr/share/OVMF/OVMF_VARS_4M.fd"),
        "qemu-system-x86 ovmf",
    ),
    "arm64": MachineModel(
        "qemu-system-aarch64",
        # Pointer authentication as the architecture has it would take most of the time of an emulated CPU.
        ("-M", "virt", "-cpu", "max,pauth-impdef=on"),
        Path("/usr/share/AAVMF/AAVMF_CODE.fd"),
        Path("/usr/share/AAVMF/AAVMF_VARS.fd"),
        "qemu-system-arm qemu-efi-aarch64",
    ),
}
"""By Debian's name of the architecture."""
