"""Ways to boot, against golden files: every command of the plans, and all that boards read.

Those of Raspberry Pi and Jetson are not run on hardware: they are what their makers' documents ask for.
GRAFTWORK_GOLDEN=write writes the files anew; read what has changed.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from firmware_tools.build.image import image_steps
from firmware_tools.build.rootfs import device_files, rootfs_steps
from firmware_tools.build.spec import BOOTS, load_spec
from firmware_tools.build.tar_merge import folder_layer
from firmware_tools.build.ways import WAYS, grub_efi, way_of
from firmware_tools.build.ways.jetson import LAYOUT, flash_plan
from firmware_tools.build.ways.rpi_tryboot import CONFIG, RaspberryPi
from firmware_tools.build.ways.way import NOT_RUN
from firmware_tools.device.tryboot import Autoboot
from firmware_tools.errors import FirmwareError

GOLDEN = Path(__file__).parent / "golden"
TARGETS = ("arm64-generic", "rpi", "jetson")


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("GRAFTWORK_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_every_way_that_a_target_may_name_is_there() -> None:
    assert tuple(WAYS) == BOOTS
    assert {way_of(load_spec(target)).note for target in ("rpi", "jetson")} == {NOT_RUN}
    assert not way_of(load_spec("arm64-generic")).note


@pytest.mark.parametrize("target", TARGETS)
def test_the_commands_of_a_build(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, lock = tmp_path / "graftwork-0.1.0-py3-none-any.whl", tmp_path / "lock"
    wheel.write_bytes(b"wheel")
    lock.write_text("")
    (tmp_path / "os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    monkeypatch.setattr(grub_efi, "_HOST", tmp_path / "os-release")
    spec = load_spec(target)
    lines = []
    for step in [*rootfs_steps(spec, wheel, lock, "1.4.0", b"certificates"), *image_steps(spec)]:
        lines.append(
            f"# {step.name}{step.suffix}: {step.summary}; after {', '.join(step.after) or 'nothing'}"
        )
        lines += [" ".join("python" if word == sys.executable else word for word in c) for c in step.commands]
    golden(f"{target}.commands", "\n".join(lines) + "\n")


@pytest.mark.parametrize("target", TARGETS)
def test_rauc_and_mounts_of_a_device(target: str) -> None:
    files = device_files(load_spec(target), "1.4.0", b"certificates")
    golden(f"{target}.system.conf", files["./etc/rauc/system.conf"].read().decode())
    if target == "arm64-generic":
        assert "./etc/graftwork-boot" not in files
        return
    golden(f"{target}.fstab", files["./etc/fstab"].read().decode())
    assert files["./etc/graftwork-boot"].read().decode().strip() == load_spec(target).boot
    [drop_in] = [name for name in files if "graftwork-back.service.d" in name]
    golden(f"{target}.back.conf", files[drop_in].read().decode())


@pytest.mark.parametrize("target", [*TARGETS, "x86_64-uefi"])
def test_every_device_can_follow_an_index_and_has_its_floor(target: str) -> None:
    spec = load_spec(target)
    files = device_files(spec, "1.4.0", b"certificates", release_root=b"root", floor="1.2.0")
    assert "\nmin-bundle-version=1.2.0\n" in files["./etc/rauc/system.conf"].read().decode()
    assert files["./etc/graftwork-release"].read().decode().splitlines()[-1] == "floor=1.2.0"
    assert files["./etc/graftwork/release-root.json"].read() == b"root"
    units = "./etc/systemd/system"
    assert files[f"{units}/timers.target.wants/graftwork-update.timer"].link.endswith(
        "graftwork-update.timer"
    )
    assert b"device fetch --unattended" in files[f"{units}/graftwork-update.service"].read()


def test_what_the_firmware_of_a_raspberry_pi_reads() -> None:
    golden("rpi.autoboot.txt", Autoboot().encode().decode())
    golden("rpi.config.txt", CONFIG)
    spec = load_spec("rpi")
    for slot in "AB":
        golden(f"rpi.cmdline-{slot.lower()}.txt", RaspberryPi().command_line(spec, slot))


def test_firmware_that_is_given_is_taken_instead_of_debians(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("no firmware")
    with pytest.raises(FirmwareError, match=r"expected the board's firmware: start4\.elf"):
        RaspberryPi().before(load_spec("rpi"), tmp_path)
    (tmp_path / "start4.elf").write_text("firmware")
    step = RaspberryPi().before(load_spec("rpi"), tmp_path)[0]
    assert not step.commands
    assert list(step.inputs) == ["./start4.elf"]


def test_the_serial_console_of_a_test_image_is_the_targets() -> None:
    files = device_files(load_spec("arm64-generic"), "1.4.0", b"", test_console=True)
    assert "./etc/systemd/system/serial-getty@ttyAMA0.service.d/autologin.conf" in files


class Board:
    """NVIDIA's Linux_for_Tegra, with programs that write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.here, self.tegra = folder / "out", folder / "Linux_for_Tegra"
        self.called = folder / "called"
        for path in (self.here, self.tegra / "rootfs", (self.tegra / LAYOUT).parent):
            path.mkdir(parents=True)
        self._program(
            "apply_binaries.sh",
            "mkdir -p rootfs/boot/extlinux; echo kernel > rootfs/boot/Image; "
            "echo 'APPEND ${cbootargs} root=/dev/nvme0n1p1 rw rootwait' > rootfs/boot/extlinux/extlinux.conf",
        )
        self._program("tools/kernel_flash/l4t_initrd_flash.sh", ":")
        (self.tegra / LAYOUT).write_text(
            '<device type="nvme">\n        <partition name="APP" type="data">\n        </partition>\n'
            '        <partition name="secondary_gpt" type="secondary_gpt">\n        </partition>\n</device>\n'
        )
        tree = folder / "tree/etc"
        tree.mkdir(parents=True)
        (tree / "graftwork-boot").write_text("jetson\n")
        subprocess.run(["tar", "-czf", self.here / "rootfs.tar.gz", "-C", folder / "tree", "."], check=True)
        (self.here / "release.json").write_text(
            f'{{\n  "version": "1.4.0",\n  "rootfs_sha256": "{"0" * 64}"\n}}\n'
        )
        (self.here / "flash-plan.sh").write_text(flash_plan(load_spec("jetson")))

    def _program(self, name: str, script: str) -> None:
        path = self.tegra / name
        path.write_text(f'#!/bin/sh\necho "ROOTFS_AB=$ROOTFS_AB $0 $*" >> "{self.called}"\n{script}\n')
        path.chmod(0o755)

    def flash(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", self.here / "flash-plan.sh", self.tegra], capture_output=True, text=True, check=False
        )


