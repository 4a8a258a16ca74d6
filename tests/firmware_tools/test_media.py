"""Which media are refused, with the reason: a workshop's laptop with everything plugged in."""

import json
from pathlib import Path

import pytest

from firmware_tools.errors import FirmwareError
from firmware_tools.media import check_distinct, check_target, find, list_media, parse_lsblk
from firmware_tools.programs import missing
from tests.firmware_tools.machines import EVERYTHING, GIB

MEDIA = parse_lsblk(json.loads(json.dumps(EVERYTHING)))
IMAGE_BYTES = 2 * GIB


def check(name: str, **options: bool) -> None:
    target = Path(f"/dev/{name}")
    medium = next(medium for medium in MEDIA if medium.path == str(target))
    check_target(target, medium, IMAGE_BYTES, **options)


@pytest.mark.parametrize("name", ["sdb", "sdj"])
def test_an_empty_card_is_accepted(name: str) -> None:
    check(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nvme0n1", r"this computer runs from it \(/boot/efi, /, \[SWAP\]\): name another target"),
        ("nvme0n1p1", "expected a whole disk, got a partition of one: name the disk, /dev/nvme0n1"),
        ("mapper/vg-root", "expected a disk or a card, got 'lvm'"),
        ("mmcblk0", r"has 1073741824 bytes, the image needs 2147483648: take a larger one"),
        ("sdc", "there is no medium in it: insert one"),
        ("sdd", "mounted at /media/ann/PHOTOS: look whether it is the right one, then umount it"),
        ("sde", "read-only: open the lock of the card"),
        ("sdf", "part of raid1 md0, a RAID: take it out of there"),
        ("sdg", "part of LVM: take it out of there"),
        ("sdh", r"larger than 128.0 GiB, .* add --large"),
        ("sdi", r"inside this computer \(sata\): if it is right, add --internal"),
        ("sr0", "expected a disk or a card, got 'rom'"),
    ],
)
def test_a_medium_that_must_not_be_written_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(FirmwareError, match=reason):
        check(name)


def test_a_word_of_the_user_opens_what_may_be_right_and_nothing_else() -> None:
    check("sdh", large=True)
    check("sdi", internal=True)
    for name in ("nvme0n1", "nvme0n1p1", "sdd", "sde", "sdf", "sdg"):
        with pytest.raises(FirmwareError):
            check(name, large=True, internal=True, file=True)


def test_what_a_medium_is() -> None:
    card = next(medium for medium in MEDIA if medium.path == "/dev/sdb")
    assert (card.model, card.serial, card.size) == ("Generic STORAGE DEVICE", "000000001206", 32 * GIB)
    assert card.removable
    assert not card.system


def test_files_and_names_of_nothing(tmp_path: Path) -> None:
    image = tmp_path / "card.img"
    with pytest.raises(FirmwareError, match="there is no such device: is the medium inserted"):
        check_target(image, None, 1, file=True)
    image.write_bytes(b"")
    with pytest.raises(FirmwareError, match="if a file is right, add --file"):
        check_target(image, None, 1)
    check_target(image, None, 1, file=True)
    with pytest.raises(FirmwareError, match="expected a block device, got something else"):
        check_target(Path("/dev/null"), None, 1, file=True)
    with pytest.raises(FirmwareError, match="expected a block device, got something else"):
        check_target(tmp_path, None, 1, file=True)


def test_a_target_stands_there_once_and_is_not_the_image(tmp_path: Path) -> None:
    image, card, link = tmp_path / "image", tmp_path / "card", tmp_path / "by-id"
    image.touch()
    card.touch()
    link.symlink_to(card)
    with pytest.raises(FirmwareError, match="is the image itself"):
        check_distinct([card, image], image)
    with pytest.raises(FirmwareError, match="is the same as"):
        check_distinct([card, link], image)


def test_other_words_than_those_of_lsblk_are_refused() -> None:
    with pytest.raises(FirmwareError, match="expected what `lsblk --json --bytes -O` prints"):
        parse_lsblk({"blockdevices": [{"name": "sda"}]})


@pytest.mark.skipif(bool(missing(["lsblk"])), reason="needs lsblk: apt install util-linux")
def test_this_machine_has_media() -> None:
    assert find(list_media(), Path("/dev/null")) is None
