"""Small real things that many tests need: keys, a clock, recordings, a package, and an engine in numpy."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.config import KEY_FILE
from agent.identity import Identity
from protocol import discriminant
from protocol.discriminant import Statistics
from protocol.identity import Trust
from protocol.input_schema import InputSchema, WindowSpec
from protocol.package import (
    ADAPTER,
    CLASSIFICATION,
    DISCRIMINANT,
    EMBEDDING,
    PREDICT,
    PREFIX,
    STEP,
    Manifest,
    Parity,
    Segment,
    pack,
    write_adapter,
)
from protocol.sealing import SealingKey, unseal
from protocol.signing import PrivateKey
from runtime.keys import write_secret
from server.keys import ServerKeys

CHANNEL, CLASSES, LENGTH = "x", ("low", "high"), 4
SCHEMA = InputSchema("timeseries", (CHANNEL,), 10.0, CLASSES)
WINDOW = WindowSpec(LENGTH, LENGTH)
SEGMENTS = (Segment("weight", 4), Segment("bias", 2))
PARAMETERS = 6
WIDE_SEGMENTS = (Segment("first", 800), Segment("second", 400))
WIDE_PARAMETERS = 1200
FEATURES = 2
BATCH = 8
DIMENSION = 2
"""Of the embedding of `discriminant_package`."""
HEADED = (CLASSIFICATION, DISCRIMINANT)
HEADED_SEGMENTS = (
    *SEGMENTS,
    *(Segment(name, size) for name, size in discriminant.sizes(DIMENSION, len(CLASSES)).items()),
)
HEADED_PARAMETERS = sum(segment.size for segment in HEADED_SEGMENTS)
INITIAL_STATISTICS = Statistics(
    0.05 * np.eye(DIMENSION), np.zeros((len(CLASSES), DIMENSION)), np.ones(len(CLASSES))
)


def private_key(number: int) -> PrivateKey:
    """One of 256 fixed keys."""
    return PrivateKey(bytes([number]) * 32)


SEALING = SealingKey(bytes(range(32)))
"""Of every server."""


def server_keys(signing: PrivateKey) -> ServerKeys:
    """The keys of a server that signs with `signing`."""
    return ServerKeys(signing, (SEALING,))


def trust(roots: tuple[bytes, ...] = ()) -> Trust:
    """What a server says of its keys."""
    return Trust(roots, SEALING.public.raw, 0.0, 1e12)


def identity_of(folder: Path, device: str, key: PrivateKey) -> Identity:
    """A device's files with this signing key."""
    if not (folder / KEY_FILE).exists():
        write_secret(folder / KEY_FILE, key.raw)
    return Identity(folder, device)


PUBLISHER = private_key(200)


