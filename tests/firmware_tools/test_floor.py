"""The lowest version that a device installs: it only rises, and outlasts roll-backs and damaged files."""

import configparser
from pathlib import Path

import pytest

from firmware_tools import device_commands
from firmware_tools.__main__ import main
from firmware_tools.build.rootfs import device_files
from firmware_tools.build.spec import load_spec
from firmware_tools.device import floor, health
from firmware_tools.device.installing import bundle_version, install
from firmware_tools.errors import FirmwareError
from runtime import whole_files
from tests.firmware_tools.fake_device import FakeDevice, new_device


@pytest.fixture
def device(tmp_path: Path) -> FakeDevice:
    device = new_device(tmp_path / "device")
    assert health.pass_gate(device) == ""
    return device


def update(device: FakeDevice, version: str, *, allow: bool = False) -> str:
    device.programs.bundle = version
    install(device, Path("x"), lambda path: bundle_version(device, path), allow_downgrade=allow)
    slot = device.restart()
    assert health.pass_gate(device) == ""
    return slot


def test_only_a_version_that_was_marked_good_raises_what_was_healthy(device: FakeDevice) -> None:
    assert floor.load(device).healthy == "1.0.0"
    device.programs.bundle = "1.5.0"
    install(device, Path("x"), lambda path: bundle_version(device, path))
    assert floor.load(device).healthy == "1.0.0"
    device.restart()
    device.programs.engine = (1, "no engine")
    assert "engine" in health.pass_gate(device)
    assert floor.load(device).healthy == "1.0.0"
    device.programs.engine = (0, "")
    assert health.pass_gate(device) == ""
    assert floor.load(device).healthy == "1.5.0"


def test_a_roll_back_opens_no_way_to_versions_between(device: FakeDevice) -> None:
    update(device, "2.0.0")
    assert [device.restart() for _ in range(4)] == ["B", "B", "B", "A"]
    assert health.pass_gate(device) == ""
    assert device.release()["version"] == "1.0.0"
    for _ in range(2):  # trying again does not help
        with pytest.raises(FirmwareError, match=r"2\.0\.0 was healthy here before: .* use --allow-downgrade"):
            update(device, "1.5.0")
    assert update(device, "2.0.0") == "B"


def test_a_downgrade_that_was_asked_for_goes_no_lower_than_the_signed_floor(device: FakeDevice) -> None:
    update(device, "2.0.0")
    floor.note_signed(device, "1.5.0")
    with pytest.raises(FirmwareError, match="use --allow-downgrade"):
        update(device, "1.6.0")
    update(device, "1.6.0", allow=True)
    with pytest.raises(FirmwareError, match=r"below 1\.5\.0: .* nothing on the device goes below it"):
        update(device, "1.4.9", allow=True)
    assert floor.load(device) == floor.Floor(signed="1.5.0", healthy="2.0.0")


def test_floors_never_sink(device: FakeDevice) -> None:
    for version, expected in (("1.10.0", "1.10.0"), ("1.9.0", "1.10.0"), ("1.11.0", "1.11.0")):
        floor.note_signed(device, version)
        assert floor.lowest(device) == expected


def test_the_image_has_a_floor_of_its_own(device: FakeDevice) -> None:
    with (device.root / "etc/graftwork-release").open("a") as file:
        file.write("floor=1.0.0\n")
    with pytest.raises(FirmwareError, match=r"below 1\.0\.0"):
        update(device, "0.9.0", allow=True)
    floor.note_signed(device, "0.5.0")
    assert floor.lowest(device) == "1.0.0"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"signed": 3}', b'{"healthy": "new"}', b"\xff", b'{"x": ""}']
)
def test_a_damaged_file_stops_neither_gate_nor_update(device: FakeDevice, content: bytes) -> None:
    path = device.data / "update/floor.json"
    path.write_bytes(content)
    with pytest.raises(FirmwareError, match=r"1\.0\.0 runs"):
        update(device, "0.9.0")
    assert health.pass_gate(device) == ""
    assert floor.load(device).healthy == "1.0.0"
    update(device, "1.1.0")


def test_a_full_disk_makes_no_healthy_system_an_unhealthy_one(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = whole_files.write

    def full(path: Path, data: bytes, mode: int) -> None:
        if path.name == "floor.json":
            raise OSError(28, "No space left on device")
        write(path, data, mode)

    device.programs.bundle = "1.1.0"
    install(device, Path("x"), lambda path: bundle_version(device, path))
    device.restart()
    with monkeypatch.context() as patch:
        patch.setattr(whole_files, "write", full)
        assert health.pass_gate(device) == ""
        with pytest.raises(FirmwareError, match="No space left"):
            floor.note_signed(device, "1.1.0")
    assert health.pass_gate(device) == ""
    assert floor.load(device).healthy == "1.1.0"


def test_the_command_goes_below_what_runs_and_not_below_the_floor(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device_commands, "Device", lambda: device)
    floor.note_signed(device, "0.5.0")
    command = ["device", "update", "x.raucb", "--no-reboot"]
    device.programs.bundle = "0.9.0"
    assert main(command) == 1
    assert "--allow-downgrade" in capsys.readouterr().err
    device.programs.bundle = "0.4.0"
    assert main([*command, "--allow-downgrade"]) == 1
    assert "below 0.5.0" in capsys.readouterr().err
    device.programs.bundle = "0.9.0"
    assert main([*command, "--allow-downgrade"]) == 0


def test_rauc_knows_the_floor_of_the_image_too() -> None:
    spec = load_spec("qemu-x86_64")
    parsers = []
    for version in ("", "1.2.0"):
        files = device_files(spec, "1.4.0", b"", floor=version)
        parser = configparser.ConfigParser()
        content = files["./etc/rauc/system.conf"].content
        assert isinstance(content, bytes)
        parser.read_string(content.decode())
        parsers.append(parser)
        release = files["./etc/graftwork-release"].content
        assert isinstance(release, bytes)
        assert (b"floor=1.2.0\n" in release) is bool(version)
    assert "min-bundle-version" not in parsers[0]["system"]
    assert parsers[1]["system"]["min-bundle-version"] == "1.2.0"


def test_a_floor_above_the_image_itself_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keyring, wheel = tmp_path / "keyring.pem", tmp_path / "w.whl"
    keyring.write_bytes(b"")
    wheel.write_bytes(b"")
    command = [
        *("build", "qemu-x86_64", "--version", "1.4.0", "--keyring", str(keyring), "--wheel", str(wheel)),
        *("--output", str(tmp_path / "out"), "--plan"),
    ]
    assert main([*command, "--floor", "1.4.1"]) == 1
    assert "expected at most the version of the image, 1.4.0" in capsys.readouterr().err
    assert main([*command, "--floor", "1.4.0"]) == 0
    (tmp_path / "root.json").write_bytes(b"{}")
    assert main([*command, "--release-root", str(tmp_path / "root.json")]) == 1
    assert "expected the root.json that `release init` wrote" in capsys.readouterr().err
