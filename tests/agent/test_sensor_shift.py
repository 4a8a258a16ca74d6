"""Whole devices whose sensors differ from the package's: other columns and units give the same update."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocol.input_schema import Alias, ColumnSpec, InputSchema
from protocol.messages import DeviceState, Report, Update
from protocol.package import pack
from tests.agent.test_device import Device
from tests.builders import LENGTH, PUBLISHER, SCHEMA, tiny_manifest, tiny_members

LEVELS = [
    (label, sign * (1 + index % 3)) for index in range(20) for label, sign in (("low", -1), ("high", 1))
]


def package(schema: InputSchema) -> bytes:
    members = tiny_members()
    return pack(replace(tiny_manifest(members), schema=schema), members, PUBLISHER)


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
