"""`verify image`: every part of an image that is damaged is named; and images of a Raspberry Pi as built."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from firmware_tools import build_commands, image_check
from firmware_tools.__main__ import main
from firmware_tools.build.layout import layout_of
from firmware_tools.build.plan import Plan, Step, file_sha256
from firmware_tools.build.spec import Sizes, TargetSpec, load_spec
from firmware_tools.build.tar_merge import MOMENT, Entry, write_layer
from firmware_tools.build.ways import way_of
from firmware_tools.device.tryboot import BOOT_FILES
from firmware_tools.errors import FirmwareError
from firmware_tools.image_check import check_image
from firmware_tools.programs import run
from tests.firmware_tools.small_images import MIB, needs
from tests.firmware_tools.test_image import NEEDS_GRUB, build

SMALL = Sizes(esp=34, boot=64, bootenv=2, rootfs=64, seed=2, identity=8, data=64)
GRUB = replace(load_spec("qemu-x86_64"), sizes=SMALL)
PI = replace(load_spec("rpi"), sizes=SMALL)
pytestmark = [needs("mkfs.vfat", "fsck.vfat", "mcopy", "sfdisk"), *NEEDS_GRUB]


def build_pi(cache: Path) -> dict[str, Path]:
    """With a small system in the place of Debian's, and firmware that was given."""

    def system(output: Path, _outputs: Mapping[str, Path]) -> None:
        files = {
            "./boot/vmlinuz-6.12-v8": b"kernel",
            "./boot/initrd.img-6.12-v8": b"initramfs",
            "./usr/lib/linux-image-6.12-v8/broadcom/bcm2711-rpi-4-b.dtb": b"tree 4",
            "./usr/lib/linux-image-6.12-v8/broadcom/bcm2712-rpi-5-b.dtb": b"tree 5",
            "./usr/lib/linux-image-6.12-v8/broadcom/bcm2837-rpi-3-b.dtb": b"tree 3",
            "./usr/lib/linux-image-6.12-v8/overlays/README": b"overlays",
        }
        write_layer(output, {name: Entry(content) for name, content in files.items()}, MOMENT)

    firmware = cache / "given"
    firmware.mkdir(parents=True)
    for name in ("start4.elf", "fixup4.dat", "bootcode.bin"):
        (firmware / name).write_text(name)
    way = way_of(PI)

    def root(output: Path, outputs: Mapping[str, Path]) -> None:
        way.root.pack(outputs["boot"], output, MOMENT)

    steps = [
        Step("system", "small", ".tar", work=system),
        *way.before(PI, firmware),
        Step("rootfs", "small", ".squashfs", after=("boot",), work=root),
        *way.after(PI),
    ]
    return Plan(steps).run(cache, say=lambda _line: None)


def hand_out(spec: TargetSpec, outputs: dict[str, Path], folder: Path) -> Path:
    build_commands._hand_out(spec, "1.4.0", outputs, folder)
    return folder / "image.img"


@pytest.fixture(scope="module")
def grub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(tmp_path_factory.mktemp("grub"), GRUB)


