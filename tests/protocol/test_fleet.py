"""Fleet descriptions: what fleet.toml may say, and how each mistake is named."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import DataError
from protocol.fleet import Device, FleetDescription, Split, dump, parse
from protocol.input_schema import NORMALISATIONS, ONE_PICTURE, Alias, ImageSpec, InputSchema, WindowSpec
from protocol.records import from_numbered, to_numbered

TEXT = """
name = "pumps"

[schema]
kind = "timeseries"
channels = ["x"]
sample_rate_hz = 100
classes = ["idle", "on"]

[window]
length = 64
stride = 32

[[device]]
id = "pump-1"
domain = "pump"
role = "edge"

[[device]]
id = "bench.1"
domain = "bench"
role = "source"
"""


def test_a_fleet_is_read_with_defaults() -> None:
    fleet = parse(TEXT)
    assert fleet.name == "pumps"
    assert fleet.schema.sample_rate_hz == 100.0
    assert fleet.split == Split("time", 0.2)
    assert not fleet.simulated
    assert [device.id for device in fleet.of_role("source")] == ["bench.1"]


@pytest.mark.parametrize(
    ("old", "new", "expectation"),
    [
        ('"bench.1"', '"pump-1"', "devices[1]: id 'pump-1': expected once"),
        ('"source"', '"server"', "devices[1]: role of 'bench.1': expected one of source, edge, got 'server'"),
        ('"bench.1"', '"bench/1"', "devices[1]: id: expected 1 to 64 of the characters"),
        ('"bench.1"', '"+"', "devices[1]: id: expected"),
        ('"bench.1"', '".."', "devices[1]: id: expected"),
        ('"bench.1"', '"bänk"', "devices[1]: id: expected"),
        ('"bench.1"', '""', "devices[1]: id: expected"),
        ('"bench.1"', f'"{"a" * 65}"', "devices[1]: id: expected 1 to 64"),
        ('domain = "bench"', 'domain = ""', "devices[1]: domain of 'bench.1': expected a name"),
        ('domain = "bench"', "", "devices[1].domain: missing"),
        ('role = "source"', 'role = "source"\nrank = 1', "devices[1].rank: unknown key"),
        ("length = 64", 'length = "64"', "window.length: expected an integer, got str"),
        ("stride = 32", "stride = 0", "window: stride: expected 1 to 1,000,000"),
        ('channels = ["x"]', 'channels = ["label"]', "schema: channels: 'label' is the name of a reserved"),
        (
            "[window]",
            'normalisation = "none"\n[window]',
            "normalisation: expected one of device, device-mean",
        ),
        ("[window]", '[split]\nby = "shuffle"\n[window]', "split: by: expected one of time, recording"),
        ("[window]", "[split]\ntest = 1.0\n[window]", "split: test: expected a share"),
        ("[window]", "[split]\nvalidation = 0.5\n[window]", "split.validation: unknown key"),
        ("[window]", "[windows]", "windows: unknown key"),
        ("[window]", "[window", "expected TOML"),
        ('name = "pumps"', "devices = []", "devices: unknown key"),
        ('name = "pumps"', 'anomalies = ["leak"]', "anomalies: expected some of the classes"),
    ],
)
def test_a_mistake_names_file_entry_and_expectation(old: str, new: str, expectation: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(TEXT.replace(old, new), "my/fleet.toml")
    assert str(caught.value).startswith("my/fleet.toml: ")
    assert expectation in str(caught.value)


def test_a_fleet_without_devices_is_refused() -> None:
    with pytest.raises(DataError, match=r"fleet.toml: devices: expected at least one"):
        parse(TEXT[: TEXT.index("[[device]]")])


IMAGES = """
[schema]
kind = "image"
channels = ["grey"]
classes = ["0", "1"]

[image]
height = 32
width = 20

