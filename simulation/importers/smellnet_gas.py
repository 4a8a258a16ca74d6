"""Smells of food: a device is an electronic nose at one food stall, so a fleet of 11.

To be told: which of five kinds of food. A stall has ten foods of its own, two of each kind, and is a domain;
two noses stand at each, with other recordings of the same foods. What a kind smells like at one stall says
little about the next: a random forest on the other four stalls is right on 32 to 65 % of a stall's windows,
one on two recordings of each food at the nose itself on 76 to 98 % of the third. An eleventh nose was
recorded at other times, with nuts, spices and coriander, which the source counts among the herbs.

The foods themselves as classes would make an easy fleet: recordings of one food were made close together, so
that the weather names it (all 12 channels: 96 % of the 50 foods, the gases alone: 85 %). Temperature,
pressure, humidity and what is computed from them are left out; the gases are what a nose has.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.fleet import Device, FleetDescription, Split
from protocol.input_schema import InputSchema, WindowSpec
from protocol.recording import Recording
from simulation.recordings import write_fleet_description, write_recording

DESCRIPTION = (
    "SmellNet (Feng et al. 2025, arXiv 2506.00239), from github.com/MIT-MI/SmellNet. Licence: MIT (Croissant "
    "file of the source; another copy of it says CC BY 4.0). Seven metal-oxide gas sensors, raw counts at "
    "1 Hz; counts below zero that had wrapped round at 2**32 are negative again, cut-off rows left "
    "out, otherwise unchanged. Foods are regrouped into stalls; their kinds are the source's."
)
KINDS = {
    "nut": (
        "almond", "brazil_nut", "cashew", "chestnuts", "hazelnut",
        "peanuts", "pecans", "pili_nut", "pistachios", "walnuts",
    ),
    "spice": (
        "allspice", "chervil", "cinnamon", "cloves", "cumin",
        "ginger", "mustard", "nutmeg", "saffron", "star_anise",
    ),
    "herb": (
        "angelica", "chamomile", "chives", "coriander", "dill",
        "garlic", "mint", "mugwort", "oregano", "turnip",
    ),
    "fruit": (
        "apple", "banana", "kiwi", "lemon", "mandarin_orange",
        "mango", "peach", "pear", "pineapple", "strawberry",
    ),
    "vegetable": (
        "asparagus", "avocado", "broccoli", "brussel_sprouts", "cabbage",
        "cauliflower", "potato", "radish", "sweet_potato", "tomato",
    ),
}  # fmt: skip
GASES = ("NO2", "C2H5OH", "VOC", "CO", "Alcohol", "LPG", "Benzene")
SCHEMA = InputSchema("timeseries", GASES, 1.0, tuple(KINDS))
# Twenty seconds: a smell changes slowly, and a recording of ten minutes has 30 windows that share no row.
WINDOW = WindowSpec(20, 20)
FOODS_PER_STALL = 2
"""Of each kind."""
TAKES_PER_NOSE = 3
SOURCE_STALLS = ("stall0", "stall1")
ONLINE = Device("online", "online", "edge")


def import_fleet(source: Path, target: Path) -> None:
    """Write 11 devices, 7 channels, a ten-minute recording per food and take; two stalls are source.

    Raises:
        FileNotFoundError: smellnet_gas.npz is missing in `source`.
        KeyError, ValueError: it holds other arrays, channels or foods.
    """
    with np.load(source / "smellnet_gas.npz") as data:
        samples, offsets, channels = data["x"], data["offsets"], data["channels"].tolist()
        foods, parts = data["substance"].tolist(), data["split"].tolist()
    if not set(GASES) <= set(channels):
        raise ValueError(f"expected channels {', '.join(GASES)}, found {', '.join(channels)}")
    columns = [channels.index(name) for name in GASES]
    places = {
        food: (label, place) for label, kind in enumerate(KINDS) for place, food in enumerate(KINDS[kind])
    }
    unknown = sorted(set(foods) - set(places))
    if unknown:
        raise ValueError(f"expected the 50 foods of SmellNet, found also {', '.join(unknown)}")
    devices: dict[str, Device] = {}
    takes: dict[tuple[str, bool], int] = {}
    # The test recording of a food is its last take: it stays test data, as the source means it.
    for index in sorted(range(len(foods)), key=lambda index: parts[index] == "offline_testing"):
        label, place = places[foods[index]]
        online = parts[index].startswith("online")
        take = takes[foods[index], online] = takes.get((foods[index], online), -1) + 1
        device = ONLINE if online else _nose(place // FOODS_PER_STALL, take // TAKES_PER_NOSE)
        folder = target / device.id
        if device.id not in devices:
            folder.mkdir(parents=True)
            devices[device.id] = device
        rows = _counts(samples[offsets[index] : offsets[index + 1]], columns)
        # By take, then food: of each kind the last take of both foods is test data.
        name = f"{take}-{foods[index]}.csv"
        write_recording(folder / name, Recording(name, rows, np.full(len(rows), label, np.int64)), SCHEMA)
    ordered = tuple(devices[identity] for identity in sorted(devices))
    fleet = FleetDescription(SCHEMA, WINDOW, ordered, Split("recording", 0.3), "smellnet_gas", DESCRIPTION)
    write_fleet_description(target, fleet)


def _nose(stall: int, nose: int) -> Device:
    domain = f"stall{stall}"
    return Device(f"{domain}-nose{nose}", domain, "source" if domain in SOURCE_STALLS else "edge")


def _counts(samples: NDArray[np.float64], columns: list[int]) -> NDArray[np.float32]:
    """Undo the wrap-around of signed counts; float32 [rows, channels].

    A row of which any of the source's values is missing was cut off, and the others are in wrong columns.
    """
    rows = samples[~np.isnan(samples).any(1)][:, columns]
    return np.where(rows >= 2**31, rows - 2**32, rows).astype(np.float32)