def test_the_flash_plan(tmp_path: Path) -> None:
    golden("jetson.flash-plan.sh", flash_plan(load_spec("jetson")))
    subprocess.run(["sh", "-n"], input=flash_plan(load_spec("jetson")), text=True, check=True)
    assert folder_layer(tmp_path, ".") == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="the plan is run as root")
def test_the_flash_plan_played_with_programs_in_nvidias_place(tmp_path: Path) -> None:
    board = Board(tmp_path)
    done = board.flash()
    assert done.returncode == 0, done.stderr
    first, last = board.called.read_text().splitlines()
    assert first == "ROOTFS_AB= ./apply_binaries.sh "
    assert last.startswith("ROOTFS_AB=1 ./tools/kernel_flash/l4t_initrd_flash.sh --external-device nvme0n1p1")
    assert last.endswith("jetson-orin-nano-devkit external")
    layout = (board.tegra / LAYOUT).read_text()
    names = [line.split('"')[1] for line in layout.splitlines() if "<partition name" in line]
    assert names == ["APP", "seed", "identity", "data", "secondary_gpt"]
    assert " ro " in (board.tegra / "rootfs/boot/extlinux/extlinux.conf").read_text()
    listing = subprocess.run(
        ["tar", "-tzf", board.here / "update/rootfs.tar.gz"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"./etc/graftwork-boot", "./boot/Image"} <= set(listing)
    described = (board.here / "update/release.json").read_text()
    digest = subprocess.run(
        ["sha256sum", board.here / "update/rootfs.tar.gz"], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert digest in described


@pytest.mark.skipif(os.geteuid() != 0, reason="the plan is run as root")
def test_the_flash_plan_stops_where_another_system_lies(tmp_path: Path) -> None:
    board = Board(tmp_path)
    (board.tegra / "rootfs/etc").mkdir()
    done = board.flash()
    assert done.returncode == 1
    assert "rootfs/ is not empty" in done.stderr
    assert not board.called.exists()