@pytest.fixture(scope="module")
def pi(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_pi(tmp_path_factory.mktemp("pi"))


@pytest.fixture
def image(grub: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(image_check, "load_spec", lambda _name: GRUB)
    return hand_out(GRUB, grub, tmp_path / "out")


def test_a_good_image_is_described(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = image.with_name("rootfs.squashfs").stat().st_size
    assert main(["verify", "image", str(image)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "partition table: 7 partitions, both copies whole",
        "file systems: esp, bootenv, seed are whole",
        "boot state: slot A first, A good, B bad",
        f"root file system: {size:,} bytes, as release.json says",
    ]


@pytest.mark.parametrize(
    ("partition", "offset", "said"),
    [
        ("", 512 + 40, "the first partition table is damaged"),
        ("", 1024 + 60, "the entries of the first partition table are damaged"),
        ("", -512 + 40, "the last partition table is damaged"),
        ("", -33 * 512 + 60, "the entries of the last partition table are damaged"),
        ("rootfs-a", 0, "slot A holds no root file system"),
        ("rootfs-a", 99, "slot A has the SHA-256"),
        ("rootfs-a", 4000, "slot A has the SHA-256"),
    ],
)
def test_one_changed_byte_is_found_and_its_place_named(
    image: Path, partition: str, offset: int, said: str
) -> None:
    start = layout_of(GRUB)[partition].start if partition else 0
    position = start + offset if offset >= 0 else image.stat().st_size + offset
    with image.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes((byte ^ 1,)))
    with pytest.raises(FirmwareError, match=said):
        check_image(image)


def test_a_damaged_boot_state_and_another_loader_are_named(image: Path, tmp_path: Path) -> None:
    layout = layout_of(GRUB)
    (tmp_path / "other").write_bytes(b"#" * 1024)
    run(["mcopy", "-o", "-i", f"{image}@@{layout['bootenv'].start}", tmp_path / "other", "::/state0"])
    with pytest.raises(FirmwareError, match="bootenv: a copy, or the counts, are damaged"):
        check_image(image)
    run(["mcopy", "-o", "-i", f"{image}@@{layout['esp'].start}", tmp_path / "other", "::/EFI/BOOT/grub.cfg"])
    with pytest.raises(FirmwareError, match="esp: expected GRUB alone"):
        check_image(image)


def test_another_size_another_target_and_no_description_are_said(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_check, "load_spec", lambda _name: load_spec("qemu-x86_64"))
    with pytest.raises(FirmwareError, match=r"expected 1,702,887,424 bytes, got"):
        check_image(image)
    other = replace(GRUB, compatible="another")
    monkeypatch.setattr(image_check, "load_spec", lambda _name: other)
    with pytest.raises(FirmwareError, match="expected the partitions"):
        check_image(image)
    monkeypatch.setattr(image_check, "load_spec", lambda _name: load_spec("jetson"))
    with pytest.raises(FirmwareError, match="jetson has no image"):
        check_image(image)
    image.with_name("release.json").write_text("{}")
    with pytest.raises(FirmwareError, match="expected the description"):
        check_image(image)


def test_an_image_of_a_raspberry_pi_boots_slot_a_from_its_own_partition(
    pi: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_check, "load_spec", lambda _name: PI)
    image = hand_out(PI, pi, tmp_path / "out")
    lines = check_image(image)
    assert lines[1:3] == [
        "file systems: autoboot, boot-a, boot-b, seed are whole",
        "boot state: slot A by default, A good, B bad",
    ]
    boot = layout_of(PI)["boot-a"]
    listing = run(["mdir", "-/", "-b", "-i", f"{image}@@{boot.start}", "::"]).decode().split()
    assert sorted(listing) == [
        *("::/bcm2711-rpi-4-b.dtb", "::/bcm2712-rpi-5-b.dtb", "::/cmdline.txt", "::/config.txt"),
        *("::/fixup4.dat", "::/initramfs8", "::/kernel8.img", "::/overlays/", "::/overlays/README"),
        "::/start4.elf",
    ]
    line = run(["mtype", "-i", f"{image}@@{boot.start}", "::/cmdline.txt"]).decode()
    assert f"root=PARTUUID={layout_of(PI)['rootfs-a'].uuid} " in line
    layers = run(["tar", "-tf", pi["boot"]]).decode().split()
    assert f"./{BOOT_FILES}/cmdline-b.txt" in layers  # what slot B is filled from after an update
    run(["mdel", "-i", f"{image}@@{boot.start}", "::/kernel8.img"])
    with pytest.raises(FirmwareError, match=r"boot-a: kernel8\.img is missing"):
        check_image(image)


def test_two_builds_for_a_raspberry_pi_give_the_same_bytes(pi: dict[str, Path], tmp_path: Path) -> None:
    assert file_sha256(build_pi(tmp_path)["image"]) == file_sha256(pi["image"])
    assert pi["image"].stat().st_blocks * 512 < 16 * MIB


def test_a_system_without_the_boards_kernel_is_refused(tmp_path: Path) -> None:
    def system(output: Path, _outputs: Mapping[str, Path]) -> None:
        write_layer(output, {"./etc/passwd": Entry(b"")}, MOMENT)

    (tmp_path / "start4.elf").write_text("firmware")
    steps = [Step("system", "empty", ".tar", work=system), *way_of(PI).before(PI, tmp_path)]
    with pytest.raises(FirmwareError, match=r"kernel8\.img is in none of the packages; give --firmware"):
        Plan(steps).run(tmp_path / "cache", say=lambda _line: None)


def test_what_is_not_run_on_hardware_says_so_at_the_end_of_a_build(
    pi: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wheel, system = tmp_path / "graftwork-0.1.0-py3-none-any.whl", tmp_path / "system.tar"
    for path in (wheel, tmp_path / "keyring"):
        path.write_bytes(b"")
    status = b"Package: rauc\nStatus: install ok installed\nVersion: 1\nArchitecture: arm64\n"
    write_layer(system, {"./var/lib/dpkg/status": Entry(status)}, MOMENT)
    outputs = {**pi, "system": system}
    monkeypatch.setattr(build_commands.Plan, "run", lambda _plan, _cache, say: say("made") or outputs)
    arguments = ["--keyring", str(tmp_path / "keyring"), "--wheel", str(wheel)]
    assert main(["build", "rpi", "--version", "1.0.0", *arguments, "--output", str(tmp_path / "out")]) == 0
    assert "rpi is not run on hardware" in capsys.readouterr().out
    facts = json.loads((tmp_path / "out/release.json").read_text())
    assert (facts["architecture"], set(facts) >= {"image_sha256", "rootfs_sha256"}) == ("arm64", True)
