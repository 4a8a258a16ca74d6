"""What makes a device of Debian: its files, its steps, and configuration that fits the partitions."""

import configparser
import re
import tarfile
from pathlib import Path

import pytest

from firmware_tools.build.layout import layout_of
from firmware_tools.build.plan import Plan
from firmware_tools.build.rootfs import device_files, rootfs_steps
from firmware_tools.build.spec import load_spec
from firmware_tools.build.tar_merge import MOMENT, Entry, merge

SPEC = load_spec("qemu-x86_64")
UNITS = "./etc/systemd/system"


@pytest.fixture
def files() -> dict[str, Entry]:
    return device_files(SPEC, "1.4.0", b"certificates")


def text(entry: Entry) -> str:
    content = entry.content.read_bytes() if isinstance(entry.content, Path) else entry.content
    assert content is not None
    return content.decode()


def test_the_files_of_a_device(files: dict[str, Entry]) -> None:
    listing = "".join(
        f"{'link' if entry.link else 'folder' if entry.is_folder else f'{entry.mode:o}'} {name}"
        f"{f' -> {entry.link}' if entry.link else ''}\n"
        for name, entry in sorted(files.items())
    )
    assert listing == (Path(__file__).parent / "qemu-x86_64.files").read_text()
    assert all(entry.owner == 0 for entry in files.values())


def test_an_image_holds_nothing_of_one_device_and_no_way_in(files: dict[str, Entry]) -> None:
    assert text(files["./etc/machine-id"]) == ""
    assert not [name for name in files if "autologin" in name or "ssh" in name]
    assert not [name for name in files if "release-root" in name]
    assert (
        text(device_files(SPEC, "1.4.0", b"", release_root=b"{}")["./etc/graftwork/release-root.json"])
        == "{}"
    )
    console = device_files(SPEC, "1.4.0", b"", test_console=True)
    assert set(console) - set(files) == {f"{UNITS}/serial-getty@ttyS0.service.d/autologin.conf"}


def test_the_version_stands_where_devices_read_it(files: dict[str, Entry]) -> None:
    assert text(files["./etc/graftwork-release"]) == "compatible=graftwork-x86_64-uefi\nversion=1.4.0\n"


def test_rauc_knows_the_slots_by_what_the_boot_loader_calls_them(files: dict[str, Entry]) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(text(files["./etc/rauc/system.conf"]))
    layout = layout_of(SPEC)
    for number, (slot, partition) in enumerate((("A", "rootfs-a"), ("B", "rootfs-b"))):
        section = parser[f"slot.rootfs.{number}"]
        assert section["bootname"] == slot
        assert section["device"] == f"/dev/disk/by-partuuid/{layout[partition].uuid}"
    assert parser["system"]["bundle-formats"] == "verity"
    assert parser["keyring"]["check-purpose"] == "codesign"
    backend = parser["handlers"]["bootloader-custom-backend"]
    assert files[f".{backend}"].mode == 0o755
    assert text(files[f".{parser['keyring']['path']}"]) == "certificates"


def test_every_partition_that_is_mounted_exists(files: dict[str, Entry]) -> None:
    names = {partition.name for partition in layout_of(SPEC).partitions}
    mounted = re.findall(r"^PARTLABEL=(\S+)\s+(\S+)", text(files["./etc/fstab"]), re.MULTILINE)
    assert {name for name, _ in mounted} <= names
    assert all(files[f".{folder}"].is_folder for _, folder in mounted)


def test_units_name_programs_and_units_that_the_image_has(files: dict[str, Entry]) -> None:
    for name, entry in files.items():
        if name.startswith(f"{UNITS}/graftwork") and name.endswith(".service"):
            for program in re.findall(r"^Exec\w+=-?(/usr/bin/graftwork\S+)", text(entry), re.MULTILINE):
                assert files[f".{program}"].mode == 0o755
            for unit in re.findall(r"(?:After|Before|OnFailure)=(.*)", text(entry)):
                for word in unit.split():
                    assert not word.startswith("graftwork") or f"{UNITS}/{word}" in files


def test_a_gate_that_cannot_run_restarts_a_system_on_trial_and_no_other(files: dict[str, Entry]) -> None:
    gate, back = (
        text(files[f"{UNITS}/graftwork-health.service"]),
        text(files[f"{UNITS}/graftwork-back.service"]),
    )
    assert "OnFailure=graftwork-back.service" in gate
    assert "ConditionKernelCommandLine=graftwork.trial=1" in back
    # storage, engine 180 s, agent 300 s and the journal 60 s: all end before the unit is cut off
    limit = re.search(r"TimeoutStartSec=(\d+)", gate)
    assert limit is not None
    assert int(limit[1]) > 180 + 300 + 60 + 60


def test_only_what_changed_is_made_anew(tmp_path: Path) -> None:
    wheel, lock = tmp_path / "graftwork-0.1.0-py3-none-any.whl", tmp_path / "lock"
    wheel.write_bytes(b"wheel")
    lock.write_text("numpy==2\n")

    def changed(version: str = "1.4.0", keyring: bytes = b"", overlay: Path | None = None) -> set[str]:
        keys = Plan(rootfs_steps(SPEC, wheel, lock, version, keyring, overlay=overlay)).keys
        return {name for name, key in keys.items() if key != before[name]}

    before = Plan(rootfs_steps(SPEC, wheel, lock, "1.4.0", b"")).keys
    assert changed() == set()
    assert changed(version="1.4.1") == {"rootfs"}
    assert changed(keyring=b"other") == {"rootfs"}
    (tmp_path / "overlay/etc").mkdir(parents=True)
    (tmp_path / "overlay/etc/motd").write_text("hello")
    assert changed(overlay=tmp_path / "overlay") == {"rootfs"}
    lock.write_text("numpy==3\n")
    assert changed() == {"wheels", "system", "rootfs"}


def test_nothing_of_this_machine_is_in_the_commands(tmp_path: Path) -> None:
    wheel, lock = tmp_path / "graftwork-0.1.0-py3-none-any.whl", tmp_path / "lock"
    wheel.write_bytes(b"wheel")
    lock.write_text("")
    for step in rootfs_steps(SPEC, wheel, lock, "1.4.0", b""):
        assert not [word for command in step.commands for word in command if str(tmp_path) in word]


def test_the_files_fit_over_a_debian_with_merged_usr(tmp_path: Path, files: dict[str, Entry]) -> None:
    with tarfile.open(tmp_path / "base.tar", "w") as tar:
        for name in ("usr", "usr/bin", "usr/lib", "etc", "etc/systemd", "boot", "dev", "var", "tmp"):
            info = tarfile.TarInfo(f"./{name}")
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        for name in ("bin", "lib", "sbin"):
            info = tarfile.TarInfo(f"./{name}")
            info.type, info.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(info)
    merge(tmp_path / "base.tar", [files], tmp_path / "out.tar", MOMENT)
    with tarfile.open(tmp_path / "out.tar") as tar:
        names = tar.getnames()
    assert len(names) == len(set(names))
    assert set(files) <= set(names)
