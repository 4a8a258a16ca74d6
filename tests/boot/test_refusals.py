"""What a device refuses, with RAUC as it is on the device; and an update that cannot even boot."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firmware_tools.build.spec import load_spec
from firmware_tools.bundles import BundleFacts, Signer, make_bundle
from firmware_tools.signing_keys import make_keys, make_signer
from simulation.firmware_site import MOUNT_STICK, ON_STICK, TARGET, Images, Site, Step, make_stick
from tests.system.secure_broker import clock

RUNS, NEXT = "1.0.0", "1.3.0"
BOARD = load_spec(TARGET).compatible
YEAR = 365 * 86_400.0
UPDATE = f"graftwork-firmware device update --no-reboot {ON_STICK}"
TAMPER = f"""
whole={ON_STICK}/next.raucb; size=$(stat -c %s $whole); taken=''
for part in $(seq 0 11); do
  at=$((size * part / 12 + part)); cp $whole /tmp/tampered.raucb
  octal=$(printf %o $(($(od -An -tu1 -j$at -N1 $whole) ^ 255)))
  printf "\\\\$octal" | dd of=/tmp/tampered.raucb bs=1 seek=$at conv=notrunc 2> /dev/null
  cmp -s $whole /tmp/tampered.raucb && taken="$taken unchanged:$at"
  graftwork-firmware device update --no-reboot /tmp/tampered.raucb > /dev/null 2>&1 && taken="$taken $at"
done
[ -z "$taken" ] || {{ echo "taken: $taken"; false; }}
"""


def bundle(folder: Path, name: str, keys: Path, *, board: str = BOARD, version: str = NEXT) -> Path:
    """A small bundle, whose root file system is none."""
    rootfs = folder / "rootfs"
    if not rootfs.exists():
        rootfs.write_bytes(os.urandom(256 * 1024))
    output = folder / f"{name}.raucb"
    signer = Signer(str(keys / "signer.crt"), str(keys / "signer.key"))
    make_bundle(rootfs, output, BundleFacts(board, version), signer)
    return output


@contextmanager
def expired_signer(keys: Path, folder: Path) -> Iterator[Path]:
    """The same roots, with a signer whose three years are over."""
    copy = folder / "expired"
    shutil.copytree(keys, copy)
    make_signer(copy, "plant", "root-1", clock() - 4 * YEAR)
    yield copy
    shutil.rmtree(copy)


def refused(name: str, words: str) -> Step:
    return {"run": f"{UPDATE}/{name}.raucb", "status": 1, "contains": words}


@pytest.mark.timeout(1800)
def test_nothing_wrong_is_installed_and_what_cannot_boot_is_left(images: Images, tmp_path: Path) -> None:
    image = images.build(RUNS) / "image.img"
    make_keys(tmp_path / "foreign", "foreign", clock())
    made = [
        bundle(tmp_path, "older", images.keys, version="0.9.0"),
        bundle(tmp_path, "board", images.keys, board="another-board"),
        bundle(tmp_path, "foreign", tmp_path / "foreign"),
        bundle(tmp_path, "next", images.keys),
    ]
    with expired_signer(images.keys, tmp_path) as keys:
        made.append(bundle(tmp_path, "expired", keys))
    stick = make_stick(tmp_path / "stick.img", {path.name: path for path in made}, 64)
    site = Site(tmp_path / "site")
    site.provision(image)
    as_before: Step = {"run": "graftwork-firmware device status", "contains": "slot a         good"}
    steps: list[Step] = [
        {"boot": "A"},
        {"run": MOUNT_STICK},
        refused("older", "an older version may have faults"),
        refused("board", "is for another-board"),
        refused("foreign", "signature"),
        refused("expired", "expired"),
        {"run": TAMPER, "seconds": 600.0},
        as_before,
        {"run": "graftwork-firmware device status", "contains": "primary        A"},
        {"run": f"{UPDATE}/next.raucb"},
        {"send": "systemctl reboot"},
        {"loader": "B"},
        {"loader": "B"},
        {"loader": "B"},
        {"boot": "A"},
        {"run": "graftwork-firmware device status", "contains": f"rolled back from {NEXT} to {RUNS}"},
        as_before,
    ]
    words: list[str] = []
    with site:
        site.boot(
            steps,
            stick,
            lambda store: words.extend(row["firmware_update"] or "" for row in store.devices()),
            print,
        )
    assert not [word for word in words if word.startswith("healthy")]
