"""A federation on real recordings inside one process, tested after every release: for comparing policies.

Server, agents, recordings and training are the real ones; broker and clock are simulated. So the same run has
the same bits each time, days pass in seconds, and two runs differ in nothing but the policy that is compared.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agent import ensemble
from agent.device import MakeEngine, configured_engine
from agent.ensemble import Ensemble
from agent.features import FeatureCache
from agent.installation import Installation
from agent.onnxruntime_engine import OnnxruntimeEngine
from agent.store import Store as AgentStore
from protocol.messages import Update, peek
from protocol.package import unpack
from server.round import RoundPolicy
from server.store import Store
from simulation import importers
from simulation.experiment import Experiment, Settings, prepare
from simulation.in_process import InProcessFederation

FLEETS = ("gearbox_vibration", "sp_sw_har", "skab_valve")
ADAPTERS = {"local": "local_full", "release": "global", "personal": "personal"}
"""By figure, the adapter in a device's store."""
FIGURES = ("fleet", *ADAPTERS)
MAX_STEPS = 200_000


@dataclass(frozen=True)
class Task:
    """What all runs of a comparison have in common."""

    fleet: str
    directory: Path
    """Holds `fleet/` and `package-SEED.zip`."""
    seed: int
    labels: int
    rounds: int
    """0: as many as there is time for."""


@dataclass
class Outcome:
    """What a run came to."""

    accuracy: dict[str, list[float]] = field(default_factory=dict)
    """After each release, mean over devices: of training alone on all labels ("local"), what the device uses
    ("fleet"), the release as it is, and what is trained from it and sent ("personal")."""
    body_bits: float = 0.0
    """Bits per parameter of the updates' coded bodies, mean."""
    message_bits: float = 0.0
    """The same with envelope and header, without the topic."""
    updates: int = 0
    bytes_up: float = 0.0
    """Per device: topics and payloads."""

    def mean_accuracy(self, name: str, last: int) -> float:
        """Mean over the last releases."""
        return float(np.mean(self.accuracy[name][-last:]))


def make_fleet(
    directory: Path, fleet: str, data: Path, seeds: list[int], normalisation: str = "none"
) -> None:
    """Import a data set and pre-train a package for each seed; what is there already is kept."""
    if not (directory / "fleet").exists():
        directory.mkdir(parents=True, exist_ok=True)
        importers.import_dataset(fleet, data, directory / "fleet")
    for seed in seeds:
        package = directory / f"package-{seed}.zip"
        if not package.exists():
            command = [sys.executable, "-m", "models", "pretrain", str(directory / "fleet")]
            command += ["--output", str(package), "--seed", str(seed), "--normalisation", normalisation]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                sys.exit(f"{' '.join(command)} failed:\n{result.stderr}")


def data_directory(text: str | None) -> Path:
    """Where the data sets are; ends the program where they are not."""
    directory = Path(text or os.environ.get("GRAFTWORK_DATA", "data"))
    if not directory.is_dir():
        sys.exit(f"{directory}: no such folder; name the data sets' folder with --data or $GRAFTWORK_DATA")
    return directory


