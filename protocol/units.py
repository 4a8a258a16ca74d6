"""Units of sensor channels, and the conversion between two units of one quantity.

A short table of exact factors: what sensors at machines report, in the spelling of SenML (RFC 8428, RFC 8798)
where that has one. `g` is standard gravity, as on every accelerometer's data sheet. What is not linear
(decibels, thermistors) does not belong here. Spelling is forgiving where nothing can be confused: `m/s^2`,
`m/s²` and `m/s2` are one unit, `MPa` and `mPa` are two.
"""

import math
from collections.abc import Mapping
from fractions import Fraction

_PI = Fraction(math.pi)
_QUANTITIES: Mapping[str, Mapping[str, str | Fraction]] = {
    "acceleration": {"m/s2": "1", "mm/s2": "1/1000", "g": "9.80665", "mg": "0.00980665", "ft/s2": "0.3048"},
    "velocity": {
        "m/s": "1", "mm/s": "1/1000", "km/h": "10/36", "in/s": "0.0254", "ft/s": "0.3048", "mph": "0.44704",
    },
    "length": {
        "m": "1", "mm": "1/1000", "cm": "1/100", "km": "1000", "um": "1/1000000", "in": "0.0254",
        "mil": "0.0000254", "ft": "0.3048",
    },
    "angular velocity": {
        "rad/s": "1", "deg/s": _PI / 180, "dps": _PI / 180, "rpm": _PI / 30, "1/min": _PI / 30,
    },
    "angle": {"rad": "1", "deg": _PI / 180},
    "pressure": {
        "Pa": "1", "hPa": "100", "mbar": "100", "kPa": "1000", "MPa": "1000000", "bar": "100000",
        "psi": "6894.757293168361", "atm": "101325", "mmHg": "133.322387415",
    },
    "flow": {
        "m3/s": "1", "m3/h": "1/3600", "l/s": "1/1000", "l/min": "1/60000", "l/h": "1/3600000",
        "gpm": "0.0000630901964",
    },
    "magnetic flux density": {"T": "1", "mT": "1/1000", "uT": "1/1000000", "G": "1/10000"},
    "voltage": {"V": "1", "mV": "1/1000", "uV": "1/1000000", "kV": "1000"},
    "current": {"A": "1", "mA": "1/1000", "uA": "1/1000000"},
    "resistance": {"Ohm": "1", "kOhm": "1000", "MOhm": "1000000"},
    "power": {"W": "1", "mW": "1/1000", "kW": "1000", "MW": "1000000"},
    "energy": {"J": "1", "kJ": "1000", "Wh": "3600", "kWh": "3600000"},
    "frequency": {"Hz": "1", "kHz": "1000", "MHz": "1000000"},
    "force": {"N": "1", "kN": "1000", "lbf": "4.4482216152605"},
    "torque": {"Nm": "1", "mNm": "1/1000", "lbfft": "1.3558179483314004"},
    "time": {"s": "1", "ms": "1/1000", "us": "1/1000000", "min": "60", "h": "3600"},
    "ratio": {"1": "1", "%": "1/100", "%RH": "1/100", "ppm": "1/1000000", "ppb": "1/1000000000"},
}  # fmt: skip
_TEMPERATURES: Mapping[str, tuple[Fraction, Fraction]] = {
    "K": (Fraction(1), Fraction(0)),
    "degC": (Fraction(1), Fraction("273.15")),
    "Cel": (Fraction(1), Fraction("273.15")),
    "degF": (Fraction(5, 9), Fraction("459.67") * 5 / 9),
}
_SPELLINGS = str.maketrans({"²": "2", "³": "3", "°": "deg", "µ": "u", "μ": "u", "Ω": "Ohm", "^": "", "·": "",
                            "*": "", " ": ""})  # fmt: skip

_UNITS: dict[str, tuple[str, Fraction, Fraction]] = {
    unit: (quantity, Fraction(factor), Fraction(0))
    for quantity, factors in _QUANTITIES.items()
    for unit, factor in factors.items()
} | {unit: ("temperature", *numbers) for unit, numbers in _TEMPERATURES.items()}


def conversion(given: str, wanted: str) -> tuple[float, float]:
    """Find how values in one unit become values in another: times the first number, plus the second.

    A unit that is in no table is equal to itself only.

    Raises:
        ValueError: a unit is unknown, or the two are of different quantities; says what would do.
    """
    source, target = _plain(given), _plain(wanted)
    if source == target:
        return 1.0, 0.0
    if target not in _UNITS:
        raise ValueError(f"expected {wanted!r}, which this version cannot convert to, got {given!r}")
    quantity, scale, offset = _UNITS[target]
    found = _UNITS.get(source)
    if found is None or found[0] != quantity:
        known = ", ".join(unit for unit, entry in _UNITS.items() if entry[0] == quantity)
        what = "an unknown unit" if found is None else f"a unit of {found[0]}"
        raise ValueError(f"expected a unit of {quantity} ({known}), got {given[:40]!r}, {what}")
    return float(found[1] / scale), float((found[2] - offset) / scale)


def convertible(wanted: str) -> tuple[str, ...]:
    """Units that can be converted to `wanted`, itself included; nothing where it is in no table."""
    entry = _UNITS.get(_plain(wanted))
    return tuple(unit for unit, other in _UNITS.items() if entry and other[0] == entry[0])


def _plain(unit: str) -> str:
    return unit.translate(_SPELLINGS)
