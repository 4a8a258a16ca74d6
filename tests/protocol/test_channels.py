"""Channels of devices that name or scale them in their own way: mapped, or refused with the reason."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.channels import ChannelError, Columns, Reading, check, resolve
from protocol.errors import DataError
from protocol.input_schema import Alias, ColumnSpec, ImageSpec, InputSchema
from protocol.recording import Recording, parse

SCHEMA = InputSchema(
    "timeseries",
    ("temperature", "vibration", "level"),
    1.0,
    ("good", "bad"),
    units=("degC", "m/s2", ""),
    aliases=(
        Alias("temperature", "temp_f", "degF"),
        Alias("temperature", "t_raw", "degC", 0.0625, -50.0),
        Alias("vibration", "acc", "g"),
        Alias("level", "level_counts", scale=0.5),
    ),
)
NATIVE = "temperature,vibration,level,label\n"


def read(text: str, owner: Columns | None = None, name: str = "a.csv") -> Recording:
    return parse(io.BytesIO(text.encode()), name, SCHEMA, columns=owner or {})


def refusal(text: str, owner: Columns | None = None) -> ChannelError:
    with pytest.raises(ChannelError) as caught:
        read(text, owner)
    return caught.value


def test_a_device_of_a_known_type_is_read_without_an_owner() -> None:
    recording = read("timestamp,acc,temp_f,level_counts,label\n0,2,212,7,bad\n1,-1,-40,8,\n")
    assert recording.samples == pytest.approx(np.array([[100, 19.6133, 3.5], [-40, -9.80665, 4]]), rel=1e-6)
    assert recording.labels.tolist() == [1, -1]


def test_raw_counts_are_scaled_before_the_unit_is_converted() -> None:
    owner = {"vibration": ColumnSpec("adc", "g", scale=1 / 1024, offset=-2.0)}
    recording = read("t_raw,adc,level\n1200,3072,1\n", owner)
    assert recording.samples == pytest.approx(np.array([[25.0, 9.80665, 1.0]]), rel=1e-6)


def test_the_name_of_the_channel_comes_before_its_aliases() -> None:
    assert read("temp_f,temperature,vibration,level\n900,20,1,1\n").samples[0, 0] == 20


def test_the_owner_comes_before_the_name_of_the_channel() -> None:
    """The device's "temperature" is in kelvin: the name alone would be taken for degrees Celsius."""
    owner = {"temperature": ColumnSpec(unit="K")}
    assert read(NATIVE + "293.15,1,1,good\n", owner).samples[0, 0] == pytest.approx(20, abs=1e-4)


def test_two_channels_can_change_places() -> None:
    owner = {"vibration": ColumnSpec("level"), "level": ColumnSpec("vibration")}
    assert read(NATIVE + "1,2,3,good\n", owner).samples.tolist() == [[1, 3, 2]]


def test_what_needs_no_conversion_keeps_every_bit() -> None:
    values = np.float32([1.1, 3.4e38, -1e-45])
    text = NATIVE + ",".join(str(value) for value in values) + ",good\n"
    owner = {"vibration": ColumnSpec(unit="m/s^2"), "level": ColumnSpec("level")}
    assert read(text, owner).samples.tobytes() == values.tobytes() == read(text).samples.tobytes()


def test_parquet_is_mapped_as_csv_is() -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    out = io.BytesIO()
    pq.write_table(pa.table({"acc": [2.0, -1.0], "temp_f": [212, -40], "level_counts": [7, 8]}), out)
    recording = parse(io.BytesIO(out.getvalue()), "a.parquet", SCHEMA)
    same = read("acc,temp_f,level_counts\n2,212,7\n-1,-40,8\n")
    assert recording.samples.tobytes() == same.samples.tobytes()
    with pytest.raises(ChannelError, match=r"a\.parquet: expected a column 'temp' for .* found acc, temp_f"):
        parse(io.BytesIO(out.getvalue()), "a.parquet", SCHEMA, columns={"temperature": ColumnSpec("temp")})


def test_a_missing_channel_names_what_would_do_and_what_is_there() -> None:
    error = refusal("timestamp,temp,acc,level,label\n1,2,3,4,good\n")
    assert str(error) == (
        "a.csv: line 1: expected a column 'temperature' (degC) or 'temp_f' (degF) or 't_raw' (degC), "
        "found timestamp, temp, acc, level, label"
    )
    assert (error.channel, error.columns) == ("temperature", ("temp", "acc"))


