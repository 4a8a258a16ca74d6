"""Descriptions of targets: the built-in ones load, and what is wrong in one is named with its place."""

from pathlib import Path

import pytest

import firmware_tools
from firmware_tools.build.spec import check_version, load_spec
from firmware_tools.errors import FirmwareError

FOLDER = Path(firmware_tools.__file__).parent / "targets"
TARGETS = sorted(path.stem for path in FOLDER.glob("*.toml"))
TEXT = (FOLDER / "qemu-x86_64.toml").read_text()


@pytest.mark.parametrize("name", TARGETS)
def test_built_in_targets_load_under_their_own_name_and_are_locked(name: str) -> None:
    spec = load_spec(name)
    assert spec.name == name
    locked = [line for line in (FOLDER / f"{name}.lock").read_text().splitlines() if not line.startswith("#")]
    assert locked == sorted(locked)
    assert all("==" in line and " --hash=sha256:" in line for line in locked)


def test_an_unknown_target_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(FirmwareError, match=f"no target 'toaster'; expected .* {', '.join(TARGETS)}"):
        load_spec("toaster")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("data = 512", "data = 63", "sizes: data: expected 64 to 1048576 MiB, got 63"),
        ("esp = 64", "esp = 33", "esp: expected 34"),
        ("bootenv = 2", 'bootenv = "2"', "bootenv"),
        ('"amd64"', '"riscv64"', "architecture: expected one of amd64, arm64, got 'riscv64'"),
        ('"grub-efi"', '"u-boot"', "boot: expected one of grub-efi, rpi-tryboot, jetson, got 'u-boot'"),
        ('"trixie"', '"tri xie"', "suite: expected"),
        ('"3.13"', '"3"', "python: expected MAJOR.MINOR"),
        ('"ttyS0,115200"', '"ttyS0; reboot"', "console: expected"),
        ("[sizes]", "[sizs]", "sizs"),
        ("[sizes]", 'board = "x"\n[sizes]', "board: expected a name of NVIDIA's for jetson, and none else"),
        ("[sizes]", 'initramfs = "all"\n[sizes]', "initramfs: expected one of most, list"),
        ('"grub-efi"', '"jetson"', "board: expected a name of NVIDIA's"),
        ('kernel = "linux-image-cloud-amd64"\n', "", "kernel"),
        ("[sizes]", "[sizes", "not TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_file_and_place(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    path = tmp_path / "target.toml"
    assert old in TEXT
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(FirmwareError) as caught:
        load_spec(str(path))
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("version", ["1.4", "v1.4.0", "01.4.0", "1.4.0-rc1", "1.4.0\n", "1.4.1000000", ""])
def test_a_version_that_devices_could_not_compare_is_refused(version: str) -> None:
    with pytest.raises(FirmwareError, match=r"expected a version like 1\.4\.0"):
        check_version(version)
    assert check_version("0.10.0") == "0.10.0"
