"""An experiment on disk: what goes onto each device, what it is tested on, and every configuration file.

    RUN/fleet/                 the fleet directory, when it was generated
    RUN/package.zip            the model package
    RUN/server/server.toml     configuration and data of the server
    RUN/devices/ID/agent.toml  configuration of an agent
    RUN/devices/ID/spool/      its data: the development part, labels beyond the budget erased
    RUN/devices/ID/state/      its key, store and feature cache
    RUN/broker/, RUN/root-keys/  see simulation/secure.py
    RUN/test/ID.npz            windows or pictures, and labels, that no device ever sees

A bad recording or picture is left out and named with the reason; a device without a good one stays out. All
others go on.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agent.config import KEY_FILE
from protocol.charter import TrainingPolicy
from protocol.fleet import Device, FleetDescription
from runtime.keys import load_or_make
from server.keys import SIGNING_FILE
from simulation.allotment import Budget, allot
from simulation.errors import SimulationError
from simulation.recordings import read_fleet

SERVER_CONFIG = "server.toml"
AGENT_CONFIG = "agent.toml"


@dataclass(frozen=True)
class Settings:
    """What an experiment can vary."""

    rounds: int = 10
    labels_per_class: int | None = 15
    """Labelled windows per class and device; None: all."""
    seed: int = 0
    training: TrainingPolicy = field(default_factory=TrainingPolicy)
    server: Mapping[str, Any] = field(default_factory=dict)
    """More of the server's configuration, as in server.toml; it comes before the fields here."""
    deadline_seconds: float = 300.0
    gather_seconds: float = 120.0
    threads: int = 1


@dataclass(frozen=True)
class Participant:
    """A device of the experiment."""

    device: Device
    directory: Path
    development_windows: int
    labelled_windows: int
    test_windows: int

    @property
    def config(self) -> Path:
        """Its configuration file."""
        return self.directory / AGENT_CONFIG

    @property
    def state(self) -> Path:
        """Its state directory."""
        return self.directory / "state"


@dataclass(frozen=True)
class Experiment:
    """A run directory that is ready to start."""

    directory: Path
    fleet: FleetDescription
    settings: Settings
    participants: tuple[Participant, ...]
    problems: tuple[str, ...]
    """Recordings, pictures and devices that were left out, with the reason."""

    @property
    def federation(self) -> str:
        """Name of the federation."""
        return "simulation"

    @property
    def server_directory(self) -> Path:
        """Configuration and data of the server."""
        return self.directory / "server"

    def test_set(self, device: str) -> tuple[np.ndarray, np.ndarray]:
        """Test windows float32 [n, *input_shape] and labels int64 [n] of a device."""
        with np.load(self.directory / "test" / f"{device}.npz") as arrays:
            return arrays["x"], arrays["y"]

    def test_recordings(self, device: str) -> np.ndarray:
        """Index of the recording that each test window is of, int64 [n]; they stand in the order of time."""
        with np.load(self.directory / "test" / f"{device}.npz") as arrays:
            return np.asarray(arrays["recording"])


def prepare(directory: Path, fleet_directory: Path, settings: Settings) -> Experiment:
    """Write everything but the package; `directory` must not hold another experiment.

    Raises:
        DataError: fleet.toml is malformed.
        SimulationError: no device is left that could take part.
    """
    fleet = read_fleet(fleet_directory)
    for name in ("broker", "server", "devices", "root-keys", "test"):
        shutil.rmtree(directory / name, ignore_errors=True)
        (directory / name).mkdir(parents=True)
    participants: list[Participant] = []
    problems: list[str] = []
    budget = Budget(settings.labels_per_class, settings.seed)
    for device in fleet.devices:
        if device.role != "edge":
            continue
        home = directory / "devices" / device.id
        found = allot(fleet_directory, fleet, device, budget, home / "spool")
        problems += found.problems
        if not found.usable:
            shutil.rmtree(home, ignore_errors=True)
            continue
        np.savez(
            directory / "test" / f"{device.id}.npz",
            x=found.test_x,
            y=found.test_y,
            recording=found.test_recording,
        )
        participants.append(
            Participant(device, home, found.development_windows, found.labelled_windows, len(found.test_y))
        )
    if not participants:
        raise SimulationError(
            "no device with role 'edge' can take part" + "".join(f"\n  {problem}" for problem in problems)
        )
    return Experiment(directory, fleet, settings, tuple(participants), tuple(problems))


def write_configurations(
    experiment: Experiment,
    port: int,
    mqtt_version: str,
    *,
    server_changes: Mapping[str, Any] | None = None,
    device_changes: Mapping[str, Any] | None = None,
) -> None:
    """Write the configuration of server and agents, and make their keys.

    Args:
        experiment: what is run.
        port: of a broker without protection.
        mqtt_version: as in a configuration.
        server_changes: tables laid over server.toml, e.g. those of a secured run.
        device_changes: the same over every agent.toml.
    """
    settings = experiment.settings
    server_key = load_or_make(experiment.server_directory / "data" / SIGNING_FILE)
    broker = {"host": "127.0.0.1", "port": port, "mqtt_version": mqtt_version}
    count = len(experiment.participants)
    server: dict[str, Any] = {
        "federation": experiment.federation,
        "data_directory": "data",
        "enrolment": "closed",
        "broker": broker,
        "round": {
            "minimum_devices": min(2, count),
            "maximum_devices": max(1000, count),
            "deadline_seconds": settings.deadline_seconds,
            "gather_seconds": settings.gather_seconds,
            "rounds": settings.rounds,
        },
        "training": asdict(settings.training),
    }
    server = _merged(_merged(server, settings.server), server_changes or {})
    (experiment.server_directory / SERVER_CONFIG).write_text(_toml(server), "utf-8")
    for participant in experiment.participants:
        load_or_make(participant.state / KEY_FILE)
        device: dict[str, Any] = {
            "device": participant.device.id,
            "federation": experiment.federation,
            "server_key": server_key.public.raw.hex(),
            "state_directory": "state",
            "seed": settings.seed,
            "source": {"directory": "spool"},
            "broker": broker,
            "limits": {"threads": settings.threads},
        }
        participant.config.write_text(_toml(_merged(device, device_changes or {})), "utf-8")


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay tables over tables; what is not a table is replaced."""
    merged = dict(base)
    for name, value in changes.items():
        below = merged.get(name)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[name] = _merged(below, value) if both and below else value
    return merged


def _toml(content: Mapping[str, Any]) -> str:
    """Write numbers, texts, booleans and lists, which JSON and TOML spell alike, then the tables."""
    tables = {name: value for name, value in content.items() if isinstance(value, Mapping)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in content.items() if name not in tables]
    for table, values in tables.items():
        lines += ["", f"[{table}]"]
        lines += [f"{name} = {_value(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{json.dumps(name)} = {_value(item)}' for name, item in value.items())} }}"
    return json.dumps(value)
