"""Simulated machine vibration: a fleet of rotating machines with faults, made from physics, not sensors.

For demonstrations and tests where no real data are at hand; the fleet says `simulated = true` and every
report repeats it. Per machine one accelerometer and five conditions:

* shaft: 1x and 2x shaft speed; `imbalance` raises the 1x part (force ~ speed squared);
* gear mesh: tooth count x shaft speed and its harmonic, with sidebands at shaft speed; `gear_tooth` adds one
  impact per revolution and a dip of the mesh amplitude at the worn tooth;
* rolling bearing: `outer_race` and `inner_race` are impacts at the ball pass frequencies BPFO and BPFI,
  with random slip from impact to impact; inner-race impacts are amplitude-modulated as the defect turns
  through the load zone. Impacts excite the mounting resonance, a second-order resonator.

Formulas and signal model: Randall and Antoni (2011), "Rolling element bearing diagnostics - a tutorial",
Mechanical Systems and Signal Processing 25(2).

A seed gives the same bytes on every machine: only integer-seeded uniform draws and elementwise + - * / and
rounding are used (no library sine, exponential or sum, whose last bits differ between processors).
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.fleet import Device, FleetDescription, Split
from protocol.input_schema import InputSchema, WindowSpec
from protocol.recording import Recording
from simulation.machines import Machine, between, machines
from simulation.recordings import write_fleet_description, write_recording

SAMPLE_RATE_HZ = 5120.0
CLASSES = ("healthy", "imbalance", "outer_race", "inner_race", "gear_tooth")
SCHEMA = InputSchema("timeseries", ("acceleration",), SAMPLE_RATE_HZ, CLASSES)
WINDOW = WindowSpec(512, 512)
RECORDINGS_PER_CLASS = 3
# 15 windows a recording; the last fifth, 3 windows, is the test part and starts on the window grid.
ROWS = 15 * WINDOW.length
DESCRIPTION = (
    "SIMULATED vibration of rotating machines (m/s2); made by Graftwork from a physical model, no sensor "
    "involved: results say how the software behaves, not how well it would do on a real machine."
)

Signal = NDArray[np.float64]


def write_fleet(directory: Path, seed: int, fleet_of: tuple[Machine, ...] | None = None) -> FleetDescription:
    """Write a fleet directory of simulated machines.

    Args:
        directory: made where missing; files of the same names are replaced.
        seed: decides the machines and every recording.
        fleet_of: the machines; by default 8 edge machines of 3 domains and 6 source machines of 3 others.
    """
    chosen = machines(seed) if fleet_of is None else fleet_of
    devices = tuple(Device(machine.id, machine.domain, machine.role) for machine in chosen)
    fleet = FleetDescription(
        SCHEMA, WINDOW, devices, Split("time"), "machine vibration", DESCRIPTION, simulated=True
    )
    write_fleet_description(directory, fleet)
    for index, machine in enumerate(chosen):
        folder = directory / machine.id
        folder.mkdir(exist_ok=True)
        for label, condition in enumerate(CLASSES):
            for take in range(RECORDINGS_PER_CLASS):
                random = np.random.Generator(np.random.PCG64([seed, index, label, take]))
                samples = simulate(machine, condition, ROWS, random)
                name = f"{condition}-{take}.csv"
                recording = Recording(name, samples, np.full(ROWS, label, np.int64))
                write_recording(folder / name, recording, SCHEMA)
    return fleet


def simulate(machine: Machine, condition: str, rows: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Simulate one recording: acceleration in m/s2, float32 [rows, 1], in steps of 0.001 m/s2.

    Every recording has its own speed, load and severity within the machine's range.

    Raises:
        ValueError: condition is not one of CLASSES.
    """
    if condition not in CLASSES:
        raise ValueError(f"condition: expected one of {', '.join(CLASSES)}, got {condition!r}")
    speed_hz = machine.shaft_hz * between(random, 0.97, 1.03)
    load = machine.load * between(random, 0.85, 1.15)
    severity = machine.severity * between(random, 0.6, 1.4)
    turns = _shaft_turns(speed_hz, rows, random)
    force = (speed_hz / 30.0) * (speed_hz / 30.0)
    imbalance = machine.imbalance * (1.0 + (2.5 * severity if condition == "imbalance" else 0.0))
    signal = force * imbalance * sine(turns + random.random())
    signal += 0.4 * force * machine.imbalance * sine(2.0 * turns + random.random())
    worn = 0.6 * severity if condition == "gear_tooth" else 0.0
    signal += load * _gear_mesh(machine, turns, worn)
    impacts = machine.background * _impacts(turns, 9.7, 0.3, random)
    if condition == "outer_race":
        impacts += 4.0 * severity * load * _impacts(turns, machine.bearing.outer_race, 0.012, random)
    elif condition == "inner_race":
        through_load_zone = 0.55 + 0.45 * sine(turns + random.random())
        impacts += (
            5.0
            * severity
            * load
            * _impacts(turns, machine.bearing.inner_race, 0.012, random)
            * through_load_zone
        )
    elif condition == "gear_tooth":
        impacts += 7.0 * severity * load * _impacts(turns, 1.0, 0.003, random)
    signal += _resonate(impacts + 0.25 * machine.noise * _noise(rows, random), machine)
    signal += machine.noise * _noise(rows, random)
    seconds = np.arange(rows) / SAMPLE_RATE_HZ
    signal += machine.neighbour * sine(machine.neighbour_hz * seconds + random.random())
    drift = 0.3 * machine.noise * sine(seconds * between(random, 0.1, 0.6) + random.random())
    # A real converter has steps as well; and text of few digits keeps the files small.
    steps = np.rint((machine.gain * (signal + drift)) * 1000.0)
    return (steps / 1000.0).astype(np.float32)[:, np.newaxis]


