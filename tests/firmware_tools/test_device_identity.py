"""The first boot: a seed becomes an identity, once, whatever moment the power is cut."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.config import load
from firmware_tools import seed as seeds
from firmware_tools.__main__ import main
from firmware_tools.device_identity import take_seed
from firmware_tools.errors import FirmwareError
from firmware_tools.provisioning import Fleet
from protocol.signing import PrivateKey
from runtime.keys import read

SERVER_KEY = PrivateKey(bytes(range(32))).public.raw.hex()
TOKEN = "0123456789abcdef" * 2 + "01234567"
KEY = PrivateKey(b"k" * 32)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class Device:
    """A device with a seed, as it comes from the factory."""

    def __init__(self, folder: Path, name: str = "edge-1", *, factory_key: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.identity, self.config = folder / "identity", folder / "etc" / "agent.toml"
        files = {
            seeds.SERVICES_CA: b"certificate\n",
            seeds.SETTINGS: b'state_directory = "/var/lib/a"\n[limits]\nnice = 5\n',
            seeds.TOKEN: TOKEN.encode() + b"\n",
        }
        if factory_key:
            files[seeds.DEVICE_KEY] = KEY.raw.hex().encode() + b"\n"
        fleet = Fleet("plant", "broker.example", 8883, 8884, SERVER_KEY)
        self.seed = folder / name
        seeds.write(self.seed, fleet.description(name, files), files)

    def boot(self) -> bool:
        return take_seed(self.seed, self.identity, self.config).new


@pytest.fixture(params=[False, True], ids=["on-device", "factory-key"])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Device:
    return Device(tmp_path, factory_key=request.param)


def test_the_agent_reads_what_was_written_and_the_seed_is_empty(device: Device) -> None:
    assert device.boot()
    config = load(device.config)
    assert (config.device, config.federation, config.server_key) == ("edge-1", "plant", SERVER_KEY)
    assert (config.broker.host, config.broker.port, config.enrolment.port) == ("broker.example", 8883, 8884)
    assert (config.limits.nice, config.state_directory) == (5, "/var/lib/a")
    assert Path(config.broker.tls_ca).read_bytes() == b"certificate\n"
    assert Path(config.enrolment.token_file).read_text().strip() == TOKEN
    assert Path(config.identity_directory) == device.identity
    assert TOKEN not in device.config.read_text()
    assert not {seeds.TOKEN, seeds.DEVICE_KEY, seeds.SEED_FILE} & names(device.seed)
    for path in device.identity.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not device.boot()


def test_a_factory_key_is_the_one_that_the_agent_signs_with(tmp_path: Path) -> None:
    device = Device(tmp_path, factory_key=True)
    device.boot()
    assert read(device.identity / "device.key").public == KEY.public


def test_a_root_of_trust_comes_in_the_place_of_the_servers_key(tmp_path: Path) -> None:
    files = {seeds.ROOT: b"{}"}
    with pytest.raises(FirmwareError, match=r"server_key and root\.json: expected one of them"):
        Fleet("plant", "10.0.0.1", server_key=SERVER_KEY).description("edge-1", files)
    with pytest.raises(FirmwareError, match="expected the services' CA, as the device is to enrol"):
        Fleet("plant", "10.0.0.1", enrolment_port=8884).description("edge-1", files)
    seeds.write(tmp_path / "seed", Fleet("plant", "10.0.0.1").description("edge-1", files), files)
    take_seed(tmp_path / "seed", tmp_path / "identity", tmp_path / "agent.toml")
    config = load(tmp_path / "agent.toml")
    assert (config.server_key, Path(config.root).read_bytes()) == ("", b"{}")


class PowerCutError(BaseException):
    """No code of the program runs after this."""


@contextmanager
def power_cut_after(operations: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Cut the power before the operation on the file system of this number, and stay off."""
    done: list[str] = []

    def counted(name: str, original: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            if len(done) >= operations:
                raise PowerCutError
            done.append(name)
            return original(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("open", "write", "fsync", "fchmod", "replace", "unlink", "mkdir"):
            patch.setattr(os, name, counted(name, getattr(os, name)))
        yield done


@pytest.mark.parametrize("factory_key", [False, True])
def test_after_a_power_cut_at_any_operation_the_next_boot_finishes(
    factory_key: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for operations in range(200):
        device = Device(tmp_path / str(operations), factory_key=factory_key)
        whole = {name: (device.seed / name).read_bytes() for name in names(device.seed)}
        with power_cut_after(operations, monkeypatch) as done:
            try:
                device.boot()
            except PowerCutError:
                pass
            else:
                assert len(done) == operations
                assert operations > 20
                return
        for name in {seeds.TOKEN, seeds.DEVICE_KEY} & set(whole):  # in one of both places, always whole
            places = [device.seed / name, device.identity / name]
            assert whole[name] in [place.read_bytes() for place in places if place.exists()]
        if device.config.exists():
            assert load(device.config).device == "edge-1"
            assert (device.identity / seeds.TOKEN).read_bytes() == whole[seeds.TOKEN]
        device.boot()
        assert (device.identity / seeds.TOKEN).read_bytes() == whole[seeds.TOKEN]
        assert not {seeds.TOKEN, seeds.DEVICE_KEY, seeds.SEED_FILE} & names(device.seed)
        assert load(device.config).device == "edge-1"
    pytest.fail("take_seed does not end")


def test_a_secret_is_overwritten_before_it_is_removed(tmp_path: Path) -> None:
    device = Device(tmp_path)
    (tmp_path / "spy").hardlink_to(device.seed / seeds.TOKEN)
    device.boot()
    assert not (tmp_path / "spy").read_bytes().strip(b"\0")


def test_the_seed_of_another_device_is_refused_and_kept(tmp_path: Path) -> None:
    device = Device(tmp_path / "a")
    device.boot()
    other = Device(tmp_path / "b", "edge-2")
    with pytest.raises(FirmwareError, match=r"expected a seed for edge-1.* got one for edge-2"):
        take_seed(other.seed, device.identity, device.config)
    assert (other.seed / seeds.TOKEN).exists()


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    device = Device(tmp_path, factory_key=True)
    device.identity.mkdir()
    (device.identity / seeds.DEVICE_KEY).write_text("00" * 32)
    with pytest.raises(FirmwareError, match="this device has a key already"):
        device.boot()
    assert (device.identity / seeds.DEVICE_KEY).read_text() == "00" * 32


@pytest.mark.parametrize("name", [seeds.TOKEN, seeds.SERVICES_CA, seeds.SEED_FILE])
def test_a_seed_that_was_cut_off_is_refused(tmp_path: Path, name: str) -> None:
    device = Device(tmp_path)
    path = device.seed / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FirmwareError, match="provision"):
        device.boot()
    assert not device.config.exists()


def test_without_seed_and_configuration_the_command_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["device", "take-seed", "--seed", str(tmp_path / "none"), "--identity", str(tmp_path / "i")]
    assert main([*command, "--config", str(tmp_path / "agent.toml")]) == 1
    assert "graftwork-firmware provision into" in capsys.readouterr().err
    device = Device(tmp_path)
    command = ["device", "take-seed", "--seed", str(device.seed), "--identity", str(device.identity)]
    assert main([*command, "--config", str(device.config), "--json"]) == 0
    assert capsys.readouterr().out == '{"device": "edge-1", "new": true}\n'


@pytest.mark.parametrize("settings", [b'device = "x"\n', b"[broker]\nport = 1\n", b"not toml", b"\xff"])
def test_settings_that_contradict_the_seed_are_refused(settings: bytes) -> None:
    with pytest.raises(FirmwareError, match="settings of the agent"):
        seeds.check_settings(settings)


@pytest.mark.parametrize("host", ["", 'x"\ny = 1', "host name", "ü", "a" * 300])
def test_a_host_that_is_none_never_reaches_a_configuration(host: str) -> None:
    with pytest.raises(ValueError, match="expected the name or address"):
        seeds.check_host(host)
