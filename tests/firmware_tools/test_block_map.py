"""Block maps: read, made, and held against bmaptool in both directions."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_tools.block_map import BlockMap, Range, create, for_image, parse, render
from firmware_tools.errors import FirmwareError
from tests.firmware_tools.small_images import MIB, needs, partitioned_image, sparse_image

needs_bmaptool = pytest.mark.skipif(
    shutil.which("bmaptool") is None, reason="needs bmaptool: apt install bmap-tools"
)


def blocks(block_map: BlockMap) -> set[int]:
    return {block for one in block_map.ranges for block in range(one.first, one.last + 1)}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return sparse_image(tmp_path / "image.img")


def test_a_map_of_a_sparse_image_covers_its_data_and_little_more(image: Path) -> None:
    found = create(image)
    data = image.read_bytes()
    full = {start // 4096 for start in range(0, len(data), 4096) if any(data[start : start + 4096])}
    assert full <= blocks(found)
    assert found.mapped_bytes < len(data) // 2
    for one in found.ranges:
        start, length = found.extent(one)
        assert hashlib.sha256(data[start : start + length]).hexdigest() == one.sha256


@needs_bmaptool
def test_a_map_of_bmaptool_is_read_and_says_the_same_as_ours(image: Path) -> None:
    made = subprocess.run(["bmaptool", "create", image], check=True, capture_output=True).stdout
    theirs = parse(made)
    assert blocks(theirs) == blocks(create(image))
    assert theirs == create(image)


@needs_bmaptool
def test_bmaptool_copies_by_a_map_of_ours_and_checks_it(image: Path, tmp_path: Path) -> None:
    bmap, copy = tmp_path / "our.bmap", tmp_path / "copy"
    bmap.write_bytes(render(create(image)))
    command = ["bmaptool", "copy", "--bmap", bmap, image, copy]
    subprocess.run(command, check=True, capture_output=True)
    assert copy.read_bytes() == image.read_bytes()
    bmap.write_bytes(bmap.read_bytes().replace(b"<Range", b"<Range ", 1))
    assert subprocess.run(command, check=False, capture_output=True).returncode


@given(
    st.lists(st.integers(1, 50), max_size=8),
    st.integers(0, 4095),
    st.integers(1, 100),
)
def test_what_is_written_is_read(lengths: list[int], cut: int, rest: int) -> None:
    ranges, free = [], 0
    for length in lengths:
        ranges.append(Range(free, free + length - 1, hashlib.sha256(bytes([length])).hexdigest()))
        free += length + length % 3
    block_map = BlockMap((free + rest) * 4096 - cut, 4096, tuple(ranges))
    assert parse(render(block_map)) == block_map


def changed(old: bytes, new: bytes) -> bytes:
    """A map that says something else, with a checksum that fits."""
    text = render(BlockMap(40_960, 4096, (Range(0, 1, "ab" * 32), Range(4, 9, "cd" * 32))))
    start = text.index(b"<BmapFileChecksum> ") + 19
    blank = text[:start] + b"0" * 64 + text[start + 64 :]
    assert old in blank
    blank = blank.replace(old, new, 1)
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1)


def test_the_changed_map_of_these_tests_is_otherwise_right() -> None:
    assert len(parse(changed(b"</bmap>", b"</bmap> ")).ranges) == 2


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b' version="2.0"', b' version="3.0"', "expected a block map of version 2"),
        (b"> sha256 <", b"> sha1 <", "with sha256, got 2.0 with sha1"),
        (b"> 4-9 <", b"> 4-10 <", "range 4-10: expected blocks from 2 to 9"),
        (b"> 4-9 <", b"> 1-9 <", "range 1-9: expected blocks from 2 to 9"),
        (b"> 4-9 <", b"> four <", "expected a block map"),
        (b"cd" * 32, b"zz" * 32, "expected a SHA-256"),
        (b"<BlocksCount> 10", b"<BlocksCount> 11", "the map says"),
        (b"</bmap>", b"", "expected a block map"),
        (b"<bmap", b"<!DOCTYPE bmap [<!ENTITY a 'b'>]><bmap", "without document type"),
    ],
)
def test_a_map_that_is_none_is_refused(old: bytes, new: bytes, reason: str) -> None:
    with pytest.raises(FirmwareError, match=reason):
        parse(changed(old, new))


def test_a_map_that_was_changed_or_cut_off_does_not_match_its_checksum() -> None:
    text = render(BlockMap(40_960, 4096, (Range(0, 1, "ab" * 32),)))
    with pytest.raises(FirmwareError, match="does not match its own checksum"):
        parse(text.replace(b"> 0-1 <", b"> 0-2 <"))
    with pytest.raises(FirmwareError, match="does not match its own checksum"):
        parse(text[:-10])
    with pytest.raises(FirmwareError, match="with a BmapFileChecksum"):
        parse(text[:100])


def test_the_map_of_an_image_of_another_size_is_refused(image: Path) -> None:
    Path(f"{image}.bmap").write_bytes(render(create(image)))
    for_image(image)
    with image.open("rb+") as file:
        file.truncate(20 * MIB)
    with pytest.raises(FirmwareError, match="the image is cut off, or the map is another one's"):
        for_image(image)


@needs("sfdisk")
def test_the_backup_of_the_partition_table_is_mapped_even_where_the_map_leaves_it_out(tmp_path: Path) -> None:
    image = partitioned_image(tmp_path / "image")
    whole = create(image)
    last = whole.blocks - 1
    assert last in blocks(whole)
    cut = BlockMap(whole.image_bytes, 4096, tuple(one for one in whole.ranges if one.last < last - 10))
    (tmp_path / "image.bmap").write_bytes(render(cut))
    assert set(range(last - 4, last + 1)) <= blocks(for_image(image))  # 33 sectors
    with image.open("rb+") as file:
        file.truncate(20 * MIB)
    (tmp_path / "image.bmap").unlink()
    with pytest.raises(FirmwareError, match="backup of its partition table is to be at byte"):
        for_image(image)


def test_an_empty_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image").touch()
    with pytest.raises(FirmwareError, match="got an empty file"):
        for_image(tmp_path / "image")
    with pytest.raises(FirmwareError, match="expected an image"):
        for_image(tmp_path / "nothing")
