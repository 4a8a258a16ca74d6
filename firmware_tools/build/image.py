"""The image: partitions with what they hold when a device leaves the factory, made without mounts.

esp      EFI program of GRUB with its configuration inside: nothing beside it can be changed unnoticed
bootenv  slot A good, slot B bad
slot A   the root file system; slot B stays empty until the first update
"""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from firmware_tools.build.layout import Layout, layout_of
from firmware_tools.build.plan import Step
from firmware_tools.build.rootfs import MOMENT
from firmware_tools.build.spec import MIB, TargetSpec
from firmware_tools.build.tar_merge import Entry
from firmware_tools.device.boot_environment import factory_files
from firmware_tools.errors import FirmwareError
from firmware_tools.programs import SEARCH_PATH

_MODULES = (
    "memdisk tar part_gpt fat normal linux search search_fs_uuid loadenv test echo serial terminal "
    "configfile squash4 gzio hashsum gcry_sha256 true halt reboot sleep regexp efi_gop all_video"
)
_BLOCK = 4 * MIB


def image_steps(spec: TargetSpec) -> list[Step]:
    """Steps from the root file system to the image."""
    return [_loader(spec), _image(spec)]


def grub_configuration(spec: TargetSpec) -> str:
    """What GRUB runs, with this target's partitions."""
    layout = layout_of(spec)
    text = (Path(str(resources.files("firmware_tools"))) / "overlay" / "grub.cfg").read_text("utf-8")
    console = f"console=tty0 console={spec.console}" if spec.console else ""
    for mark, value in {
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


def _loader(spec: TargetSpec) -> Step:
    configuration = grub_configuration(spec)

    def make(output: Path, _outputs: Mapping[str, Path]) -> None:
        """Put the configuration into a tar that GRUB has in memory; run grub-mkimage."""
        memory = output.with_suffix(".memdisk")
        with tarfile.open(memory, "w", format=tarfile.USTAR_FORMAT) as tar:
            Entry(configuration.encode()).add_to(tar, "boot/grub/grub.cfg", MOMENT)
        try:
            _run(
                [
                    *("grub-mkimage", "-O", "x86_64-efi", "-o", str(output), "-m", str(memory)),
                    *("-p", "(memdisk)/boot/grub", *_MODULES.split()),
                ]
            )
        finally:
            memory.unlink()

    inputs = {"configuration": configuration, "modules": _MODULES}
    return Step("loader", "GRUB with its configuration", ".efi", inputs=inputs, work=make)


def _image(spec: TargetSpec) -> Step:
    layout = layout_of(spec)

    def make(output: Path, outputs: Mapping[str, Path]) -> None:
        """Make the partitions with sfdisk; fill them with mkfs.vfat and mtools."""
        with output.open("wb") as file:
            file.truncate(layout.size)
        _run(["sfdisk", "--quiet", str(output)], text=layout.sfdisk_script())
        folder = output.with_suffix(".parts")
        folder.mkdir()
        try:
            _fat(folder / "esp", layout, "esp", {"EFI/BOOT/BOOTX64.EFI": outputs["loader"].read_bytes()})
            _fat(folder / "bootenv", layout, "bootenv", factory_files())
            _fat(folder / "seed", layout, "seed", {})
            for name in ("esp", "bootenv", "seed"):
                _copy_into(folder / name, output, layout, name)
            _copy_into(outputs["rootfs"], output, layout, "rootfs-a")
        finally:
            shutil.rmtree(folder)

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


def _fat(path: Path, layout: Layout, name: str, files: Mapping[str, bytes]) -> None:
    """A FAT file system with files, the same bytes each time."""
    with path.open("wb") as file:
        file.truncate(layout[name].size)
    volume = f"{int(layout[name].uuid[:8], 16):08x}"
    _run(["mkfs.vfat", "--invariant", "-i", volume, "-n", name.upper(), str(path)])
    folders = sorted({"/".join(file.split("/")[:n]) for file in files for n in range(1, file.count("/") + 1)})
    environment = {"SOURCE_DATE_EPOCH": str(MOMENT), "MTOOLS_SKIP_CHECK": "1"}
    for folder in folders:
        _run(["mmd", "-i", str(path), f"::/{folder}"], environment=environment)
    for file_name, content in sorted(files.items()):
        source = path.with_name("content")
        source.write_bytes(content)
        os.utime(source, (MOMENT, MOMENT))
        _run(["mcopy", "-m", "-i", str(path), str(source), f"::/{file_name}"], environment=environment)
        source.unlink()


def _copy_into(source: Path, image: Path, layout: Layout, name: str) -> None:
    """Write a file into its partition; what is zero stays a hole."""
    partition, size = layout[name], source.stat().st_size
    if size > partition.size:
        raise FirmwareError(
            f"partition {name} has {partition.size // MIB} MiB, and its content {size / MIB:.1f} MiB: raise "
            f"sizes.{'rootfs' if name.startswith('rootfs') else name} in the target"
        )
    with source.open("rb") as reading, image.open("r+b") as writing:
        position = partition.start
        while block := reading.read(_BLOCK):
            if block.count(0) != len(block):
                writing.seek(position)
                writing.write(block)
            position += len(block)


def _run(
    command: list[str], *, text: str | None = None, environment: Mapping[str, str] | None = None
) -> None:
    if shutil.which(command[0], path=SEARCH_PATH) is None:
        raise FirmwareError(f"{command[0]} is not installed; see: graftwork-firmware doctor")
    result = subprocess.run(  # noqa: S603 - fixed commands
        command,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", "TZ": "UTC", **(environment or {})},
    )
    if result.returncode:
        raise FirmwareError(f"{command[0]} failed:\n{(result.stderr or result.stdout).strip()[-2000:]}")
