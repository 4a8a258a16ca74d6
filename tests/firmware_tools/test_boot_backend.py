"""What RAUC asks of the boot environment, and the power going off between any two of its calls."""

from pathlib import Path

import pytest

from firmware_tools.device.boot_backend import handle, main
from firmware_tools.device.boot_control import boot_control
from firmware_tools.device.boot_environment import BootEnvironment, BootState
from firmware_tools.device.system import booted_slot
from firmware_tools.errors import FirmwareError
from tests.firmware_tools.fake_device import FakeDevice, PowerCutError, new_device

STEPS = 5
"""Of RAUC's installation: get-primary, set-state, writing begins, writing ends, set-primary."""


@pytest.fixture
def device(tmp_path: Path) -> FakeDevice:
    return new_device(tmp_path / "device")


def test_rauc_is_answered(device: FakeDevice, capsys: pytest.CaptureFixture[str]) -> None:
    for call, answer in (
        ("get-primary", "A\n"),
        ("get-state A", "good\n"),
        ("get-state B", "bad\n"),
        ("set-state B bad", ""),
        ("set-primary B", ""),
        ("get-primary", "B\n"),
        ("get-state B", "bad\n"),  # on trial: not good yet
        ("set-state B good", ""),
        ("get-state B", "good\n"),
    ):
        assert main(call.split(), device) == 0
        assert capsys.readouterr().out == answer


@pytest.mark.parametrize(
    "call", ["", "get-primary A", "set-primary C", "set-state A fine", "get-state", "remove B"]
)
def test_another_call_is_refused_and_changes_nothing(
    device: FakeDevice, call: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = BootEnvironment(device.boot_folder).copies()
    assert main(call.split(), device) == 1
    assert "expected a call as RAUC makes it" in capsys.readouterr().err
    assert BootEnvironment(device.boot_folder).copies() == before


def test_a_damaged_environment_is_said_and_not_answered(
    device: FakeDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (0, 1):
        (device.boot_folder / f"state{number}").write_bytes(b"")
    assert main(["get-primary"], device) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "neither copy" in said.err


def test_a_slot_on_trial_starts_with_all_its_tries(device: FakeDevice) -> None:
    environment = BootEnvironment(device.boot_folder)
    environment.set_tries({"A": 1, "B": 3})
    handle(["set-primary", "B"], boot_control(device))
    assert environment.tries() == {"A": 1, "B": 0}
    assert environment.read().b_state == "trial"


def test_going_back_to_a_good_slot_keeps_it_good(device: FakeDevice) -> None:
    environment = BootEnvironment(device.boot_folder)
    environment.write(BootState(primary="B", b_state="good"))
    handle(["set-primary", "A"], boot_control(device))
    assert environment.read().primary == "A"
    assert environment.read().a_state == "good"


@pytest.mark.parametrize("steps", range(STEPS + 1))
def test_power_cut_in_an_installation_never_boots_a_half_written_slot(device: FakeDevice, steps: int) -> None:
    device.programs.cut_after = steps
    with pytest.raises(PowerCutError):
        device.run(["rauc", "install", "bundle"])
    assert device.restart() == ("B" if steps == STEPS else "A")  # restart refuses half-written ones
    for _ in range(4):  # nor later, however often it is not healthy
        device.restart()


@pytest.mark.parametrize("steps", range(STEPS + 1))
def test_the_same_where_the_other_slot_is_good_and_was_healthy_before(device: FakeDevice, steps: int) -> None:
    device.slots["B"] = "0.9.0"
    environment = BootEnvironment(device.boot_folder)
    environment.write(environment.read().with_state("B", "good"))
    device.programs.cut_after = steps
    with pytest.raises(PowerCutError):
        device.run(["rauc", "install", "bundle"])
    for _ in range(4):
        device.restart()


def test_the_slot_is_read_from_the_kernels_command_line() -> None:
    assert booted_slot("ro rauc.slot=B quiet\n") == "B"
    for line in ("", "ro rauc.slot=C", "rauc.slot", "xrauc.slot=A"):
        with pytest.raises(FirmwareError, match="names no slot"):
            booted_slot(line)
