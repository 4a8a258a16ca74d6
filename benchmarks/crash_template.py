"""What the runs of the crash matrix begin with: recordings, keys and a pushed package, made once and copied.

So every run signs the same bytes, and its updates can be compared with those of any other run.
"""

import contextlib
import re
import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from benchmarks.crash_points import DEVICES, ROUNDS
from protocol.charter import TrainingPolicy
from protocol.fleet import Device, FleetDescription, Split
from protocol.recording import Recording
from simulation import vibration
from simulation.experiment import SERVER_CONFIG, Experiment, Settings, prepare, write_configurations
from simulation.machines import machines
from simulation.processes import Federation
from simulation.recordings import write_fleet_description, write_recording

PACKAGE = Path(str(resources.files("simulation"))) / "demo" / "vibration.zip"


def make_template(directory: Path) -> Experiment:
    """Make an experiment of three machines with short recordings, registered, its package pushed."""
    fleet = _write_fleet(directory / "fleet")
    settings = Settings(
        rounds=ROUNDS,
        labels_per_class=4,
        training=replace(TrainingPolicy(), epochs=2),
        deadline_seconds=3600.0,  # every round waits for every device
        gather_seconds=3600.0,
    )
    experiment = prepare(directory / "template", fleet, settings)
    write_configurations(experiment, 1883, "auto")  # each run writes them anew
    federation = Federation(experiment)
    with contextlib.closing(federation.store):
        federation.register()
        federation.push(PACKAGE)
    return experiment


def copy(template: Experiment, directory: Path, port: int) -> Experiment:
    """Make `directory` anew from a template, for a broker on `port`."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(template.directory, directory)
    participants = tuple(
        replace(participant, directory=directory / participant.directory.relative_to(template.directory))
        for participant in template.participants
    )
    experiment = replace(template, directory=directory, participants=participants)
    write_configurations(experiment, port, "auto")
    config = experiment.server_directory / SERVER_CONFIG
    # A round without all devices would make another release.
    every = f"minimum_devices = {len(participants)}"
    config.write_text(re.sub(r"minimum_devices = \d+", every, config.read_text("utf-8")), "utf-8")
    return experiment


def _write_fleet(directory: Path) -> Path:
    """One short recording per device and condition."""
    chosen = [machine for machine in machines(0) if machine.id in DEVICES]
    fleet = FleetDescription(
        vibration.SCHEMA,
        vibration.WINDOW,
        tuple(Device(machine.id, machine.domain, "edge") for machine in chosen),
        Split("time"),
        "crash matrix",
        vibration.DESCRIPTION,
        simulated=True,
    )
    write_fleet_description(directory, fleet)
    for index, machine in enumerate(chosen):
        folder = directory / machine.id
        folder.mkdir(exist_ok=True)
        for label, condition in enumerate(vibration.CLASSES):
            draw = np.random.Generator(np.random.PCG64([index, label]))
            samples = vibration.simulate(machine, condition, vibration.ROWS, draw)
            labels = np.full(vibration.ROWS, label, np.int64)
            name = f"{condition}.csv"
            write_recording(folder / name, Recording(name, samples, labels), vibration.SCHEMA)
    return directory
