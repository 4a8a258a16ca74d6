"""What every way to boot must do on a device: updates count when healthy, lead back, and need a way back."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from firmware_tools import device_commands
from firmware_tools.__main__ import main
from firmware_tools.device import health, updates
from firmware_tools.device.boot_backend import handle
from firmware_tools.device.boot_control import boot_control
from firmware_tools.device.installing import bundle_version, check_armed, install
from firmware_tools.errors import FirmwareError
from tests.firmware_tools.fake_boards import new_jetson, new_pi
from tests.firmware_tools.fake_device import FakeDevice, PowerCutError, new_device

BUNDLE = Path("update.raucb")
TRIES = {"grub": 3, "pi": 1, "jetson": 3}
NEW: dict[str, Callable[[Path], FakeDevice]] = {"grub": new_device, "pi": new_pi, "jetson": new_jetson}


@pytest.fixture(params=sorted(NEW))
def device(tmp_path: Path, request: pytest.FixtureRequest) -> FakeDevice:
    """One that passed its gate once."""
    device = NEW[request.param](tmp_path / request.param)
    assert health.pass_gate(device) == ""
    return device


def tries(device: FakeDevice) -> int:
    return TRIES[device.root.name]


def update(device: FakeDevice, version: str) -> None:
    device.programs.bundle = version
    install(device, BUNDLE, lambda path: bundle_version(device, path))


def reported(device: FakeDevice) -> str:
    state = updates.load(device.state_file)
    return state.text if state is not None else ""


def test_an_update_boots_on_trial_and_counts_when_it_was_found_healthy(device: FakeDevice) -> None:
    for version, slot in (("1.1.0", "B"), ("1.2.0", "A"), ("1.3.0", "B")):
        update(device, version)
        assert boot_control(device).primary() == slot
        assert device.restart() == slot
        assert health.on_trial(device)
        assert reported(device) == f"installed {version}"
        assert health.pass_gate(device) == ""
        assert not health.on_trial(device)
        assert reported(device) == f"healthy {version}"
        assert device.restart(power_cut=True) == slot
        assert health.pass_gate(device) == ""


def test_an_unhealthy_update_leads_back_and_the_next_one_can_come(device: FakeDevice) -> None:
    update(device, "1.1.0")
    device.programs.engine = (1, "no engine")
    for _ in range(tries(device)):
        assert device.restart() == "B"
        assert health.pass_gate(device).startswith("engine")
    assert device.restart() == "A"
    device.programs.engine = (0, "")
    assert health.pass_gate(device) == ""
    assert reported(device).startswith("rolled back from 1.1.0 to 1.0.0: engine")
    assert boot_control(device).primary() == "A"
    assert boot_control(device).state_of("B") == "bad"


def test_an_update_that_never_reaches_its_gate_leads_back(device: FakeDevice) -> None:
    update(device, "1.1.0")
    assert [device.restart() for _ in range(tries(device) + 1)] == ["B"] * tries(device) + ["A"]
    assert health.pass_gate(device) == ""
    assert reported(device).startswith("rolled back from 1.1.0 to 1.0.0")


@pytest.mark.parametrize("steps", range(6))
def test_power_cut_in_an_installation_never_boots_a_half_written_slot(device: FakeDevice, steps: int) -> None:
    device.programs.cut_after = steps
    with pytest.raises(PowerCutError):
        update(device, "1.1.0")
    slot = device.restart(power_cut=True)  # it refuses half-written ones
    assert health.pass_gate(device) == ""
    assert reported(device) == "healthy 1.1.0" if slot == "B" else "rolled back" in reported(device)
    device.programs.cut_after = 99
    if slot == "A":
        update(device, "1.2.0")
        assert device.restart() == "B"


def test_a_late_failure_is_taken_back(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(self: FakeDevice) -> tuple[int, str]:
        installs(self)
        return 1, "LastError: post-install handler failed\n"

    installs = FakeDevice._install
    monkeypatch.setattr(FakeDevice, "_install", late)
    with pytest.raises(FirmwareError, match="post-install"):
        update(device, "1.1.0")
    assert boot_control(device).primary() == "A"
    assert device.restart() == "A"


def test_a_second_update_waits_for_the_reboot_and_a_trial_takes_none(device: FakeDevice) -> None:
    update(device, "1.1.0")
    with pytest.raises(FirmwareError, match="waits for a reboot"):
        check_armed(device)
    device.restart()
    with pytest.raises(FirmwareError, match="slot B, which runs, is trial and not good"):
        check_armed(device)


def test_rauc_is_answered_the_same_everywhere(device: FakeDevice) -> None:
    control = boot_control(device)
    assert [handle(words.split(), control) for words in ("get-primary", "get-state A", "get-state B")] == [
        "A",
        "good",
        "bad",
    ]
    handle(["set-state", "B", "bad"], control)
    assert handle(["get-current"], control) == "A"
    with pytest.raises(FirmwareError, match="as RAUC makes it"):
        handle(["set-primary", "C"], control)


def test_the_status_names_slots_and_the_update(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    update(device, "1.1.0")
    monkeypatch.setattr(device_commands, "Device", lambda: device)
    assert main(["device", "status", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["slot"], facts["primary"], facts["slot_a"], facts["slot_b"]) == ("A", "B", "good", "trial")
    assert facts["update"] == "installed 1.1.0"


def test_an_image_for_another_kind_of_device_is_said(device: FakeDevice) -> None:
    (device.root / "etc/graftwork-boot").write_text("u-boot\n")
    with pytest.raises(FirmwareError, match="expected grub-efi, rpi-tryboot or jetson, got 'u-boot'"):
        boot_control(device)
