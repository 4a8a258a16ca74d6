"""A fleet's devices as features in memory, with the agent's own training, to compare algorithms in seconds.

There are no messages, no coding and no server here: what a device would have learned from is read once, and
every method trains with the same engine, policy, windows and seeds. What coding costs is measured by
codec.py.
"""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.config import SourceConfig
from agent.dataset import Labelled, split
from agent.engine import Engine, Floats
from agent.ensemble import Ensemble, single
from agent.features import FeatureCache
from agent.onnxruntime_engine import OnnxruntimeEngine
from agent.sources import Source
from agent.training import train
from protocol import windows
from protocol.charter import TrainingPolicy
from protocol.package import unpack
from simulation.experiment import Settings, prepare

Adapters = Mapping[str, Floats]
"""By device, float32 [parameters]."""
Tried = Floats | Mapping[str, Floats | Ensemble]
"""What is tested: one adapter for all devices, or one, or an ensemble, for each."""


@dataclass(frozen=True)
class Bench:
    """A device on the bench."""

    training: Labelled
    holdout: Labelled
    labelled: Labelled
    """Both together."""
    test_features: Floats
    """float32 [n, feature_size]."""
    test_labels: NDArray[np.int64]


class Laboratory:
    """All devices of a fleet with one budget of labels."""

    def __init__(self, fleet: Path, package: bytes, seed: int, labels: int) -> None:
        """Read a fleet, and compute all features.

        Args:
            fleet: a fleet directory.
            package: the model package.
            seed: of package, labels and training.
            labels: labelled windows per class and device.
        """
        self.seed = seed
        self.policy = TrainingPolicy()
        self._folder = tempfile.TemporaryDirectory()  # until `close`: graphs are opened late
        folder = Path(self._folder.name)
        unpacked = unpack(package, None)
        self.manifest, self.initial = unpacked.manifest, unpacked.adapter
        for name, content in unpacked.members.items():
            (folder / name).write_bytes(content)
        self.engine: Engine = OnnxruntimeEngine(folder, self.manifest)
        settings = Settings(labels_per_class=labels, seed=seed)
        experiment = prepare(folder / "run", fleet, settings)
        self._spools = {
            participant.device.id: participant.directory for participant in experiment.participants
        }
        self.devices = {
            participant.device.id: self._bench(
                participant.directory, experiment.test_set(participant.device.id)
            )
            for participant in experiment.participants
        }
        self.weights = np.array([len(bench.training) for bench in self.devices.values()], np.float64)
        self.steps = 0
        """Gradients that were computed so far."""

    def close(self) -> None:
        """Remove what lies on disk."""
        self._folder.cleanup()

    def train(
        self,
        start: Floats,
        data: Labelled,
        *key: object,
        anchor: Floats | None = None,
        proximal: float = 0.0,
    ) -> Floats:
        """Train as an agent does; returns the new adapter, float32 [parameters].

        Args:
            start: where to start.
            data: labelled windows.
            key: names this training; the same key, the same batches.
            anchor: what the proximal term pulls to; by default the start.
            proximal: its strength (Li et al. 2020, arXiv:1812.06127); 0: none.
        """
        digest = hashlib.sha256(repr((self.seed, *key)).encode()).digest()
        random = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
        engine = _Pulled(self.engine, start if anchor is None else anchor, proximal)
        trained = train(engine, start, data, self.policy, random)
        self.steps += engine.steps
        return trained

    def personal(self, starts: Floats | Adapters, number: int) -> dict[str, Floats]:
        """Every device trains from its start on its training windows, as after release `number`."""
        return {
            name: self.train(start_of(starts, name), bench.training, name, number, "personal")
            for name, bench in self.devices.items()
        }

    def mean(self, adapters: Adapters, names: Sequence[str] | None = None) -> Floats:
        """Mean of devices' adapters, weighted by their windows, float32 [parameters]."""
        chosen = list(self.devices) if names is None else list(names)
        weights = [len(self.devices[name].training) for name in chosen]
        stacked = np.stack([adapters[name] for name in chosen]).astype(np.float64)
        return np.asarray(np.average(stacked, axis=0, weights=weights), np.float32)

    def accuracy(self, tried: Tried) -> NDArray[np.float64]:
        """Test accuracy of each device, from 0 to 1, float64 [devices]."""
        return np.array([part.mean() for part in self.right(tried)])

    def right(self, tried: Tried) -> list[NDArray[np.bool_]]:
        """By device, whether each test window is classified rightly, bool [n]."""
        found = []
        for name, bench in self.devices.items():
            mine = tried if isinstance(tried, np.ndarray) else tried[name]
            mine = mine if isinstance(mine, Ensemble) else single(mine)
            predicted = mine.logits(self.engine, bench.test_features).argmax(1)
            found.append(np.asarray(predicted == bench.test_labels))
        return found

    def unlabelled(self, name: str) -> Floats:
        """Features of a device's windows, or pictures, without a label, float32 [n, feature_size]."""
        schema, directory = self.manifest.schema, self._spools[name]
        source = Source(SourceConfig(str(directory / "spool")), lambda: 0.0)
        cache = FeatureCache(directory / "features", self.manifest, limit_bytes=1 << 32)
        parts = [np.zeros((0, self.engine.feature_size), np.float32)]
        for listing in source.list(schema):
            recording = source.read(listing.path, schema)
            if recording is None or (schema.of_images and listing.label >= 0):
                continue
            cut = windows.cut(recording, self.manifest.window)
            x = recording.samples if schema.of_images else cut.x[cut.y < 0]
            parts.append(self.engine.features(np.ascontiguousarray(cache.prepared(x))))
        return np.concatenate(parts)

    def _bench(self, directory: Path, test: tuple[NDArray[np.float32], NDArray[np.int64]]) -> Bench:
        cache = FeatureCache(directory / "features", self.manifest, limit_bytes=1 << 32)
        source = Source(SourceConfig(str(directory / "spool")), lambda: 0.0)
        labelled = cache.collect(source, self.engine, 1 << 30).labelled
        training, holdout = split(labelled, self.policy.holdout_fraction, self.manifest.window.length)
        tested, labels = test
        return Bench(training, holdout, labelled, self.engine.features(cache.prepared(tested)), labels)