@dataclass
class Clock:
    """A clock that stands still until it is moved."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def opened(topic: str, payload: bytes) -> bytes:
    """A message as it was signed, sealed or not."""
    if topic.endswith(("/update", "/report")):
        return unseal(payload, [SEALING], topic, limit=1 << 24).plaintext
    return payload


@dataclass
class Wire:
    """The edge to the broker: keeps what is published, opened; `connected` False loses it."""

    published: list[tuple[str, bytes, bool]] = field(default_factory=list)
    connected: bool = True

    def __call__(self, topic: str, payload: bytes, retain: bool) -> bool:
        if self.connected:
            self.published.append((topic, opened(topic, payload), retain))
        return self.connected

    def take(self, topic: str) -> list[bytes]:
        """Payloads published to `topic` since the last call for it."""
        found = [payload for name, payload, _ in self.published if name == topic]
        self.published = [entry for entry in self.published if entry[0] != topic]
        return found


def tiny_manifest(
    members: Mapping[str, bytes], name: str = "tiny", segments: tuple[Segment, ...] = SEGMENTS
) -> Manifest:
    """Describe a package of two classes, one channel and, unless `segments` say otherwise, six parameters."""
    return Manifest(
        format_version=1,
        name=name,
        version=1,
        schema=SCHEMA,
        window=WINDOW,
        segments=segments,
        batch=BATCH,
        feature_size=FEATURES,
        backbone_sha256=hashlib.sha256(members[PREFIX]).digest(),
        files={member: hashlib.sha256(content).digest() for member, content in members.items()},
        parity=Parity(0.0, 0.0, 0.0),
    )


def tiny_members(initial: Sequence[float] = (0.0,) * PARAMETERS, filler: int = 0) -> dict[str, bytes]:
    """Members whose graphs are no ONNX; `filler` makes them longer."""
    return {
        PREFIX: b"prefix" + (bytes(range(251)) * (filler // 251 + 1))[:filler],
        STEP: b"step",
        PREDICT: b"predict",
        ADAPTER: write_adapter(np.asarray(initial, np.float32)),
    }


def tiny_package(
    initial: Sequence[float] = (0.0,) * PARAMETERS,
    *,
    name: str = "tiny",
    filler: int = 0,
    key: PrivateKey = PUBLISHER,
    segments: tuple[Segment, ...] = SEGMENTS,
    version: int = 1,
    expires: float = 0.0,
) -> bytes:
    """Pack and sign a tiny package."""
    members = tiny_members(initial, filler)
    manifest = replace(tiny_manifest(members, name, segments), version=version, expires=expires)
    return pack(manifest, members, key)


def discriminant_manifest(members: Mapping[str, bytes]) -> Manifest:
    """Describe the tiny package with a discriminant head."""
    return replace(tiny_manifest(members), segments=HEADED_SEGMENTS, tasks=HEADED)


def headed_adapter(level: float = 0.0, statistics: Statistics = INITIAL_STATISTICS) -> NDArray[np.float32]:
    """An adapter of the tiny package with a discriminant head, float32 [parameters]."""
    return np.concatenate([np.full(PARAMETERS, level, np.float32), statistics.head()])


def discriminant_package() -> bytes:
    """Pack and sign the tiny package with a discriminant head."""
    members = {**tiny_members(), ADAPTER: write_adapter(headed_adapter()), EMBEDDING: b"embedding"}
    return pack(discriminant_manifest(members), members, PUBLISHER)


def repacked(manifest: Manifest, member: str, content: bytes, members: Mapping[str, bytes]) -> bytes:
    """Pack again with another content of one member, rightly hashed and signed."""
    changed = {**members, member: content}
    files = {**manifest.files, member: hashlib.sha256(content).digest()}
    return pack(replace(manifest, files=files, backbone_sha256=files[PREFIX]), changed, PUBLISHER)


def write_recording(path: Path, windows: Sequence[tuple[str, float]]) -> Path:
    """Write a CSV recording of one window for each (label, level); an empty label is unlabelled."""
    rows = [f"{level + 0.01 * row},{label}" for label, level in windows for row in range(LENGTH)]
    path.write_text("\n".join([f"{CHANNEL},label", *rows]) + "\n", "utf-8")
    return path


def two_levels(count: int) -> list[tuple[str, float]]:
    """As many windows of each class, in turns, which a line separates."""
    return [
        window for index in range(count) for window in (("low", -1.0 - index % 3), ("high", 1.0 + index % 3))
    ]


class LogisticEngine:
    """Softmax regression on the mean and the spread of a window: an engine without graphs."""

    batch = BATCH
    feature_size = FEATURES
    parameters = PARAMETERS
    classes = len(CLASSES)
    embedding_size = 0

    def __init__(self) -> None:
        self.windows_seen = 0

    def features(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        self.windows_seen += len(windows)
        flat = windows.reshape(len(windows), -1)
        return np.stack([flat.mean(axis=1), flat.std(axis=1)], axis=1).astype(np.float32)

    def predict(self, adapter: NDArray[np.float32], features: NDArray[np.float32]) -> NDArray[np.float32]:
        return (features @ adapter[:4].reshape(2, 2) + adapter[4:]).astype(np.float32)

    def embed(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        raise NotImplementedError

    def loss_and_gradient(
        self,
        adapter: NDArray[np.float32],
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        weights: NDArray[np.float32],
    ) -> tuple[float, NDArray[np.float32]]:
        logits = self.predict(adapter, features).astype(np.float64)
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = shifted / shifted.sum(axis=1, keepdims=True)
        rows = np.arange(len(labels))
        part = weights / weights.sum()
        loss = float(-(np.log(shares[rows, labels]) * part).sum())
        shares[rows, labels] -= 1
        error = shares * part[:, None]
        gradient = np.concatenate([(features.T @ error).reshape(-1), error.sum(axis=0)])
        return loss, gradient.astype(np.float32)


class DiscriminantEngine(LogisticEngine):
    """The same regression beside an embedding: its adapter has a discriminant head, which it does not see."""

    parameters = HEADED_PARAMETERS
    embedding_size = DIMENSION
    _mixing = np.array([[0.25, 0.1], [0.5, -1.0]], np.float32)

    def embed(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return features @ self._mixing

    def predict(self, adapter: NDArray[np.float32], features: NDArray[np.float32]) -> NDArray[np.float32]:
        return super().predict(adapter[:PARAMETERS], features)

    def loss_and_gradient(
        self,
        adapter: NDArray[np.float32],
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        weights: NDArray[np.float32],
    ) -> tuple[float, NDArray[np.float32]]:
        loss, gradient = super().loss_and_gradient(adapter, features, labels, weights)
        return loss, np.pad(gradient, (0, HEADED_PARAMETERS - PARAMETERS))


class WideEngine(LogisticEngine):
    """The same regression on 1,200 parameters, mixed into the six: large enough that differences pay."""

    parameters = WIDE_PARAMETERS
    _mixing = np.random.Generator(np.random.PCG64(0)).normal(size=(PARAMETERS, WIDE_PARAMETERS)) / 30

    def predict(self, adapter: NDArray[np.float32], features: NDArray[np.float32]) -> NDArray[np.float32]:
        return super().predict(self._mixed(adapter), features)

    def loss_and_gradient(
        self,
        adapter: NDArray[np.float32],
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        weights: NDArray[np.float32],
    ) -> tuple[float, NDArray[np.float32]]:
        few = LogisticEngine()
        loss, gradient = few.loss_and_gradient(self._mixed(adapter), features, labels, weights)
        return loss, (gradient @ self._mixing).astype(np.float32)

    def _mixed(self, adapter: NDArray[np.float32]) -> NDArray[np.float32]:
        return (self._mixing @ adapter.astype(np.float64)).astype(np.float32)
