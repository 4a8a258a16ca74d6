"""GRUB on UEFI: PCs, gateways, servers and virtual machines, x86_64 and arm64.

esp        FAT    GRUB with its configuration inside: nothing beside it can be changed unnoticed
bootenv    FAT    which slot boots, in two checksummed copies (device/boot_environment.py)
rootfs-a   slot A, read-only squashfs with kernel and initramfs
rootfs-b   slot B, empty until the first update
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from firmware_tools.build.disk import make_disk, run
from firmware_tools.build.partitions import SLOTS, Wanted, lay_out
from firmware_tools.build.plan import Step
from firmware_tools.build.root_formats import SQUASHFS
from firmware_tools.build.spec import MIB, TargetSpec
from firmware_tools.build.tar_merge import MOMENT, Entry
from firmware_tools.build.ways.way import SlotDevice, raw_slots
from firmware_tools.device.boot_environment import BootEnvironment, factory_files
from firmware_tools.errors import FirmwareError

_MODULES = (
    "memdisk tar part_gpt fat normal linux search search_fs_uuid loadenv test echo serial terminal "
    "configfile squash4 gzio hashsum gcry_sha256 true halt reboot sleep regexp efi_gop all_video"
)
_HOST = Path("/etc/os-release")
_VERSION = re.compile(rb"\x00(\d+\.\d+-[0-9a-z+.~]+)\x00")


@dataclass(frozen=True)
class _Platform:
    """What differs between architectures."""

    name: str
    """Of GRUB."""
    program: str
    """Where UEFI looks for it."""
    terminal: str
    """Commands of GRUB. On arm64 the firmware's own console is the serial line already."""
    package: str = ""
    """Of Debian, that the modules are taken out of; empty: they are installed on this machine."""


_PLATFORMS = {
    "amd64": _Platform(
        "x86_64-efi",
        "EFI/BOOT/BOOTX64.EFI",
        "serial --unit=0 --speed=115200\nterminal_input console serial\nterminal_output console serial",
    ),
    "arm64": _Platform(
        "arm64-efi",
        "EFI/BOOT/BOOTAA64.EFI",
        "terminal_input console\nterminal_output console",
        "grub-efi-arm64-bin",
    ),
}


class GrubEfi:
    """The way."""

    root = SQUASHFS
    products: Mapping[str, str] = {"image": "image.img", "rootfs": "rootfs.squashfs"}
    note = ""
    layers: tuple[str, ...] = ()

    def partitions(self, spec: TargetSpec) -> Wanted:
        """Boot loader, boot environment, two slots, and what every device has."""
        sizes = spec.sizes
        return [
            ("esp", sizes.esp, "esp"),
            ("bootenv", sizes.bootenv, "linux"),
            *((name, sizes.rootfs, "linux") for name in SLOTS.values()),
            ("seed", sizes.seed, "linux"),
            ("identity", sizes.identity, "linux"),
            ("data", sizes.data, "linux"),
        ]

    def slots(self, spec: TargetSpec) -> Mapping[str, SlotDevice]:
        """By the identifiers of the partitions."""
        return raw_slots(lay_out(spec, self.partitions(spec)))

    def files(self, _spec: TargetSpec) -> dict[str, Entry]:
        """None: the overlay is written for this way."""
        return {}

    def before(self, _spec: TargetSpec, _firmware: Path | None) -> list[Step]:
        """None: the kernel is started out of the slot."""
        return []

    def after(self, spec: TargetSpec) -> list[Step]:
        """Boot loader and image."""
        platform = _PLATFORMS[spec.architecture]
        modules = [_modules(platform)] if platform.package else []
        return [*modules, _loader(spec, platform), self._image(spec, platform)]

    def check(self, folder: Path) -> str:
        """The loader alone on its partition; both copies of the boot environment, with slot A good."""
        loaders = [path for path in (folder / "esp").rglob("*") if path.is_file()]
        if [path.relative_to(folder / "esp").as_posix().upper() for path in loaders] not in [
            [platform.program] for platform in _PLATFORMS.values()
        ]:
            raise FirmwareError(f"esp: expected GRUB alone, got {sorted(path.name for path in loaders)}")
        environment = BootEnvironment(folder / "bootenv")
        if None in environment.copies() or environment.tries() is None:
            raise FirmwareError("bootenv: a copy, or the counts, are damaged")
        state = environment.read()
        return f"slot {state.primary} first, A {state.a_state}, B {state.b_state}"

    def _image(self, spec: TargetSpec, platform: _Platform) -> Step:
        layout = lay_out(spec, self.partitions(spec))

        def make(output: Path, outputs: Mapping[str, Path]) -> None:
            """Make the partitions with sfdisk; fill them with mkfs.vfat and mtools."""
            fats = {
                "esp": {platform.program: outputs["loader"].read_bytes()},
                "bootenv": factory_files(),
                "seed": {},
            }
            make_disk(output, layout, fats, {"rootfs-a": outputs["rootfs"]})

        bootenv = {name: hashlib.sha256(content).hexdigest() for name, content in factory_files().items()}
        inputs = {"layout": layout.sfdisk_script(), "bootenv": json.dumps(bootenv, sort_keys=True)}
        return Step(
            "image",
            f"image of {layout.size // MIB} MiB",
            ".img",
            after=("rootfs", "loader"),
            inputs=inputs,
            work=make,
        )