def rehearse(
    task: Task,
    server: Mapping[str, Any],
    *,
    pause_seconds: float = 0.0,
    step_seconds: float = 1.0,
    duration_seconds: float = 0.0,
    make_engine: MakeEngine = configured_engine,
    after_release: Callable[[InProcessFederation], None] = lambda _: None,
) -> Outcome:
    """Run a federation to its last round, or for a time.

    Args:
        task: fleet, package and labels.
        server: fields of the server's configuration that are compared.
        pause_seconds: simulated time between two rounds.
        step_seconds: simulated time between two looks at the clock.
        duration_seconds: simulated time after which it ends; 0: with its last round.
        make_engine: of the devices.
        after_release: called once every device holds a release.
    """
    run = task.directory / "run"
    shutil.rmtree(run, ignore_errors=True)
    settings = Settings(rounds=task.rounds, labels_per_class=task.labels, seed=task.seed)
    experiment = prepare(run, task.directory / "fleet", settings)
    package = (task.directory / f"package-{task.seed}.zip").read_bytes()
    devices = [participant.device.id for participant in experiment.participants]
    policy = RoundPolicy(
        minimum_devices=2, gather_seconds=10.0, pause_seconds=pause_seconds, rounds=task.rounds
    )
    outcome = Outcome()
    with InProcessFederation(
        run / "programs",
        package,
        {device: run / "devices" / device / "spool" for device in devices},
        policy,
        server=server,
        training_seed=task.seed,
        make_engine=make_engine,
    ) as federation:
        tests: _Tests | None = None
        end = federation.clock() + duration_seconds
        for _ in range(MAX_STEPS):
            federation.step(step_seconds)
            number = _release_of_all(federation)
            if number >= len(outcome.accuracy.get("fleet", ())):
                tests = tests or _Tests(experiment, run / "programs" / devices[0] / "packages", federation)
                for name, accuracy in tests.accuracy(federation).items():
                    outcome.accuracy.setdefault(name, []).append(accuracy)
                after_release(federation)
            if federation.clock() >= end if duration_seconds else federation.finished:
                break
        else:
            sys.exit(f"{task.fleet}: not through after {MAX_STEPS} steps")
        _count_bytes(outcome, federation, unpack(package, None).manifest.parameters, devices)
    shutil.rmtree(run)
    return outcome


def _release_of_all(federation: InProcessFederation) -> int:
    """The newest release, if every device holds it; otherwise -1."""
    newest = _store(federation).newest_release()
    held = {store.state().release for store in federation.agent_stores.values()}
    return newest.number if newest and held == {newest.number} else -1


class _Tests:
    """Features of every device's test windows."""

    def __init__(self, experiment: Experiment, packages: Path, federation: InProcessFederation) -> None:
        installation = Installation(packages, ())
        package = next(iter(federation.agent_stores.values())).state().package
        manifest = installation.manifest(package)
        self._engine = OnnxruntimeEngine(installation.path(package), manifest)
        self._features = {}
        for participant in experiment.participants:
            device = participant.device.id
            windows, labels = experiment.test_set(device)
            # By the statistics that the device has, where its package wants windows normalised.
            features = FeatureCache(packages.parents[1] / device / "features", manifest, limit_bytes=1 << 28)
            self._features[device] = self._engine.features(features.prepared(windows)), labels

    def accuracy(self, federation: InProcessFederation) -> dict[str, float]:
        """Mean over the devices, by figure."""
        found: dict[str, list[float]] = {figure: [] for figure in FIGURES}
        for device, (features, labels) in self._features.items():
            for figure in FIGURES:
                tried = self._ensemble(federation.agent_stores[device], device, figure)
                predicted = tried.logits(self._engine, features).argmax(1)
                found[figure].append(float(np.mean(predicted == labels)))
        return {figure: float(np.mean(values)) for figure, values in found.items()}

    def _ensemble(self, store: AgentStore, device: str, figure: str) -> Ensemble:
        if figure == "fleet":
            in_use = ensemble.in_use(store)
        else:
            adapter = store.adapter(ADAPTERS[figure])
            in_use = None if adapter is None else ensemble.single(adapter)
        if in_use is None:
            sys.exit(f"{device}: no adapter for the figure {figure!r}")
        return in_use


def _count_bytes(
    outcome: Outcome, federation: InProcessFederation, parameters: int, devices: list[str]
) -> None:
    store = _store(federation)
    envelopes = [
        update.envelope for row in store.rounds() for update in store.journalled_updates(row["number"])
    ]
    outcome.updates = len(envelopes)
    if envelopes:
        bodies = [len(peek(Update, envelope).body) for envelope in envelopes]
        outcome.body_bits = 8 * float(np.mean(bodies)) / parameters
        outcome.message_bits = 8 * float(np.mean([len(envelope) for envelope in envelopes])) / parameters
    outcome.bytes_up = float(np.mean([federation.traffic[device][0] for device in devices]))


def _store(federation: InProcessFederation) -> Store:
    if federation.server_store is None:
        sys.exit("the server of the rehearsal is gone")
    return federation.server_store
