"""Which virtual machine boots an image: that of its description, or the one that is named."""

import json
from pathlib import Path

import pytest

from firmware_tools import build_commands, machine_models
from firmware_tools.build.spec import ARCHITECTURES
from firmware_tools.errors import FirmwareError
from firmware_tools.machine import Machine
from firmware_tools.machine_models import MODELS


def test_there_is_a_machine_for_every_architecture_that_a_target_may_have() -> None:
    assert set(MODELS) == set(ARCHITECTURES)


def test_the_description_beside_the_image_says_which(tmp_path: Path) -> None:
    image, described = tmp_path / "image.img", tmp_path / "release.json"
    assert build_commands._model(None, image) == MODELS["amd64"]
    described.write_text(json.dumps({"architecture": "arm64"}))
    assert build_commands._model(None, image) == MODELS["arm64"]
    assert build_commands._model("amd64", image) == MODELS["amd64"]
    described.write_text(json.dumps({"version": "of an older build"}))
    assert build_commands._model(None, image) == MODELS["amd64"]
    described.write_text(json.dumps({"architecture": "riscv64"}))
    with pytest.raises(FirmwareError, match="expected an architecture of amd64, arm64"):
        build_commands._model(None, image)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_command_is_of_that_machine(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_models.MachineModel, "check", lambda _self: None)
    machine = Machine(tmp_path, tmp_path / "disk", model=MODELS[name])
    command = machine._command(tmp_path / "serial", tmp_path / "variables")
    assert command[0] == MODELS[name].program
    assert f"if=pflash,format=raw,readonly=on,file={MODELS[name].code}" in command
    assert "kvm" not in command


def test_a_missing_emulator_is_named_with_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FirmwareError, match="apt install qemu-system-arm qemu-efi-aarch64"):
        Machine(tmp_path, tmp_path / "disk", model=MODELS["arm64"])
