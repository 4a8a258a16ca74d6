"""Raspberry Pi: one sector says what boots; a trial is tried once; without tryboot there is no update.

Not run on hardware: the firmware is played by tests/firmware_tools/fake_boards.py.
"""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_tools import device_commands
from firmware_tools.__main__ import main
from firmware_tools.build.spec import load_spec
from firmware_tools.build.ways.rpi_tryboot import RaspberryPi
from firmware_tools.device import health
from firmware_tools.device.boot_control import boot_control
from firmware_tools.device.installing import check_armed
from firmware_tools.device.slot_states import SlotStates
from firmware_tools.device.tryboot import AUTOBOOT, BOOT_FILES, Autoboot, decode, fill
from firmware_tools.errors import FirmwareError
from tests.firmware_tools.fake_boards import FakePi, new_pi

STATES = st.builds(
    Autoboot,
    st.sampled_from("AB"),
    st.builds(
        SlotStates,
        st.sampled_from(["good", "trial", "bad"]),
        st.sampled_from(["good", "trial", "bad"]),
        st.one_of(st.just(""), st.uuids().map(str)),
    ),
)


@pytest.fixture
def pi(tmp_path: Path) -> FakePi:
    device = new_pi(tmp_path / "pi")
    assert health.pass_gate(device) == ""
    return device


@given(STATES)
def test_every_state_is_one_sector_and_reads_back(state: Autoboot) -> None:
    content = state.encode()
    assert len(content) == 512
    assert decode(content) == state
    assert all(not line or line[0] in "[#" or "=" in line for line in content.decode().split("\n"))


@given(STATES, st.integers(0, 511), st.integers(0, 7))
def test_a_damaged_sector_is_no_other_state_of_the_slots(state: Autoboot, byte: int, bit: int) -> None:
    content = bytearray(state.encode())
    content[byte] ^= 1 << bit
    try:
        found = decode(bytes(content))
    except ValueError:
        return
    assert (found.default, found.states.a, found.states.b) == (state.default, state.states.a, state.states.b)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[all]\nboot_partition=2\n",
        Autoboot().encode() + b"\n",
        Autoboot().encode().replace(b"=3", b"=2"),
    ],
)
def test_an_autoboot_of_others_is_not_taken(pi: FakePi, content: bytes) -> None:
    (pi.boot_folder / AUTOBOOT).write_bytes(content)
    with pytest.raises(FirmwareError, match=r"autoboot\.txt"):
        check_armed(pi)
    assert not health.on_trial(pi)
    assert health.pass_gate(pi) == ""  # a healthy system writes it anew
    assert check_armed(pi) == "B"


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("dev/vcio", "only the kernels of Raspberry Pi hand the tryboot flag"),
        ("proc/device-tree/chosen/bootloader/tryboot", "the boot loader in the board's EEPROM"),
    ],
)
def test_without_tryboot_in_kernel_and_firmware_no_update_begins(pi: FakePi, missing: str, said: str) -> None:
    (pi.root / missing).unlink()
    with pytest.raises(FirmwareError, match=said):
        check_armed(pi)


def test_a_trial_that_a_plain_restart_skipped_is_given_up_and_not_tried_later(pi: FakePi) -> None:
    control = boot_control(pi)
    control.set_state("B", "bad")
    pi.end_writing("B")
    control.set_primary("B")
    assert list(control.restart()) == ["systemctl", "reboot", "--reboot-argument=0 tryboot"]
    assert pi.restart(power_cut=True) == "A"
    assert health.pass_gate(pi) == ""
    assert list(control.restart()) == ["systemctl", "reboot"]
    assert control.state_of("B") == "bad"


def test_the_update_command_restarts_with_the_flag(pi: FakePi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_commands, "Device", lambda: pi)
    assert main(["device", "update", "update.raucb"]) == 0
    assert pi.programs.called[-1] == ("systemctl", "reboot", "--reboot-argument=0 tryboot")


def test_the_boot_partition_of_the_slot_is_filled_and_no_other(pi: FakePi) -> None:
    media = pi.root / "media"
    before = (media / "boot-a/cmdline.txt").read_text()
    (media / "boot-b/old.dtb").write_text("of the version before")
    pi.end_writing("B")
    boot_control(pi).set_primary("B")
    names = sorted(path.relative_to(media / "boot-b").as_posix() for path in (media / "boot-b").rglob("*"))
    assert names == ["cmdline.txt", "kernel8.img", "overlays", "overlays/README"]
    assert "rauc.slot=B" in (media / "boot-b/cmdline.txt").read_text()
    assert (media / "boot-a/cmdline.txt").read_text() == before
    assert not list((pi.root / "run/graftwork").glob("*"))  # nothing stays mounted


def test_a_slot_that_cannot_be_mounted_or_is_of_another_board_arms_no_trial(pi: FakePi) -> None:
    control, before = boot_control(pi), (pi.boot_folder / AUTOBOOT).read_bytes()
    with pytest.raises(FirmwareError, match="cannot be made ready to boot: mount"):
        control.set_primary("B")
    (pi.root / "media/rootfs-b" / BOOT_FILES).mkdir(parents=True)
    with pytest.raises(FirmwareError, match="expected the boot files of a Raspberry Pi"):
        control.set_primary("B")
    assert (pi.boot_folder / AUTOBOOT).read_bytes() == before
    with pytest.raises(FirmwareError, match="expected the boot files"):
        fill(pi.root / "nothing", pi.root / "media/boot-b", "B")


@pytest.mark.parametrize(("flag", "status"), [(b"\0\0\0\1", 0), (b"\0\0\0\0", 1)])
def test_the_unit_that_goes_back_asks_the_firmware_whether_this_is_a_trial(
    tmp_path: Path, flag: bytes, status: int
) -> None:
    unit = RaspberryPi().files(load_spec("rpi"))["./etc/systemd/system/graftwork-back.service.d/tryboot.conf"]
    condition = unit.read().decode().partition("ExecCondition=")[2].strip()
    (tmp_path / "tryboot").write_bytes(flag)
    command = condition.replace("/proc/device-tree/chosen/bootloader", str(tmp_path)).replace("\\\\", "\\")
    assert subprocess.run(["sh", "-c", command], check=False).returncode == status