def _shaft_turns(speed_hz: float, rows: int, random: np.random.Generator) -> Signal:
    """Return the shaft's angle in turns at every row; the speed wanders by half a percent."""
    seconds = np.arange(rows) / SAMPLE_RATE_HZ
    wander = 1.0 + 0.005 * sine(seconds * between(random, 0.5, 2.0) + random.random())
    turns: Signal = np.cumsum(wander * (speed_hz / SAMPLE_RATE_HZ)) + random.random()
    return turns


def _gear_mesh(machine: Machine, turns: Signal, worn: float) -> Signal:
    sidebands = 1.0 + 0.3 * sine(turns)
    # A pulse once per revolution, as wide as about one tooth in eight.
    at_tooth = np.maximum(sine(turns) - 0.7, 0.0) / 0.3
    mesh = sine(machine.teeth * turns) + 0.35 * sine(2.0 * machine.teeth * turns + 0.2)
    return machine.mesh * mesh * sidebands * (1.0 - worn * at_tooth)


def _impacts(turns: Signal, per_turn: float, slip: float, random: np.random.Generator) -> Signal:
    """Return impulses of about unit height, `per_turn` to a turn, each spacing varied by the share `slip`."""
    count = int((turns[-1] - turns[0]) * per_turn * (1.0 + slip)) + 2
    spacing = (1.0 + slip * _noise(count, random)) / per_turn
    heights = 1.0 + 0.25 * _noise(count, random)
    angles = turns[0] + np.cumsum(np.maximum(spacing, 0.0))
    inside = angles < turns[-1]
    angles, heights = angles[inside], heights[inside]
    row = np.searchsorted(turns, angles, side="right") - 1
    late = (angles - turns[row]) / (turns[row + 1] - turns[row])
    # An impulse between two rows goes to both, so that timing is finer than the sample period.
    impulses = np.zeros(len(turns))
    np.add.at(impulses, row, heights * (1.0 - late))
    np.add.at(impulses, row + 1, heights * late)
    return impulses


def _resonate(force: Signal, machine: Machine) -> Signal:
    """Pass a force through the mounting resonance: a decaying sine as impulse response."""
    decay = 1.0 - 2.0 * 3.141592653589793 * machine.damping * machine.resonance_hz / SAMPLE_RATE_HZ
    taps = np.arange(min(len(force), 160), dtype=np.float64)
    response = np.multiply.accumulate(np.full(len(taps), decay)) * sine(
        (taps + 1) * (machine.resonance_hz / SAMPLE_RATE_HZ)
    )
    result = np.zeros(len(force))
    for delay, weight in enumerate(response.tolist()):
        result[delay:] += weight * force[: len(force) - delay]
    return result


def sine(turns: Signal) -> Signal:
    """Return the sine of an angle in turns, by a polynomial that gives the same bits everywhere.

    Odd Taylor terms to the 11th power on a quarter turn either side; the error is below 1e-7.
    """
    fraction = turns - np.rint(turns)
    # sin(x) = sin(pi - x) folds half a turn into a quarter.
    folded = np.where(np.abs(fraction) > 0.25, np.copysign(0.5, fraction) - fraction, fraction)
    angle = folded * 6.283185307179586
    square = angle * angle
    series = 1.0 - square / 110.0
    for divisor in (72.0, 42.0, 20.0, 6.0):
        series = 1.0 - square / divisor * series
    return angle * series


def _noise(count: int, random: np.random.Generator) -> Signal:
    """Return nearly normal noise of variance 1: the sum of four uniform draws."""
    total = random.random(count)
    for _ in range(3):
        total = total + random.random(count)
    return (total - 2.0) * 1.7320508075688772