@pytest.mark.parametrize(
    ("header", "owner", "message"),
    [
        ("temp_f,t_raw,acc,level", {}, "channel 'temperature': expected one of temp_f, t_raw, found all"),
        (
            "temperature,vibration,level",
            {"temperature": ColumnSpec("temp")},
            "expected a column 'temp' for channel 'temperature', found temperature, vibration, level",
        ),
        (
            "temperature,vibration,level",
            {"level": ColumnSpec("vibration")},
            "column 'vibration': expected for one channel, wanted for two",
        ),
        (
            "temperature,vibration,level",
            {"pressure": ColumnSpec(unit="K")},
            "channels.pressure: expected one of the package's channels, temperature, vibration, level",
        ),
        (
            "temperature,vibration,level",
            {"temperature": ColumnSpec(unit="bar")},
            "channels.temperature: unit: expected a unit of temperature .* got 'bar', a unit of pressure",
        ),
        (
            "temperature,vibration,level",
            {"level": ColumnSpec(unit="m")},
            "the package states no unit for channel 'level'; expected scale and offset",
        ),
    ],
)
def test_a_mapping_that_does_not_fit_refuses_the_recording(header: str, owner: Columns, message: str) -> None:
    with pytest.raises(ChannelError, match=message):
        read(f"{header}\n1,2,3\n", owner)


def test_a_value_that_leaves_float32_by_its_unit_is_named_with_its_line() -> None:
    text = "temperature,adc,level\n1,2,3\n1,3e38,3\n"
    with pytest.raises(DataError, match=r"a\.csv: line 3: column 'adc': expected a number in the range of"):
        read(text, {"vibration": ColumnSpec("adc", "g")})


def test_a_picture_has_no_columns_to_map() -> None:
    pictures = InputSchema("image", ("grey",), 1.0, ("a", "b"), ImageSpec(4, 4))
    with pytest.raises(ChannelError, match="pictures have no columns"):
        check(pictures, {"grey": ColumnSpec("gray")})
    with pytest.raises(ValueError, match="only for time series"):
        InputSchema("image", ("grey",), 1.0, ("a", "b"), ImageSpec(4, 4), units=("1",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": ("m",)}, "units: expected one for each of 2 channels, got 1"),
        ({"units": ()}, "units: expected one for each of 2 channels, got 0"),
        ({"aliases": (Alias("z", "c"),)}, "aliases: expected one of the channels x, y, got 'z'"),
        (
            {"aliases": (Alias("x", "y"),)},
            "aliases: column 'y': expected once, and not the name of a channel",
        ),
        ({"aliases": (Alias("x", "c"), Alias("y", "c"))}, "aliases: column 'c': expected once"),
        (
            {"aliases": tuple(Alias("x", f"c{index}") for index in range(1025))},
            "aliases: expected at most 1024, got 1025",
        ),
    ],
)
def test_a_schema_that_contradicts_itself_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InputSchema("timeseries", ("x", "y"), 1.0, ("a", "b"), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.0}, "scale: expected a finite number other than 0"),
        ({"scale": float("nan")}, "scale"),
        ({"offset": float("inf")}, "offset"),
        ({"column": "label"}, "'label' is the name of a reserved column"),
    ],
)
def test_a_column_that_makes_no_sense_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ColumnSpec(**arguments)  # type: ignore[arg-type]
    if "column" not in arguments:
        with pytest.raises(ValueError, match=message):
            Alias("x", "c", **arguments)  # type: ignore[arg-type]


def test_an_alias_needs_a_column() -> None:
    with pytest.raises(ValueError, match="column: expected a name for channel 'x'"):
        Alias("x", "")


def test_an_alias_in_a_unit_of_another_quantity_is_found_before_a_device_meets_it() -> None:
    schema = InputSchema(
        "timeseries", ("x",), 1.0, ("a", "b"), units=("Pa",), aliases=(Alias("x", "c", "degC"),)
    )
    with pytest.raises(ChannelError, match="alias 'c' of channel 'x': unit: expected a unit of pressure"):
        check(schema, {})


names = st.text("abcxyz ", min_size=1, max_size=4)


@given(st.lists(names, unique=True, max_size=8), st.dictionaries(st.sampled_from("xyz"), names, max_size=3))
def test_every_channel_gets_a_column_of_its_own_or_the_recording_is_refused(
    columns: list[str], owner: dict[str, str]
) -> None:
    schema = InputSchema("timeseries", ("x", "y", "z"), 1.0, ("a", "b"), aliases=(Alias("x", "a"),))
    try:
        readings = resolve(schema, columns, {name: ColumnSpec(column) for name, column in owner.items()})
    except ChannelError:
        return
    used = [reading.column for reading in readings]
    assert set(used) <= set(columns)
    assert len(set(used)) == 3
    for channel, reading in zip(schema.channels, readings, strict=True):
        expected = {owner[channel]} if channel in owner else {channel, "a"} if channel == "x" else {channel}
        assert reading.column in expected
        assert reading == Reading(reading.column)
