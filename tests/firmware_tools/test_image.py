"""An image of a tiny root file system: twice the same bytes, and everything where the device looks for it."""

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from firmware_tools import build_commands
from firmware_tools.__main__ import main
from firmware_tools.build.image import image_steps
from firmware_tools.build.layout import layout_of
from firmware_tools.build.plan import Plan, Step, file_sha256
from firmware_tools.build.spec import Sizes, TargetSpec, load_spec
from firmware_tools.build.squashfs import pack
from firmware_tools.build.tar_merge import Entry
from firmware_tools.device.boot_environment import BootEnvironment, BootState, factory_files
from firmware_tools.errors import FirmwareError
from firmware_tools.programs import run
from tests.firmware_tools.small_images import MIB, needs

SPEC = replace(
    load_spec("qemu-x86_64"), sizes=Sizes(esp=34, bootenv=2, rootfs=64, seed=2, identity=8, data=64)
)
NEEDS_GRUB = [
    needs("mkfs.vfat", "mcopy", "sfdisk"),
    pytest.mark.skipif(
        shutil.which("mksquashfs") is None or not Path("/usr/lib/grub/x86_64-efi").exists(),
        reason="needs mksquashfs and GRUB: apt install squashfs-tools grub-efi-amd64-bin grub-common",
    ),
]
pytestmark = NEEDS_GRUB


def tiny_rootfs(size: int = 1000) -> Step:
    def work(output: Path, _outputs: Mapping[str, Path]) -> None:
        tree = output.with_suffix(".tar")
        with tarfile.open(tree, "w") as tar:
            for name, content in (("vmlinuz", b"kernel"), ("initrd.img", b"i" * size)):
                info = tarfile.TarInfo(f"./{name}")
                info.size, info.mtime = len(content), os.getpid()
                tar.addfile(info, io.BytesIO(content))
        pack(tree, output, 1_700_000_000)
        tree.unlink()

    return Step("rootfs", "tiny", ".squashfs", work=work)


def build(cache: Path, spec: TargetSpec = SPEC) -> dict[str, Path]:
    return Plan([tiny_rootfs(), *image_steps(spec)]).run(cache, say=lambda _line: None)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(tmp_path_factory.mktemp("cache"))


def partition(built: Mapping[str, Path], name: str, path: Path) -> Path:
    """Copy a partition out of the image."""
    where = layout_of(SPEC)[name]
    with built["image"].open("rb") as image:
        image.seek(where.start)
        path.write_bytes(image.read(where.size))
    return path


def test_two_builds_give_the_same_bytes(built: dict[str, Path], tmp_path: Path) -> None:
    again = build(tmp_path)
    assert built["image"] != again["image"]
    assert built["image"].name == again["image"].name
    assert file_sha256(built["loader"]) == file_sha256(again["loader"])
    assert file_sha256(built["image"]) == file_sha256(again["image"])
    assert built["image"].stat().st_size == layout_of(SPEC).size
    assert built["image"].stat().st_blocks * 512 < 40 * MIB  # holes stay holes
    assert sorted(tmp_path.iterdir()) == sorted(again.values())


def test_the_boot_loader_lies_where_firmware_looks_for_it_and_nothing_beside_it(
    built: dict[str, Path], tmp_path: Path
) -> None:
    esp = partition(built, "esp", tmp_path / "esp")
    listing = run(["mdir", "-i", str(esp), "-/", "-b", "::"]).decode().split()
    assert listing == ["::/EFI/", "::/EFI/BOOT/", "::/EFI/BOOT/BOOTX64.EFI"]
    run(["mcopy", "-i", str(esp), "::/EFI/BOOT/BOOTX64.EFI", str(tmp_path / "loader")])
    assert (tmp_path / "loader").read_bytes() == built["loader"].read_bytes()


def test_the_boot_environment_is_that_of_the_factory(built: dict[str, Path], tmp_path: Path) -> None:
    image, folder = partition(built, "bootenv", tmp_path / "bootenv"), tmp_path / "env"
    folder.mkdir()
    run(["mcopy", "-i", str(image), "::/*", str(folder)])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == factory_files()
    assert BootEnvironment(folder).read() == BootState(sequence=2)


def test_slot_a_holds_the_system_and_what_devices_make_is_empty(
    built: dict[str, Path], tmp_path: Path
) -> None:
    content = built["rootfs"].read_bytes()
    assert partition(built, "rootfs-a", tmp_path / "a").read_bytes()[: len(content)] == content
    for name in ("rootfs-b", "identity", "data"):
        assert not any(partition(built, name, tmp_path / name).read_bytes()), name
    seed = partition(built, "seed", tmp_path / "seed")
    assert run(["mdir", "-i", str(seed), "-b", "::"]).strip() == b""


def test_a_root_file_system_that_is_too_large_is_refused_with_what_to_raise(tmp_path: Path) -> None:
    def large(output: Path, _outputs: Mapping[str, Path]) -> None:
        with output.open("wb") as file:
            file.truncate(64 * MIB + 1)

    steps = image_steps(SPEC)
    loader = replace(steps[0], work=lambda output, _outputs: output.write_bytes(b"loader") and None)
    plan = Plan([Step("rootfs", "", ".squashfs", work=large), loader, steps[1]])
    with pytest.raises(
        FirmwareError, match=r"rootfs-a has 64 MiB, and its content 64\.0 MiB: raise sizes\.rootfs"
    ):
        plan.run(tmp_path, say=lambda _line: None)
    assert not list(tmp_path.glob("image*"))


def test_another_factory_state_makes_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    before = image_steps(SPEC)[1].inputs
    monkeypatch.setattr(
        "firmware_tools.build.ways.grub_efi.factory_files", lambda: {**factory_files(), "tries": b"x"}
    )
    assert image_steps(SPEC)[1].inputs != before


def test_build_hands_out_image_and_description(
    built: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wheel, keyring, output = (
        tmp_path / "graftwork-0.1.0-py3-none-any.whl",
        tmp_path / "keyring",
        tmp_path / "out",
    )
    system, status = (
        tmp_path / "system.tar",
        b"Package: rauc\nStatus: install ok installed\nVersion: 1\nArchitecture: amd64\n",
    )
    with tarfile.open(system, "w") as tar:
        Entry(status).add_to(tar, "./var/lib/dpkg/status", 0)
    wheel.write_bytes(b"wheel")
    keyring.write_bytes(b"certificates")
    arguments = [
        "build",
        "qemu-x86_64",
        "--version",
        "1.4.0",
        "--keyring",
        str(keyring),
        "--wheel",
        str(wheel),
    ]
    assert main([*arguments, "--output", str(output), "--plan"]) == 0
    assert "# base: Debian trixie for amd64" in capsys.readouterr().out
    assert not output.exists()
    monkeypatch.setattr(
        build_commands.Plan, "run", lambda _plan, _cache, say: say("made") or {**built, "system": system}
    )
    assert main([*arguments, "--output", str(output)]) == 0
    release = (output / "release.json").read_text()
    assert hashlib.sha256((output / "image.img").read_bytes()).hexdigest() in release
    assert '"version": "1.4.0"' in release
    assert '"pkg:deb/debian/rauc@1' in (output / "sbom.cdx.json").read_text()
    assert main(["build", "qemu-x86_64", "--version", "1.4", "--keyring", str(keyring), "--output", "x"]) == 1
    assert "expected a version like 1.4.0" in capsys.readouterr().err
