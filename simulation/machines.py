"""The simulated machines of the demo: what each is built of and how its sensor is mounted.

Source machines stand on quiet test benches and in other plants. The edge machines are the pumps, fans and
gearboxes of one noisy plant: alike enough to help one another, and each with its own speed, mounting,
sensor gain and surroundings.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bearing:
    """A rolling bearing's geometry and its characteristic frequencies, in multiples of shaft speed."""

    balls: int
    diameter_ratio: float
    """Ball diameter x cosine of the contact angle / pitch diameter."""

    @property
    def outer_race(self) -> float:
        """BPFO: balls that pass a point of the outer race in one turn of the shaft."""
        return self.balls / 2.0 * (1.0 - self.diameter_ratio)

    @property
    def inner_race(self) -> float:
        """BPFI: balls that pass a point of the inner race in one turn of the shaft."""
        return self.balls / 2.0 * (1.0 + self.diameter_ratio)

    @property
    def ball_spin(self) -> float:
        """BSF: turns of a ball about itself in one turn of the shaft (contact angle 0)."""
        return (1.0 - self.diameter_ratio * self.diameter_ratio) / (2.0 * self.diameter_ratio)


@dataclass(frozen=True)
class Machine:
    """One simulated machine and how its sensor is mounted; amplitudes in m/s2 before the gain."""

    id: str
    domain: str
    role: str
    shaft_hz: float
    teeth: int
    bearing: Bearing
    resonance_hz: float
    damping: float
    """Share of critical damping of the mounting resonance."""
    gain: float
    """Of the sensor and its mounting; 1.0 is exact."""
    load: float
    imbalance: float
    mesh: float
    noise: float
    background: float
    """Random impacts that every machine of the kind has, faulty or not."""
    neighbour: float
    """Tone of another machine nearby."""
    neighbour_hz: float
    severity: float


@dataclass(frozen=True)
class _Line:
    """Machines of one construction."""

    domain: str
    role: str
    machines: int
    shaft_hz: float
    teeth: int
    bearing: Bearing
    resonance_hz: float
    load: float
    imbalance: float
    mesh: float


_LINES = (
    _Line("pump", "edge", 3, 23.9, 19, Bearing(9, 0.26), 1090.0, 1.0, 0.6, 0.45),
    _Line("fan", "edge", 3, 21.4, 21, Bearing(9, 0.28), 1020.0, 0.9, 0.6, 0.45),
    _Line("gearbox", "edge", 2, 28.0, 23, Bearing(9, 0.30), 1210.0, 1.15, 0.6, 0.45),
    _Line("bench", "source", 2, 29.7, 20, Bearing(9, 0.28), 1400.0, 1.0, 0.45, 0.5),
    _Line("compressor", "source", 2, 41.0, 15, Bearing(10, 0.22), 980.0, 1.1, 0.35, 0.45),
    _Line("conveyor", "source", 2, 21.0, 26, Bearing(8, 0.33), 1900.0, 0.9, 0.7, 0.6),
)
# Ranges that machines of a line are drawn from, by role: share of the line's value, then m/s2, then share.
_SPREAD = {"edge": 0.025, "source": 0.065}
_NOISE = {"edge": (0.48, 0.8), "source": (0.3, 0.5)}
_SEVERITY = {"edge": (0.56, 0.84), "source": (0.8, 1.2)}


def machines(seed: int) -> tuple[Machine, ...]:
    """Draw the demo's machines: 8 edge machines of 3 lines, 6 source machines of 3 others.

    Machines of one line share construction (tooth count, bearing) and differ in speed, mounting, gain,
    noise and surroundings.
    """
    random = np.random.Generator(np.random.PCG64([seed, 0xFEE7]))
    return tuple(_draw(line, number, random) for line in _LINES for number in range(1, line.machines + 1))


def between(random: np.random.Generator, low: float, high: float) -> float:
    """Draw a number; one multiplication and one addition, so the same bits everywhere."""
    return low + (high - low) * random.random()


def _draw(line: _Line, number: int, random: np.random.Generator) -> Machine:
    spread = _SPREAD[line.role]
    return Machine(
        id=f"{line.domain}-{number}",
        domain=line.domain,
        role=line.role,
        shaft_hz=line.shaft_hz * between(random, 1 - spread, 1 + spread),
        teeth=line.teeth,
        bearing=line.bearing,
        resonance_hz=line.resonance_hz * between(random, 1 - spread, 1 + spread),
        damping=between(random, 0.03, 0.06),
        gain=between(random, 0.8, 1.25),
        load=line.load,
        imbalance=line.imbalance * between(random, 1 - 3 * spread, 1 + 3 * spread),
        mesh=line.mesh * between(random, 1 - 3 * spread, 1 + 3 * spread),
        noise=between(random, *_NOISE[line.role]),
        background=between(random, 0.1, 0.3),
        neighbour=between(random, 0.0, 0.5),
        neighbour_hz=between(random, 45.0, 320.0),
        severity=between(random, *_SEVERITY[line.role]),
    )
