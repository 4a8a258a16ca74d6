"""What a device says of its image: as its files have it, and nothing where they are damaged."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent import firmware
from agent.config import FirmwareConfig
from agent.firmware import Firmware
from agent.participant import State
from agent.reporting import Reporter
from agent.store import Store
from agent.voice import Voice
from protocol.messages import DeviceState, verify_message
from protocol.topics import Topics
from tests.builders import Clock, private_key

KEY, TOPICS = private_key(1), Topics("pumps")


@pytest.fixture
def config(tmp_path: Path) -> FirmwareConfig:
    release, update = tmp_path / "release", tmp_path / "state.json"
    release.write_text("compatible=graftwork-x86_64-uefi\nversion=1.4.0\n")
    update.write_text('{"phase": "healthy", "version": "1.4.0", "text": "healthy 1.4.0"}')
    return FirmwareConfig(str(release), str(update))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "agent.sqlite")
    yield store
    store.close()


def test_version_and_last_update_are_read(config: FirmwareConfig) -> None:
    assert firmware.read(config) == Firmware("1.4.0", "healthy 1.4.0")


def test_a_device_without_an_image_says_nothing(tmp_path: Path) -> None:
    assert firmware.read(FirmwareConfig("", "")) == Firmware("", "")
    assert firmware.read(FirmwareConfig(str(tmp_path / "no"), str(tmp_path))) == Firmware("", "")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"3",
        b"{}",
        b'{"text": null}',
        b'{"text": ["healthy 1.4.0"]}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_update_file_claims_nothing(config: FirmwareConfig, content: bytes) -> None:
    Path(config.update_file).write_bytes(content)
    assert firmware.read(config) == Firmware("1.4.0", "")


@pytest.mark.parametrize("content", [b"", b"\xff\xfeversion=1", b"compatible=x\n", b" version=1.4.0\n"])
def test_a_damaged_release_file_claims_no_version(config: FirmwareConfig, content: bytes) -> None:
    Path(config.release_file).write_bytes(content)
    assert firmware.read(config) == Firmware("", "healthy 1.4.0")


def test_what_is_said_fits_into_a_message(config: FirmwareConfig) -> None:
    Path(config.release_file).write_text("version=" + "\N{EURO SIGN}" * 1000)
    Path(config.update_file).write_text('{"text": "' + "x" * 1000 + '"}')
    found = firmware.read(config)
    state = DeviceState(True, 1, KEY.public.raw, firmware=found.version, firmware_update=found.update)
    assert (len(state.firmware), len(state.firmware_update)) == (64, 200)


def test_the_state_carries_it_and_is_said_again_when_it_changes(config: FirmwareConfig, store: Store) -> None:
    said: list[DeviceState] = []

    def publish(topic: str, payload: bytes, _retain: bool) -> bool:
        said.append(verify_message(DeviceState, payload, KEY.public, topic))
        return True

    keyring: Any = SimpleNamespace(sealing_key=None)
    reporter = Reporter(
        store,
        Voice("pump-1", TOPICS, KEY, publish, keyring),
        now=Clock(),
        traffic=lambda: (0, 0),
        firmware=lambda: firmware.read(config),
    )
    reporter.state(State(), "")
    assert (said[-1].firmware, said[-1].firmware_update) == ("1.4.0", "healthy 1.4.0")
    assert not reporter.due()
    Path(config.update_file).write_text('{"text": "installed 1.5.0"}')
    assert reporter.due()
    reporter.state(State(), "")
    assert said[-1].firmware_update == "installed 1.5.0"
    assert not reporter.due()
