"""Whole devices whose sensors differ: other columns, units, gains and offsets give the same update."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.normalisation import STATISTICS_FILE
from protocol.input_schema import DEVICE, Alias, ColumnSpec, InputSchema
from protocol.messages import DeviceState, Report, Update, verify_message
from protocol.package import format_version, pack
from tests.agent.test_device import DEVICE_KEY, UP, Device
from tests.builders import LENGTH, PUBLISHER, SCHEMA, tiny_manifest, tiny_members

LEVELS = [
    (label, sign * (1 + index % 3)) for index in range(20) for label, sign in (("low", -1), ("high", 1))
]


def package(schema: InputSchema) -> bytes:
    members = tiny_members()
    manifest = replace(tiny_manifest(members), schema=schema, format_version=format_version(schema))
    return pack(manifest, members, PUBLISHER)


def write(path: Path, column: str, scale: float = 1.0, offset: float = 0.0) -> None:
    """The same measurement by a sensor whose numbers are `scale` times larger, and `offset` higher."""
    rows = [
        f"{scale * (level + row / 16) + offset},{label}" for label, level in LEVELS for row in range(LENGTH)
    ]
    path.write_text("\n".join([f"{column},label", *rows]) + "\n", "utf-8")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path / "device")
    yield device
    device.close()


def own(device: Device, **channels: ColumnSpec) -> None:
    """Write a mapping into the device's configuration, and start it again."""
    device.config = replace(device.config, source=replace(device.config.source, channels=channels))
    device.restart()


def answer(device: Device, data: bytes) -> list[Any]:
    """Install a package, take a release, answer a round."""
    device.announce(data)
    device.serve_chunks(data)
    device.open_round(1, device.release(data=data))
    return device.said(Update, "update")


@pytest.fixture
def native(tmp_path: Path) -> Iterator[Device]:
    """A device of the type that the package was made for."""
    device = Device(tmp_path / "native")
    write(device.spool / "a.csv", "x")
    yield device
    device.close()


def test_a_device_whose_owner_maps_its_column_sends_the_same_update(native: Device, device: Device) -> None:
    data = package(replace(SCHEMA, units=("V",)))
    write(device.spool / "a.csv", "adc", 2048, 64)
    own(device, x=ColumnSpec("adc", "V", scale=1 / 2048, offset=-64 / 2048))
    assert answer(device, data) == answer(native, data)


def test_a_device_of_a_type_that_the_package_knows_needs_no_mapping(native: Device, device: Device) -> None:
    data = package(replace(SCHEMA, aliases=(Alias("x", "adc", scale=1 / 2048, offset=-64 / 2048),)))
    write(device.spool / "a.csv", "adc", 2048, 64)
    assert answer(device, data) == answer(native, data)


def test_a_device_with_an_unknown_column_tells_the_server_what_is_missing(device: Device) -> None:
    data = package(replace(SCHEMA, units=("V",)))
    write(device.spool / "a.csv", "adc")
    assert answer(device, data) == []
    assert device.said(DeviceState, "state")[-1].labelled_windows == 0
    [report] = device.said(Report, "report")
    [problem] = report.problems
    assert problem == (
        "a.csv: line 1: expected a column 'x' (V), found adc, label; if it stands in another column, add to "
        '[source]: channels.x = { column = "adc", unit = "V" } (or the column\'s own unit: V, mV, uV, kV)'
    )


def test_a_package_whose_unit_the_mapping_cannot_give_is_not_installed(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    write(device.spool / "a.csv", "x")
    own(device, x=ColumnSpec("x", "bar"))
    with caplog.at_level(logging.ERROR, "agent.fetching"):
        assert answer(device, package(replace(SCHEMA, units=("V",)))) == []
    assert device.store.state().package == b""
    assert "channels.x: unit: expected a unit of voltage (V, mV, uV, kV), got 'bar'" in caplog.text


def test_a_mapping_that_is_mended_makes_the_device_take_part(device: Device) -> None:
    data = package(replace(SCHEMA, units=("V",)))
    write(device.spool / "a.csv", "adc", 1000)
    assert answer(device, data) == []
    own(device, x=ColumnSpec("adc", "mV"))
    device.open_round(2, device.release(1, data=data))
    [update] = device.said(Update, "update")
    assert update.weight == 28


def heard(device: Device) -> list[tuple[str, Any, bool]]:
    """All that a device published, in order; a report without what its process cost."""
    out: list[tuple[str, Any, bool]] = []
    for topic, payload, retain in device.wire.published:
        message: Any = payload
        if topic == UP["report"]:
            report = verify_message(Report, payload, DEVICE_KEY.public, topic)
            message = replace(report, cpu_seconds=0.0, peak_rss_bytes=0)
        out.append((topic, message, retain))
    return out


def test_who_hears_every_message_cannot_tell_what_the_sensor_is_like(native: Device, device: Device) -> None:
    """Two machines do the same, and one has a sensor of another gain and offset.

    Their statistics differ, and what they say does not, to the bit: so no message holds anything of the
    statistics.
    """
    data = package(replace(SCHEMA, normalisation=DEVICE))
    write(device.spool / "a.csv", "x", 2048, 65536)
    statistics = []
    for one in (native, device):
        one.agent.connected()
        one.announce(data)
        while any(topic == UP["get"] for topic, _, _ in one.wire.published):
            one.serve_chunks(data)
        for number in range(3):
            one.open_round(number + 1, one.release(number, data=data))
        one.clock.advance(3600)
        one.agent.tick()
        one.agent.disconnected()
        [file] = one.folder.rglob(STATISTICS_FILE)
        statistics.append(json.loads(file.read_text("utf-8")))
    assert statistics[0]["mean"][0] * 2048 + 65536 == statistics[1]["mean"][0]
    assert statistics[0]["deviation"][0] * 2048 == statistics[1]["deviation"][0]
    assert {topic for topic, _, _ in heard(device)} >= {UP["state"], UP["report"], UP["update"]}
    assert heard(device) == heard(native)
    assert device.agent.will() == native.agent.will()


def test_without_normalisation_the_same_eavesdropper_can_tell(native: Device, device: Device) -> None:
    data = package(SCHEMA)
    write(device.spool / "a.csv", "x", 2, 1)
    assert answer(device, data) != answer(native, data)
