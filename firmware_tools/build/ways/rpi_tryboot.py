"""Raspberry Pi 4 and 5: the firmware's own "tryboot" between two boot partitions. Not run on hardware.

    autoboot     FAT   autoboot.txt: which boot partition boots, and which one a trial boots
    boot-a/b     FAT   firmware, kernel, initramfs, device trees, config.txt, cmdline.txt of one slot each
    rootfs-a/b   the slots; each holds what fills its boot partition, so a bundle is a root file system

The table is GPT, which the boot loaders in the EEPROM of both boards read. See device/tryboot.py.
"""

import re
import tarfile
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path

from firmware_tools.build.disk import make_disk
from firmware_tools.build.partitions import SLOTS, Wanted, lay_out
from firmware_tools.build.plan import Step
from firmware_tools.build.root_formats import SQUASHFS
from firmware_tools.build.spec import MIB, TargetSpec
from firmware_tools.build.tar_merge import MOMENT, Entry, folder_layer, tar_layer, write_layer
from firmware_tools.build.ways.way import NOT_RUN, SlotDevice, raw_slots
from firmware_tools.device.tryboot import AUTOBOOT, BOOT_FILES, Autoboot, boot_name, decode
from firmware_tools.errors import FirmwareError

CONFIG = """\
# Read by the firmware of the board; each slot has its own.
arm_64bit=1
kernel=kernel8.img
initramfs initramfs8 followkernel
enable_uart=1
disable_splash=1
"""
NEEDED = ("kernel8.img", "initramfs8", "start4.elf", "bcm2711-rpi-4-b.dtb")
_FIRMWARE = re.compile(r"(.*/)?(start4\w*\.elf|fixup4\w*\.dat)")
_OF_SYSTEM = (
    (re.compile(r"\./boot/vmlinuz-[^/]+"), "kernel8.img"),
    (re.compile(r"\./boot/initrd\.img-[^/]+"), "initramfs8"),
    (re.compile(r"\./usr/lib/linux-image-[^/]+/broadcom/(bcm271[12][^/]*\.dtb)"), r"\1"),
    (re.compile(r"\./usr/lib/linux-image-[^/]+/overlays/([^/]+)"), r"overlays/\1"),
)
"""Where Debian's packages and those of Raspberry Pi put what boots, and how it is called for the firmware."""
_BACK = """\
# The firmware says itself whether this boot is a trial.
[Unit]
ConditionKernelCommandLine=

[Service]
ExecCondition=/usr/bin/grep -qaP "\\\\x01" /proc/device-tree/chosen/bootloader/tryboot
"""


