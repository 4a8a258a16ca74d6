"""A discriminant head behind a finished package: the graphs do not see it, and it begins with the sources."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.onnxruntime_engine import OnnxruntimeEngine
from models import discriminant_head, embedding
from models.anomaly_head import add_anomaly_head
from models.discriminant_head import Sources, add_discriminant_head, initial_statistics
from models.errors import ModelError
from models.export import export
from models.packages import verify
from protocol.discriminant import LARGEST_BETWEEN, MAX_DIMENSION, Statistics, sizes
from protocol.package import (
    ANOMALY,
    CLASSIFICATION,
    DISCRIMINANT,
    EMBEDDING,
    PREFIX,
    ModelPackage,
    Segment,
    pack,
    unpack,
)
from tests.builders import tiny_package
from tests.models.networks import BATCH, KEY, SCHEMA, WINDOW, Perceptron, adapted

CLASSES = len(SCHEMA.classes)
DIMENSION = 12
PLAIN = export(adapted(Perceptron, "lora", ("1",), "5"), SCHEMA, WINDOW, KEY, name="test", batch=BATCH)


def sources(devices: int = 3, each: int = 10, classes: int = CLASSES) -> Sources:
    """Windows whose class is to be seen in their first rows."""
    generator = torch.Generator().manual_seed(5)
    labels = np.tile(np.repeat(np.arange(classes), each), devices)
    device = np.repeat(np.arange(devices), each * classes)
    windows = torch.randn(len(labels), 3, 32, generator=generator).numpy()
    windows[np.arange(len(labels)), labels % 3, labels] += 4.0
    return Sources(windows.astype(np.float32), labels.astype(np.int64), device * classes + labels)


SOURCES = sources()
WIDTH = unpack(PLAIN, None).manifest.feature_size
HEADED = add_discriminant_head(PLAIN, DIMENSION, KEY, SOURCES)


def engine_of(package: ModelPackage, folder: Path) -> OnnxruntimeEngine:
    folder.mkdir()
    for member, content in package.members.items():
        (folder / member).write_bytes(content)
    return OnnxruntimeEngine(folder, package.manifest)


def test_the_graphs_of_a_real_package_verify_and_compute_as_before(tmp_path: Path) -> None:
    before, after = unpack(PLAIN, None), verify(HEADED, KEY.public)
    head = sizes(DIMENSION, CLASSES)
    assert after.manifest.tasks == (CLASSIFICATION, DISCRIMINANT)
    assert after.manifest.segments == (
        *before.manifest.segments,
        *(Segment(name, size) for name, size in head.items()),
    )
    assert after.manifest.embedding_size == DIMENSION
    assert after.adapter[: before.manifest.parameters].tobytes() == before.adapter.tobytes()
    assert {name: content for name, content in after.members.items() if name in (PREFIX, "step.onnx")} == {
        name: before.members[name] for name in (PREFIX, "step.onnx")
    }
    found = []
    for name, package in (("before", before), ("after", after)):
        engine = engine_of(package, tmp_path / name)
        features = engine.features(SOURCES.windows[:5])
        loss, gradient = engine.loss_and_gradient(
            package.adapter, features, SOURCES.labels[:5], np.ones(5, np.float32)
        )
        found.append((loss, gradient, engine.predict(package.adapter, features)))
    assert found[0][0] == found[1][0]
    assert np.array_equal(found[1][1], np.pad(found[0][1], (0, sum(head.values()))))
    assert np.array_equal(found[0][2], found[1][2])


def test_a_device_computes_the_embedding_that_the_head_was_begun_on(tmp_path: Path) -> None:
    package = unpack(HEADED, None)
    engine = engine_of(package, tmp_path / "engine")
    assert engine.embedding_size == DIMENSION
    embedded = engine.embed(engine.features(SOURCES.windows))
    assert (embedded.dtype, embedded.shape) == (np.dtype(np.float32), (len(SOURCES.labels), DIMENSION))
    head = Statistics.of(package.adapter[package.manifest.task_slices()[DISCRIMINANT]], DIMENSION)
    for label in range(CLASSES):
        own = embedded[SOURCES.labels == label].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(head.means[label], own, atol=1e-4)
    # Each of the features was brought to a scatter of 1, and turning preserves lengths.
    assert np.trace(head.within) == pytest.approx(WIDTH, rel=0.3)
    assert np.linalg.eigvalsh(head.within).min() > -1e-6
    np.testing.assert_allclose(head.between, LARGEST_BETWEEN, rtol=1e-6)
    assert head.rounds == 0
    # The classes are far enough apart that the head's own means find them again.
    nearest = ((embedded[:, None] - head.means) ** 2).sum(axis=2).argmin(axis=1)
    assert np.mean(nearest == SOURCES.labels) > 2 / CLASSES


def test_equal_packages_get_equal_heads() -> None:
    assert add_discriminant_head(PLAIN, DIMENSION, KEY, SOURCES) == HEADED
    assert add_discriminant_head(PLAIN, DIMENSION, KEY, SOURCES, embedding.FIRST) != HEADED


@pytest.mark.parametrize(
    ("where", "width"),
    [
        (embedding.FEATURES, WIDTH),
        (embedding.FIRST, 20),
        (embedding.LAST, 12),
    ],
)
def test_a_head_has_at_most_the_dimensions_of_its_place(where: str, width: int) -> None:
    package = unpack(add_discriminant_head(PLAIN, 128, KEY, SOURCES, where), None)
    assert package.manifest.embedding_size == width
    assert package.manifest.files[EMBEDDING] == hashlib.sha256(package.members[EMBEDDING]).digest()


def test_an_anomaly_head_goes_behind_it() -> None:
    package = verify(add_anomaly_head(HEADED, 2, KEY), KEY.public)
    assert package.manifest.tasks == (CLASSIFICATION, DISCRIMINANT, ANOMALY)
    assert package.manifest.segments[-1].name == ANOMALY
    assert package.manifest.embedding_size == DIMENSION


def test_a_class_that_no_source_has_is_put_where_all_windows_are() -> None:
    few = sources(classes=CLASSES - 1)
    package = unpack(add_discriminant_head(PLAIN, DIMENSION, KEY, few), None)
    head = Statistics.of(package.adapter[package.manifest.task_slices()[DISCRIMINANT]], DIMENSION)
    assert not head.means[CLASSES - 1].any()
    assert np.abs(head.means[0]).max() > 0.1


def test_devices_count_alike_however_many_windows_they_have() -> None:
    random = np.random.Generator(np.random.PCG64(2))
    embedded = np.concatenate([np.full((90, 3), 1.0), np.full((10, 3), -1.0)]) + 1e-3 * random.normal(
        size=(100, 3)
    )
    both = Sources(np.zeros((100, 1), np.float32), np.zeros(100, np.int64), np.repeat([0, 1], [90, 10]))
    found = initial_statistics(embedded, both, 2)
    np.testing.assert_allclose(found.means[0], 0, atol=1e-3)
    np.testing.assert_allclose(np.diag(found.within), 1e-6, rtol=0.5)  # not the 2 between the devices


def test_of_many_windows_some_are_taken_and_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discriminant_head, "MOST_WINDOWS", 50)
    one, other = SOURCES.some(), SOURCES.some()
    assert len(one.labels) == len(one.windows) == len(one.groups) == 50
    assert one.groups.tobytes() == other.groups.tobytes()
    assert set(one.labels.tolist()) == set(range(CLASSES))


ONE_EACH = replace(SOURCES, groups=np.arange(len(SOURCES.labels)))
NO_WINDOWS = Sources(SOURCES.windows[:0], SOURCES.labels[:0], SOURCES.groups[:0])


@pytest.mark.parametrize(
    ("data", "dimension", "given", "message"),
    [
        (HEADED, DIMENSION, SOURCES, "has a head already"),
        (add_anomaly_head(PLAIN, 2, KEY), DIMENSION, SOURCES, "add the discriminant head first, and once"),
        (PLAIN, 1, SOURCES, "discriminant: expected 2 to 1024 dimensions, got 1"),
        (PLAIN, -1, SOURCES, "discriminant: expected 2 to 1024 dimensions, got -1"),
        (PLAIN, MAX_DIMENSION + 1, SOURCES, "discriminant: expected 2 to 1024 dimensions, got 1025"),
        (PLAIN, DIMENSION, ONE_EACH, "expected several labelled windows of a class"),
        (PLAIN, DIMENSION, NO_WINDOWS, "expected several labelled windows of a class"),
        (tiny_package()[:-1], DIMENSION, SOURCES, "not a readable archive"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_with_the_reason(
    data: bytes, dimension: int, given: Sources, message: str
) -> None:
    with pytest.raises(ModelError) as refusal:
        add_discriminant_head(data, dimension, KEY, given)
    assert message in str(refusal.value)


def test_a_head_that_makes_the_adapter_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discriminant_head, "MAX_PARAMETERS", unpack(HEADED, None).manifest.parameters - 1)
    with pytest.raises(ModelError, match=r"discriminant: expected at most .* parameters in all, got"):
        add_discriminant_head(PLAIN, DIMENSION, KEY, SOURCES)


def test_verify_refuses_a_signed_embedding_that_is_not_onnx() -> None:
    package = unpack(HEADED, None)
    members = {**package.members, EMBEDDING: b"no graph"}
    files = {name: hashlib.sha256(content).digest() for name, content in members.items()}
    with pytest.raises(ModelError, match=r"embedding\.onnx: not a valid ONNX graph"):
        verify(pack(replace(package.manifest, files=files), members, KEY), KEY.public)
