"""How good each device's adapters are on test data that neither training nor gate has seen."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from agent import ensemble
from agent.config import STORE_FILE, LimitsConfig
from agent.features import FeatureCache
from agent.installation import Installation
from agent.onnxruntime_engine import OnnxruntimeEngine
from agent.store import Store
from protocol.package import ANOMALY
from simulation.anomaly_evaluation import AnomalyResult, evaluate_anomalies
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
    anomaly: AnomalyResult | None = None
    """Of anomaly detection, where the package has a head for it and the test data have anomalies."""

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
        package, choice, policy = store.state().package, store.text("choice"), store.policy()
        names = {"backbone": "initial", "local": "local_full", "release": "global"}
        found = {label: store.adapter(name) for label, name in names.items()}
        head = store.adapter(ANOMALY)
        in_use = ensemble.in_use(store)
    if not package:
        raise SimulationError(f"device {device.id!r} never installed the package")
    installation = Installation(participant.state / "packages", tuple)
    manifest = installation.manifest(package)
    engine = OnnxruntimeEngine(installation.path(package), manifest)
    windows, labels = experiment.test_set(device.id)
    # Normalised by the statistics that the device has, where its package wants that.
    cache = FeatureCache(
        participant.state / "features", manifest, limit_bytes=LimitsConfig.feature_cache_bytes
    )
    features = engine.features(cache.prepared(windows))
    initial = found["backbone"]
    if initial is None or in_use is None:
        raise SimulationError(f"device {device.id!r} lost its adapters")
    # Where no release reached the device, it has what the package brought.
    adapters = {label: initial if adapter is None else adapter for label, adapter in found.items()}
    tested = {"fleet": in_use, **{label: ensemble.single(one) for label, one in adapters.items()}}
    accuracy = {
        label: float(np.mean(tried.logits(engine, features).argmax(1) == labels))
        for label, tried in tested.items()
    }
    heads = None
    if ANOMALY in manifest.tasks and ANOMALY in policy.tasks:
        part = manifest.task_slices()[ANOMALY]
        heads = {"local": adapters["local"][part], "fleet": initial[part] if head is None else head}
    return DeviceResult(
        device.id,
        device.domain,
        participant.labelled_windows,
        len(labels),
        choice=choice,
        anomaly=evaluate_anomalies(experiment, participant, engine, manifest, policy, heads=heads),
        **accuracy,
    )


def means(results: list[DeviceResult]) -> Mapping[str, float]:
    """Mean test accuracy over devices of backbone, local, fleet and release."""
    return {
        name: float(np.mean([getattr(result, name) for result in results]))
        for name in ("backbone", "local", "fleet", "release")
    }


def anomaly_means(results: list[DeviceResult]) -> Mapping[str, float]:
    """Mean AUROC and F1 over the devices that were tested on anomalies; empty where none was."""
    found = [asdict(result.anomaly) for result in results if result.anomaly is not None]
    names = ("auroc_local", "auroc_fleet", "f1_local", "f1_fleet") if found else ()
    return {name: float(np.mean([row[name] for row in found])) for name in names}