class RaspberryPi:
    """The way."""

    root = SQUASHFS
    products: Mapping[str, str] = {"image": "image.img", "rootfs": "rootfs.squashfs"}
    note = NOT_RUN
    layers: tuple[str, ...] = ("boot",)

    def partitions(self, spec: TargetSpec) -> Wanted:
        """First the one of autoboot.txt, then the two that it names."""
        sizes = spec.sizes
        return [
            ("autoboot", sizes.esp, "fat"),
            ("boot-a", sizes.boot, "fat"),
            ("boot-b", sizes.boot, "fat"),
            *((name, sizes.rootfs, "linux") for name in SLOTS.values()),
            ("seed", sizes.seed, "linux"),
            ("identity", sizes.identity, "linux"),
            ("data", sizes.data, "linux"),
        ]

    def slots(self, spec: TargetSpec) -> Mapping[str, SlotDevice]:
        """By the identifiers of the partitions."""
        return raw_slots(lay_out(spec, self.partitions(spec)))

    def files(self, _spec: TargetSpec) -> dict[str, Entry]:
        """Mounts autoboot.txt in the place of the boot environment."""
        fstab = Path(str(resources.files("firmware_tools"))) / "overlay/etc/fstab"
        text = fstab.read_text("utf-8").replace("PARTLABEL=bootenv ", "PARTLABEL=autoboot")
        return {
            "./etc/fstab": Entry(text.encode()),
            "./etc/systemd/system/graftwork-back.service.d/tryboot.conf": Entry(_BACK.encode()),
        }

    def before(self, spec: TargetSpec, firmware: Path | None) -> list[Step]:
        """The board's firmware, and all that boots a slot."""
        given = _from_folder(firmware) if firmware is not None else _from_debian(spec)
        return [given, self._boot(spec)]

    def after(self, spec: TargetSpec) -> list[Step]:
        """The image: slot A boots, B holds nothing."""
        layout = lay_out(spec, self.partitions(spec))

        def make(output: Path, outputs: Mapping[str, Path]) -> None:
            """Make the partitions with sfdisk; fill them with mkfs.vfat and mtools."""
            prefix, boot = f"./{BOOT_FILES}/", {}
            for name, entry in tar_layer(outputs["boot"]).items():
                if named := boot_name(name.removeprefix(prefix), "A"):
                    boot[named] = entry.read()
            fats: dict[str, dict[str, bytes]] = {
                "autoboot": {AUTOBOOT: Autoboot().encode()}, "boot-a": boot, "boot-b": {}, "seed": {},
            }  # fmt: skip
            make_disk(output, layout, fats, {"rootfs-a": outputs["rootfs"]})

        return [
            Step(
                "image",
                f"image of {layout.size // MIB} MiB, {NOT_RUN}",
                ".img",
                after=("rootfs", "boot"),
                inputs={"layout": layout.sfdisk_script(), "autoboot": Autoboot().encode().decode()},
                work=make,
            )
        ]

    def check(self, folder: Path) -> str:
        """autoboot.txt as devices write it; what boots slot A beside its own command line."""
        try:
            found = decode((folder / "autoboot" / AUTOBOOT).read_bytes())
        except (OSError, ValueError) as error:
            raise FirmwareError(f"autoboot: {AUTOBOOT}: {error}") from error
        for name in (*NEEDED, "config.txt", "cmdline.txt"):
            if not (folder / "boot-a" / name).is_file():
                raise FirmwareError(f"boot-a: {name} is missing")
        return f"slot {found.default} by default, A {found.states.a}, B {found.states.b}"

    def command_line(self, spec: TargetSpec, slot: str) -> str:
        """The kernel's, of one slot. It names the root file system: RAUC trusts that above all."""
        uuid = lay_out(spec, self.partitions(spec))[SLOTS[slot]].uuid
        console = f"console={spec.console} " if spec.console else ""
        return (
            f"{console}console=tty1 root=PARTUUID={uuid} rootfstype=squashfs ro rootwait rauc.slot={slot} "
            "panic=10 net.ifnames=0\n"
        )

    def _boot(self, spec: TargetSpec) -> Step:
        texts = {"config.txt": CONFIG}
        texts |= {f"cmdline-{slot.lower()}.txt": self.command_line(spec, slot) for slot in SLOTS}

        def make(output: Path, outputs: Mapping[str, Path]) -> None:
            """Gather firmware, kernel, initramfs and device trees into one folder of the root file system."""
            found = {name: Entry(text.encode()) for name, text in texts.items()}
            for name, entry in tar_layer(outputs["firmware"]).items():
                if _FIRMWARE.fullmatch(name):
                    found[name.rpartition("/")[2]] = entry
            found |= dict(_of_system(outputs["system"]))
            for needed in NEEDED:
                if needed not in found:
                    raise FirmwareError(f"{needed} is in none of the packages; give --firmware DIR")
            write_layer(output, {f"./{BOOT_FILES}/{name}": entry for name, entry in found.items()}, MOMENT)

        return Step(
            "boot",
            "what boots a slot",
            ".tar",
            after=("system", "firmware"),
            inputs={**texts, "names": str([(p.pattern, name) for p, name in _OF_SYSTEM])},
            work=make,
        )


def _of_system(tar_file: Path) -> Iterator[tuple[str, Entry]]:
    with tarfile.open(tar_file) as tar:
        for member in tar:
            for pattern, name in _OF_SYSTEM:
                if member.isreg() and (match := pattern.fullmatch(member.name)):
                    content = tar.extractfile(member)
                    assert content is not None  # noqa: S101 - a regular file has one
                    yield match.expand(name), Entry(content.read())


def _from_debian(spec: TargetSpec) -> Step:
    return Step(
        "firmware",
        "the board's firmware, from Debian's package raspi-firmware",
        ".tar",
        (
            (
                *("mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64"),
                *("--components=main,non-free-firmware", "--include=raspi-firmware", spec.suite, "{output}"),
            ),
        ),
        environment={"SOURCE_DATE_EPOCH": str(MOMENT)},
    )


def _from_folder(folder: Path) -> Step:
    files = {name: entry for name, entry in folder_layer(folder, ".").items() if _FIRMWARE.fullmatch(name)}
    if not files:
        raise FirmwareError(f"{folder}: expected the board's firmware: start4.elf, fixup4.dat")

    def make(output: Path, _outputs: Mapping[str, Path]) -> None:
        """Pack the files that were given."""
        write_layer(output, files, MOMENT)

    return Step(
        "firmware",
        "the board's firmware, as given",
        ".tar",
        inputs={name: entry.describe() for name, entry in files.items()},
        work=make,
    )
