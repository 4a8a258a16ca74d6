"""Units: known fixed points, round trips between all units of a quantity, and what cannot be converted."""

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.units import conversion, convertible

FIRST_UNITS = (
    "m/s2",
    "m/s",
    "m",
    "rad/s",
    "rad",
    "Pa",
    "m3/s",
    "T",
    "V",
    "A",
    "Ohm",
    "W",
    "J",
    "Hz",
    "N",
    "Nm",
)
PAIRS = [
    pair for first in (*FIRST_UNITS, "s", "1", "K") for pair in itertools.combinations(convertible(first), 2)
]


@pytest.mark.parametrize(
    ("given_unit", "wanted", "value", "expected"),
    [
        ("g", "m/s2", 1.0, 9.80665),
        ("mg", "g", 250.0, 0.25),
        ("m/s^2", "m/s²", 3.5, 3.5),
        ("degF", "degC", -40.0, -40.0),
        ("degF", "degC", 212.0, 100.0),
        ("°C", "K", 20.0, 293.15),
        ("Cel", "degF", 37.0, 98.6),
        ("psi", "bar", 100.0, 6.894757293168361),
        ("mbar", "hPa", 1013.25, 1013.25),
        ("l/min", "m³/h", 1000.0, 60.0),
        ("rpm", "rad/s", 60.0, 6.283185307179586),
        ("dps", "deg/s", 12.0, 12.0),
        ("km/h", "m/s", 36.0, 10.0),
        ("%RH", "1", 45.0, 0.45),
        ("µT", "uT", 48.0, 48.0),
        ("kΩ", "Ohm", 4.7, 4700.0),
        ("NTU", "NTU", 8.0, 8.0),
    ],
)
def test_a_known_value_is_converted(given_unit: str, wanted: str, value: float, expected: float) -> None:
    scale, offset = conversion(given_unit, wanted)
    assert scale * value + offset == pytest.approx(expected, rel=1e-14, abs=1e-12)


def test_fahrenheit_is_exact() -> None:
    assert conversion("degC", "degF") == (1.8, 32.0)


@given(st.sampled_from(PAIRS), st.floats(-1e6, 1e6))
def test_there_and_back_gives_the_same_value(pair: tuple[str, str], value: float) -> None:
    there, back = conversion(*pair), conversion(*pair[::-1])
    between = value * there[0] + there[1]
    assert between * back[0] + back[1] == pytest.approx(value, rel=1e-12, abs=1e-9 * (1 + abs(back[1])))


def test_every_unit_belongs_to_a_quantity_that_the_round_trip_covers() -> None:
    covered = {unit for pair in PAIRS for unit in pair}
    assert {"mph", "mmHg", "gpm", "G", "kWh", "lbfft", "ppb", "degF", "mil", "1/min"} <= covered


def test_the_manual_lists_every_unit_and_no_other() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
    table = manual.partition("| quantity | units |")[2].partition("\n\n")[0]
    assert set(re.findall("`([^`]+)`", table)) == {unit for pair in PAIRS for unit in pair}


@pytest.mark.parametrize(
    ("given_unit", "wanted", "message"),
    [
        ("bar", "degC", r"unit of temperature \(K, degC, Cel, degF\), got 'bar', a unit of pressure"),
        ("furlong", "m", "unit of length .* got 'furlong', an unknown unit"),
        ("mpa", "Pa", "got 'mpa', an unknown unit"),
        ("V", "NTU", "expected 'NTU', which this version cannot convert to, got 'V'"),
        ("", "m", "an unknown unit"),
    ],
)
def test_what_cannot_be_converted_is_refused(given_unit: str, wanted: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conversion(given_unit, wanted)


def test_a_unit_that_is_in_no_table_has_none_beside_it() -> None:
    assert convertible("NTU") == ()
