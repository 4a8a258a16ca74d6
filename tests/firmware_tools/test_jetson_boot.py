"""Jetson: an update only where UEFI would lead back; what NVIDIA's tool is told, and when.

Not run on hardware: nvbootctrl is played by tests/firmware_tools/fake_nvbootctrl.py.
"""

import json
from pathlib import Path

import pytest

from firmware_tools.device import health
from firmware_tools.device.boot_control import boot_control
from firmware_tools.device.installing import bundle_version, check_armed, install
from firmware_tools.device.jetson_boot import REDUNDANCY, TRIAL
from firmware_tools.errors import FirmwareError
from tests.firmware_tools.fake_boards import FakeJetson, new_jetson

ATTRIBUTES = b"\x07\x00\x00\x00"


@pytest.fixture
def jetson(tmp_path: Path) -> FakeJetson:
    device = new_jetson(tmp_path / "jetson")
    assert health.pass_gate(device) == ""
    return device


def uefi(device: FakeJetson, **values: object) -> dict[str, object]:
    found = json.loads((device.root / "uefi").read_text()) | values
    (device.root / "uefi").write_text(json.dumps(found))
    return dict(found)


@pytest.mark.parametrize(
    "level", [None, b"", ATTRIBUTES + b"\x00\x00\x00\x00", ATTRIBUTES + b"\x02\x00\x00\x00"]
)
def test_redundancy_that_is_off_refuses_every_update(jetson: FakeJetson, level: bytes | None) -> None:
    if level is None:
        (jetson.root / REDUNDANCY).unlink()  # an image written straight to the disk
    else:
        (jetson.root / REDUNDANCY).write_bytes(level)
    with pytest.raises(FirmwareError, match=r"redundancy is off.*ROOTFS_AB=1"):
        install(jetson, Path("update.raucb"), lambda path: bundle_version(jetson, path))
    assert not [command for command in jetson.programs.called if command[:2] == ("rauc", "install")]
    assert not (jetson.data / TRIAL).exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"slots": 1}, "redundancy is off"),
        ({"status": ["normal", "unbootable"]}, "slot B is unbootable with 3 tries left, expected normal"),
        ({"tries": [0, 3]}, "slot A is normal with 0 tries left"),
    ],
)
def test_slots_that_do_not_boot_refuse_an_update(
    jetson: FakeJetson, values: dict[str, object], said: str
) -> None:
    uefi(jetson, **values)
    with pytest.raises(FirmwareError, match=said):
        check_armed(jetson)


def test_a_disk_without_the_second_partition_refuses(jetson: FakeJetson) -> None:
    (jetson.root / "dev/disk/by-partlabel/APP_b").unlink()
    with pytest.raises(FirmwareError, match="partition APP_b is missing"):
        check_armed(jetson)


def test_uefi_is_told_that_a_boot_succeeded_only_after_the_gate(jetson: FakeJetson) -> None:
    jetson.programs.called.clear()
    jetson.programs.engine = (1, "no engine")
    assert health.pass_gate(jetson)
    assert ("nvbootctrl", "-t", "rootfs", "mark-boot-successful") not in jetson.programs.called
    jetson.programs.engine = (0, "")
    assert health.pass_gate(jetson) == ""
    assert jetson.programs.called[-1] == ("nvbootctrl", "-t", "rootfs", "mark-boot-successful")
    assert uefi(jetson)["tries"] == [3, 3]


def test_the_mark_of_a_trial_is_there_before_uefi_is_told_and_gone_with_the_trial(jetson: FakeJetson) -> None:
    control = boot_control(jetson)
    control.set_primary("B")
    assert (jetson.data / TRIAL).exists()
    assert uefi(jetson)["active"] == 1
    assert jetson.restart() == "B"
    assert health.pass_gate(jetson) == ""
    assert not (jetson.data / TRIAL).exists()
    assert control.state_of("B") == "good"


def test_a_tool_that_fails_or_says_nonsense_is_quoted(jetson: FakeJetson) -> None:
    uefi(jetson, current=7)
    with pytest.raises(FirmwareError, match="expected 0 or 1, got '7'"):
        boot_control(jetson).slot()
    (jetson.root / "uefi").write_text("")
    with pytest.raises(FirmwareError, match="nvbootctrl -t rootfs get-current-slot: "):
        boot_control(jetson).slot()


def test_lost_notes_take_what_runs_for_good(jetson: FakeJetson) -> None:
    (jetson.data / "update/slots.json").write_text("{")
    assert not health.on_trial(jetson)
    assert check_armed(jetson) == "B"