[[device]]
id = "meter"
domain = "water"
role = "edge"
"""


def test_a_fleet_of_pictures_needs_no_rate_and_no_window() -> None:
    fleet = parse(IMAGES)
    assert fleet.schema.image == ImageSpec(32, 20)
    assert fleet.schema.input_shape(fleet.window) == (1, 32, 20)
    assert fleet.window == ONE_PICTURE
    assert parse(dump(fleet)) == fleet


@pytest.mark.parametrize(
    ("old", "new", "expectation"),
    [
        ("width = 20", "", "image.width: missing; expected an integer"),
        ("width = 20", "width = 0", "image: width: expected 1 to 4,096 pixels, got 0"),
        ("width = 20", "width = 20\ndepth = 3", "image.depth: unknown key; expected one of height, width"),
        ("[image]\nheight = 32\nwidth = 20", "", "schema: image: missing; kind 'image' needs"),
        ("[image]", "[window]\nlength = 1\nstride = 1\n[image]", "window: only for time series"),
        ('"grey"]', '"grey"]\nnormalisation = "device"', "normalisation: expected none for pictures"),
        ("[image]", "[schema.image]", "expected height and width in a table [image]"),
        ('["grey"]', '["red"]', "channels: expected ['grey'] or ['red', 'green', 'blue'] for pictures"),
        ('"1"]', '"../1"]', "classes: expected names that can be folders"),
        ('"1"]', '"unlabelled"]', "classes: expected names that can be folders"),
        ('"1"]', '".1"]', "classes: expected names that can be folders"),
        ("[image]", '[split]\nby = "recording"\n[image]', "split: by: expected 'time' for pictures"),
        ('"image"', '"picture"', "image: unknown key"),
    ],
)
def test_a_mistake_in_a_fleet_of_pictures_is_named(old: str, new: str, expectation: str) -> None:
    assert old in IMAGES
    with pytest.raises(DataError) as caught:
        parse(IMAGES.replace(old, new), "my/fleet.toml")
    assert str(caught.value).startswith("my/fleet.toml: ")
    assert expectation in str(caught.value)


def test_the_schema_of_time_series_travels_as_it_did_before_there_were_pictures() -> None:
    series, pictures = parse(TEXT).schema, parse(IMAGES).schema
    assert list(to_numbered(series)) == [1, 2, 3, 4]
    assert from_numbered(InputSchema, to_numbered(pictures)) == pictures


SENSORS = """
[[schema.aliases]]
channel = "CHANNEL"
column = "temp_f"
unit = "degF"
"""


def test_units_and_aliases_travel_behind_what_old_devices_know() -> None:
    schema = replace(parse(TEXT).schema, units=None)
    full = replace(
        schema,
        units=tuple("degC" for _ in schema.channels),
        aliases=(Alias(schema.channels[0], "temp_f", "degF"),),
    )
    numbered = to_numbered(full)
    assert from_numbered(InputSchema, numbered) == full
    old = {number: value for number, value in numbered.items() if number <= 5}
    assert from_numbered(InputSchema, old) == schema


def test_an_alias_in_an_impossible_unit_is_named() -> None:
    schema = parse(TEXT).schema
    text = TEXT.replace("[window]", SENSORS.replace("CHANNEL", schema.channels[0]) + "[window]")
    with pytest.raises(
        DataError, match=r"my/fleet\.toml: schema: alias 'temp_f' .* the package states no unit"
    ):
        parse(text, "my/fleet.toml")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)
ids = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}", fullmatch=True)
columns = names.filter(lambda name: name not in ("label", "timestamp"))


@st.composite
def schemas(draw: st.DrawFn) -> InputSchema:
    channels = draw(st.lists(columns, min_size=1, unique=True))
    schema = InputSchema(
        "timeseries",
        tuple(channels),
        draw(st.floats(1e-8, 1e8)),
        tuple(draw(st.lists(names, min_size=2, unique=True))),
    )
    others = draw(
        st.none() | st.lists(columns.filter(lambda name: name not in channels), unique=True, min_size=1)
    )
    numbers = st.floats(0.001, 1000), st.floats(-1000, 1000)
    aliases = others and tuple(
        Alias(draw(st.sampled_from(channels)), column, "", *map(draw, numbers)) for column in others
    )
    units = draw(st.none() | st.lists(texts, min_size=len(channels), max_size=len(channels)).map(tuple))
    normalisation = draw(st.sampled_from([None, *NORMALISATIONS]))
    return replace(schema, units=units, aliases=aliases, normalisation=normalisation)


descriptions = st.builds(
    FleetDescription,
    schemas(),
    st.builds(WindowSpec, st.integers(1, 1_000_000), st.integers(1, 1_000_000)),
    st.lists(
        st.builds(Device, ids, names, st.sampled_from(["source", "edge"])),
        min_size=1,
        unique_by=lambda device: device.id,
    ).map(tuple),
    st.builds(Split, st.sampled_from(["time", "recording"]), st.floats(0, 0.99)),
    texts,
    texts,
    st.booleans(),
)


def test_the_classes_that_are_anomalies_are_read_and_written() -> None:
    fleet = parse(TEXT)
    found = replace(fleet, anomalies=fleet.schema.classes[1:])
    assert parse(dump(found)) == found
    with pytest.raises(ValueError, match="expected some of the classes, not all"):
        replace(fleet, anomalies=fleet.schema.classes)


@given(descriptions)
def test_what_is_written_is_read_back_equal(fleet: FleetDescription) -> None:
    assert parse(dump(fleet)) == fleet
