"""How good each device's adapters are on test data that neither training nor gate has seen."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from agent import ensemble
from agent.config import STORE_FILE, LimitsConfig
from agent.features import FeatureCache
from agent.installation import Installation
from agent.onnxruntime_engine import OnnxruntimeEngine
from agent.store import Store
from simulation.errors import SimulationError
from simulation.experiment import Experiment, Participant


@dataclass(frozen=True)
class DeviceResult:
    """What a device ended with."""

    device: str
    domain: str
    labelled_windows: int
    test_windows: int
    backbone: float
    """Test accuracy of the untouched backbone head."""
    local: float
    """Of training alone, on all labelled windows of the device: without a fleet none need be held out."""
    fleet: float
    """Of what the device uses after its gate."""
    release: float
    """Of the fleet's release as it is."""
    choice: str
    """What the gate chose."""

    @property
    def worse(self) -> bool:
        """Whether taking part made the device worse than training alone."""
        return self.fleet < self.local


def evaluate(experiment: Experiment) -> list[DeviceResult]:
    """Test the adapters in every device's store.

    Raises:
        SimulationError: a device never installed the package.
    """
    return [_evaluate_device(experiment, participant) for participant in experiment.participants]


def _evaluate_device(experiment: Experiment, participant: Participant) -> DeviceResult:
    device = participant.device
    with contextlib.closing(Store(participant.state / STORE_FILE)) as store:
        package, choice = store.state().package, store.text("choice")
        names = {"backbone": "initial", "local": "local_full", "release": "global"}
        adapters = {label: store.adapter(name) for label, name in names.items()}
        in_use = ensemble.in_use(store)
    if not package:
        raise SimulationError(f"device {device.id!r} never installed the package")
    installation = Installation(participant.state / "packages", ())
    manifest = installation.manifest(package)
    engine = OnnxruntimeEngine(installation.path(package), manifest)
    windows, labels = experiment.test_set(device.id)
    # Normalised by the statistics that the device has, where its package wants that.
    cache = FeatureCache(
        participant.state / "features", manifest, limit_bytes=LimitsConfig.feature_cache_bytes
    )
    features = engine.features(cache.prepared(windows))
    initial = adapters["backbone"]
    if initial is None or in_use is None:
        raise SimulationError(f"device {device.id!r} lost its adapters")
    tested = {"fleet": in_use}
    for label, adapter in adapters.items():
        # Where no release reached the device, it has what the package brought.
        tested[label] = ensemble.single(initial if adapter is None else adapter)
    accuracy = {
        label: float(np.mean(tried.logits(engine, features).argmax(1) == labels))
        for label, tried in tested.items()
    }
    return DeviceResult(
        device.id, device.domain, participant.labelled_windows, len(labels), choice=choice, **accuracy
    )


def means(results: list[DeviceResult]) -> Mapping[str, float]:
    """Mean test accuracy over devices of backbone, local, fleet and release."""
    return {
        name: float(np.mean([getattr(result, name) for result in results]))
        for name in ("backbone", "local", "fleet", "release")
    }