class _Pulled:
    """An engine whose gradient has a proximal term, and that counts."""

    def __init__(self, engine: Engine, anchor: Floats, strength: float) -> None:
        self._engine, self._anchor, self._strength = engine, anchor, np.float32(strength)
        self.batch = engine.batch
        self.feature_size = engine.feature_size
        self.parameters = engine.parameters
        self.classes = engine.classes
        self.embedding_size = engine.embedding_size
        self.steps = 0

    def loss_and_gradient(
        self, adapter: Floats, features: Floats, labels: NDArray[np.int64], weights: Floats
    ) -> tuple[float, Floats]:
        """Loss without, gradient with the term."""
        self.steps += 1
        loss, gradient = self._engine.loss_and_gradient(adapter, features, labels, weights)
        if not self._strength:
            return loss, gradient
        return loss, gradient + self._strength * (adapter - self._anchor)

    def predict(self, adapter: Floats, features: Floats) -> Floats:
        """Logits, float32 [n, classes]."""
        return self._engine.predict(adapter, features)

    def embed(self, features: Floats) -> Floats:
        """Output of the frozen embedding, float32 [n, embedding_size]."""
        return self._engine.embed(features)

    def features(self, windows: Floats) -> Floats:
        """Output of the frozen prefix, float32 [n, feature_size]."""
        return self._engine.features(windows)


def start_of(adapters: Floats | Adapters, name: str) -> Floats:
    """A device's adapter, where each has its own or all have one."""
    return adapters if isinstance(adapters, np.ndarray) else adapters[name]


def pool(parts: Sequence[Labelled]) -> Labelled:
    """All windows of several devices."""
    return Labelled(
        *(
            np.concatenate([getattr(part, field) for part in parts])
            for field in ("features", "labels", "recording", "start")
        )
    )