def grub_configuration(spec: TargetSpec) -> str:
    """What GRUB runs, with this target's partitions."""
    layout = lay_out(spec, GrubEfi().partitions(spec))
    text = (Path(str(resources.files("firmware_tools"))) / "overlay" / "grub.cfg").read_text("utf-8")
    console = f"console=tty0 console={spec.console}" if spec.console else ""
    for mark, value in {
        "@TERMINAL@": _PLATFORMS[spec.architecture].terminal,
        "@UUID_A@": layout["rootfs-a"].uuid,
        "@UUID_B@": layout["rootfs-b"].uuid,
        "@NUMBER_A@": str(layout["rootfs-a"].number),
        "@NUMBER_B@": str(layout["rootfs-b"].number),
        "@CONSOLE@": console,
    }.items():
        text = text.replace(mark, value)
    # The disk is the one that GRUB was started from: another one with the same image must not answer for it.
    head = (
        'regexp --set=1:disk "^\\(([^,]*),?.*\\)" "$cmdpath"\n'
        f"set bootenv=$disk,gpt{layout['bootenv'].number}\n"
    )
    return head + text


def _modules(platform: _Platform) -> Step:
    """GRUB's modules of a foreign architecture, of this machine's release: grub-mkimage must know them."""
    return Step(
        "modules",
        f"GRUB's modules for {platform.name}",
        ".tar",
        (
            (
                *("mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64"),
                *(f"--include={platform.package}", _host_suite(), "{output}"),
            ),
        ),
        environment={"SOURCE_DATE_EPOCH": str(MOMENT)},
    )


def _host_suite() -> str:
    try:
        lines = _HOST.read_text("utf-8").splitlines()
    except OSError:
        lines = []
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    return found.get("VERSION_CODENAME", "stable").strip('"')


def _loader(spec: TargetSpec, platform: _Platform) -> Step:
    configuration = grub_configuration(spec)

    def make(output: Path, outputs: Mapping[str, Path]) -> None:
        """Put the configuration into a tar that GRUB has in memory; run grub-mkimage."""
        memory, modules = output.with_suffix(".memdisk"), output.with_suffix(".modules")
        with tarfile.open(memory, "w", format=tarfile.USTAR_FORMAT) as tar:
            Entry(configuration.encode()).add_to(tar, "boot/grub/grub.cfg", MOMENT)
        try:
            folder = _unpack(outputs["modules"], modules, platform) if platform.package else []
            run(
                [
                    *("grub-mkimage", *folder, "-O", platform.name, "-o", str(output), "-m", str(memory)),
                    *("-p", "(memdisk)/boot/grub", *_MODULES.split()),
                ]
            )
        finally:
            memory.unlink()
            run(["rm", "-rf", str(modules)])

    inputs = {"configuration": configuration, "modules": _MODULES}
    if platform.package:
        inputs["platform"] = platform.name
    after = ("modules",) if platform.package else ()
    return Step("loader", "GRUB with its configuration", ".efi", after=after, inputs=inputs, work=make)


def _unpack(tar_file: Path, folder: Path, platform: _Platform) -> list[str]:
    """Unpack modules; returns the argument of grub-mkimage that names them.

    Raises:
        FirmwareError: they are of another version than grub-mkimage, which would make what does not boot.
    """
    folder.mkdir()
    beginning = f"./usr/lib/grub/{platform.name}/"
    with tarfile.open(tar_file) as tar:
        for member in tar:
            name = member.name.removeprefix(beginning)
            if member.isreg() and member.name.startswith(beginning) and "/" not in name:
                content = tar.extractfile(member)
                assert content is not None  # noqa: S101 - a regular file has one
                (folder / name).write_bytes(content.read())
    found = _VERSION.search((folder / "normal.mod").read_bytes())
    modules = found[1].decode() if found else "unknown"
    program = run(["grub-mkimage", "--version"]).split()[-1]
    if modules != program:
        raise FirmwareError(
            f"GRUB's modules for {platform.name} are version {modules}, and grub-mkimage is {program}: "
            "update grub-common on this machine, and remove the step's output from the cache"
        )
    return ["-d", str(folder)]
