"""Device images: is every fault on a medium found, what does it cost, and is a build the same bytes again?

    python -m benchmarks.firmware [--quick] [--json]

`reproducible` builds the target twice, each time into an empty cache, and compares the images' SHA-256; with
--quick it does so with a small root file system in the place of Debian. The rest is
benchmarks/firmware_media.py. Boots are in `make firmware-demo`.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.firmware_media import MIB, faults_found, identities_seconds, readback_ratio
from firmware_tools.build.image import image_steps
from firmware_tools.build.plan import Plan, Step, file_sha256
from firmware_tools.build.spec import load_spec
from firmware_tools.build.squashfs import pack
from firmware_tools.build.tar_merge import MOMENT
from firmware_tools.signing_keys import KEYRING, make_keys

TARGET = "qemu-x86_64"


def main() -> None:
    """Measure, and print a line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small root file system, and less data")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("faults", "ratio", "identities", "builds"):
            (folder / part).mkdir()
        faults = faults_found(folder / "faults")
        ratio = readback_ratio(folder / "ratio", (256 if options.quick else 512) * MIB)
        identities = identities_seconds(folder / "identities")
        figures = {
            "faults": faults["faults"],
            "faults_found": faults["found"],
            "readback_ratio": ratio["ratio"],
            "identities": identities["identities"],
            "identities_seconds": identities["seconds"],
            "reproducible": reproducible(folder / "builds", quick=options.quick),
        }
    if options.json:
        print(json.dumps(figures))
        return
    for figure, value in figures.items():
        print(f"{figure:24} {value}")


def reproducible(folder: Path, *, quick: bool) -> bool:
    """Whether two builds of one specification, into empty caches, are the same bytes."""
    return len({(_small if quick else _whole)(folder / str(number)) for number in (1, 2)}) == 1


def _small(cache: Path) -> str:
    steps = [Step("rootfs", "small", ".squashfs", work=_tree), *image_steps(load_spec(TARGET))]
    return file_sha256(Plan(steps).run(cache, say=lambda _line: None)["image"])


def _tree(output: Path, _outputs: Mapping[str, Path]) -> None:
    tree = output.with_suffix(".tar")
    with tarfile.open(tree, "w") as tar:
        for name in ("vmlinuz", "initrd.img"):
            info = tarfile.TarInfo(f"./{name}")
            info.size, info.mtime = 4096, os.getpid()  # what differs from build to build must not matter
            tar.addfile(info, io.BytesIO(name.encode().ljust(4096)))
    pack(tree, output, MOMENT)
    tree.unlink()


def _whole(folder: Path) -> str:
    folder.mkdir()
    keys = folder.parent / "keys"
    if not keys.exists():
        make_keys(keys, "benchmark", float(MOMENT))
    command = [
        *(sys.executable, "-m", "firmware_tools", "build", TARGET, "--version", "1.0.0"),
        *(
            "--keyring",
            str(keys / KEYRING),
            "--cache",
            str(folder / "cache"),
            "--output",
            str(folder / "out"),
        ),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return file_sha256(folder / "out" / "image.img")


if __name__ == "__main__":
    main()
