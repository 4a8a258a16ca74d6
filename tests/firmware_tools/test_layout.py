"""Partitions: the same from build to build, and as sfdisk writes and reads them."""

import json
import subprocess
from itertools import pairwise
from pathlib import Path

from firmware_tools.build.layout import layout_of
from firmware_tools.build.spec import MIB, load_spec
from firmware_tools.programs import SEARCH_PATH, run
from tests.firmware_tools.small_images import needs


def test_devices_in_the_field_keep_their_layout() -> None:
    script = layout_of(load_spec("x86_64-uefi")).sfdisk_script()
    assert script == (Path(__file__).parent / "x86_64-uefi.sfdisk").read_text()


def test_targets_that_run_each_others_images_have_the_same_partitions() -> None:
    assert layout_of(load_spec("qemu-x86_64")) == layout_of(load_spec("x86_64-uefi"))


def test_partitions_follow_each_other_without_overlap_and_the_last_one_can_grow() -> None:
    layout = layout_of(load_spec("qemu-x86_64"))
    assert layout.partitions[0].start == MIB
    for one, next_one in pairwise(layout.partitions):
        assert one.start + one.size == next_one.start
    last = layout.partitions[-1]
    assert last.name == "data"
    assert last.start + last.size + MIB == layout.size
    assert layout["rootfs-a"].size == layout["rootfs-b"].size
    assert len({partition.uuid for partition in layout.partitions} | {layout.disk_uuid}) == 8


@needs("sfdisk")
def test_sfdisk_takes_the_script_and_reads_the_same_partitions_back(tmp_path: Path) -> None:
    layout = layout_of(load_spec("qemu-x86_64"))
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(layout.size)
    subprocess.run(
        ["sfdisk", "--quiet", image],
        input=layout.sfdisk_script().encode(),
        check=True,
        env={"PATH": SEARCH_PATH},
    )
    table = json.loads(run(["sfdisk", "--json", str(image)]))["partitiontable"]
    assert table["id"].lower() == layout.disk_uuid
    assert [
        (row["name"], row["start"] * 512, row["size"] * 512, row["uuid"].lower(), row["type"])
        for row in table["partitions"]
    ] == [(p.name, p.start, p.size, p.uuid, p.type) for p in layout.partitions]
