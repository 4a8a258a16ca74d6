"""Simulated vibration: the physics that was put in can be measured in what comes out."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from protocol.input_schema import WindowSpec
from simulation.machines import Bearing, Machine, machines
from simulation.recordings import read_device, read_fleet
from simulation.vibration import CLASSES, SAMPLE_RATE_HZ, simulate, sine, write_fleet

ROWS = 40_960


def random(seed: int = 1) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def quiet(machine: Machine) -> Machine:
    """Return the machine on a silent test bench: what is left is the fault."""
    return dataclasses.replace(
        machine, noise=0.01, background=0.0, neighbour=0.0, mesh=0.01, imbalance=0.01, severity=1.0
    )


def amplitude_near(signal: np.ndarray, frequency: float, tolerance: float = 0.045) -> tuple[float, float]:
    """Return (the highest peak near a frequency, the median around it) of the amplitude spectrum."""
    spectrum = np.abs(np.fft.rfft((signal - signal.mean()) * np.hanning(len(signal))))
    frequencies = np.fft.rfftfreq(len(signal), 1 / SAMPLE_RATE_HZ)
    near = np.abs(frequencies / frequency - 1) < tolerance
    around = np.abs(frequencies / frequency - 1) < 0.3
    return float(spectrum[near].max()), float(np.median(spectrum[around]))


def envelope(signal: np.ndarray) -> np.ndarray:
    """Return the magnitude of the analytic signal (Hilbert transform by FFT)."""
    spectrum = np.fft.fft(signal - signal.mean())
    spectrum[len(signal) // 2 :] = 0
    return np.abs(np.fft.ifft(2 * spectrum))


@pytest.mark.parametrize(
    ("condition", "frequency"), [("outer_race", "outer_race"), ("inner_race", "inner_race")]
)
def test_the_envelope_spectrum_of_a_bearing_fault_peaks_at_its_ball_pass_frequency(
    condition: str, frequency: str
) -> None:
    for machine in machines(0)[::4]:
        expected = machine.shaft_hz * getattr(machine.bearing, frequency)
        faulty = envelope(simulate(quiet(machine), condition, ROWS, random())[:, 0])
        healthy = envelope(simulate(quiet(machine), "healthy", ROWS, random())[:, 0])
        peak, median = amplitude_near(faulty, expected)
        assert peak > 5 * median
        assert peak > 10 * amplitude_near(healthy, expected)[0]


def test_imbalance_raises_the_line_at_shaft_speed() -> None:
    machine = machines(0)[0]
    healthy, faulty = (
        amplitude_near(simulate(machine, condition, ROWS, random())[:, 0], machine.shaft_hz)[0]
        for condition in ("healthy", "imbalance")
    )
    assert faulty > 2 * healthy


def test_a_worn_tooth_strikes_once_per_revolution() -> None:
    machine = machines(0)[0]
    peak, median = amplitude_near(
        envelope(simulate(quiet(machine), "gear_tooth", ROWS, random())[:, 0]), machine.shaft_hz
    )
    assert peak > 5 * median


def test_characteristic_frequencies_follow_the_geometry() -> None:
    # SKF 6205, the bearing of the Case Western data: 9 balls of 7.94 mm on a pitch of 39.04 mm.
    bearing = Bearing(9, 7.94 / 39.04)
    assert bearing.outer_race == pytest.approx(3.585, abs=0.001)
    assert bearing.inner_race == pytest.approx(5.415, abs=0.001)
    assert bearing.ball_spin == pytest.approx(2.357, abs=0.001)


def test_the_polynomial_sine_is_a_sine() -> None:
    turns = np.linspace(-3, 3, 10_001)
    assert np.abs(sine(turns) - np.sin(2 * np.pi * turns)).max() < 1e-7


def test_machines_differ_and_relatives_share_their_construction() -> None:
    fleet = machines(0)
    assert len({machine.id for machine in fleet}) == len(fleet) == 14
    assert sum(machine.role == "edge" for machine in fleet) == 8
    assert len({machine.resonance_hz for machine in fleet}) == 14
    assert len({(machine.domain, machine.teeth, machine.bearing) for machine in fleet}) == 6
    edge, source = (
        {machine.domain for machine in fleet if machine.role == role} for role in ("edge", "source")
    )
    assert len(edge) == 3
    assert not edge & source
    assert machines(0) == fleet != machines(1)


def test_an_unknown_condition_is_refused() -> None:
    with pytest.raises(ValueError, match="condition: expected one of healthy"):
        simulate(machines(0)[0], "cracked", 100, random())


def digest(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    content = b"".join(file.relative_to(folder).as_posix().encode() + file.read_bytes() for file in files)
    return hashlib.sha256(content).hexdigest()


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    some = machines(3)[:2]
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        write_fleet(tmp_path / name, seed, some)
    assert digest(tmp_path / "first") == digest(tmp_path / "again") != digest(tmp_path / "other")


def test_the_demo_fleet_is_named_simulated_and_reads_without_errors(tmp_path: Path) -> None:
    written = write_fleet(tmp_path / "fleet", 0)
    fleet = read_fleet(tmp_path / "fleet")
    assert fleet == written
    assert fleet.simulated
    assert "SIMULATED" in fleet.description
    assert fleet.window == WindowSpec(512, 512)
    assert len(fleet.of_role("edge")) == 8
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.csv")) < 30_000_000
    found = read_device(tmp_path / "fleet", fleet, fleet.devices[0])
    assert not found.errors
    assert len(found.recordings) == 3 * len(CLASSES)
    assert {label for recording in found.recordings for label in recording.labels.tolist()} == set(range(5))
