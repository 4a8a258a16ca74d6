"""A head for anomaly detection behind a finished package: the graphs do not see it."""

from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from agent.onnxruntime_engine import OnnxruntimeEngine
from models.anomaly_head import add_anomaly_head, initial_head
from models.engine_checks import check_engines
from models.errors import ModelError
from models.packages import verify
from protocol.package import ANOMALY, CLASSIFICATION, DISCRIMINANT, Segment, unpack
from protocol.signing import PrivateKey
from tests.builders import PUBLISHER, tiny_package

DEMO = resources.files("simulation").joinpath("demo", "vibration.zip").read_bytes()
KEY = PrivateKey(bytes(32))
RANK = 3


def test_the_graphs_of_a_real_package_verify_and_compute_as_before(tmp_path: Path) -> None:
    before = unpack(DEMO, None)
    data = add_anomaly_head(DEMO, RANK, KEY)
    after = verify(data, KEY.public)
    assert "onnxruntime" not in check_engines(after)
    size = before.manifest.feature_size * RANK
    assert (
        after.manifest.tasks == (*before.manifest.tasks, ANOMALY) == (CLASSIFICATION, DISCRIMINANT, ANOMALY)
    )
    assert after.manifest.segments == (*before.manifest.segments, Segment(ANOMALY, size))
    assert np.array_equal(after.adapter[:-size], before.adapter)
    random = np.random.Generator(np.random.PCG64(0))
    found = []
    for name, package in (("before", before), ("after", after)):
        folder = tmp_path / name
        folder.mkdir()
        for member, content in package.members.items():
            (folder / member).write_bytes(content)
        engine = OnnxruntimeEngine(folder, package.manifest)
        random = np.random.Generator(np.random.PCG64(0))
        features = random.normal(size=(5, engine.feature_size)).astype(np.float32)
        loss, gradient = engine.loss_and_gradient(
            package.adapter, features, np.zeros(5, np.int64), np.ones(5, np.float32)
        )
        found.append((loss, gradient, engine.predict(package.adapter, features)))
    assert found[0][0] == found[1][0]
    assert np.array_equal(found[1][1], np.pad(found[0][1], (0, size)))
    assert np.array_equal(found[0][2], found[1][2])


def test_equal_packages_get_equal_heads_and_the_columns_are_orthogonal() -> None:
    assert add_anomaly_head(DEMO, RANK, KEY) == add_anomaly_head(DEMO, RANK, KEY)
    head = initial_head(16, RANK).reshape(16, RANK).astype(np.float64)
    assert np.allclose(head.T @ head, 1e-6 * np.eye(RANK), atol=1e-12)


@pytest.mark.parametrize(
    ("data", "rank", "message"),
    [
        (tiny_package(), 0, "anomaly rank: expected 1 to below 2"),
        (tiny_package(), 2, "anomaly rank: expected 1 to below 2"),
        (add_anomaly_head(tiny_package(), 1, PUBLISHER), 1, "has a segment 'anomaly' already"),
        (tiny_package()[:-1], 1, "not a readable archive"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(data: bytes, rank: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        add_anomaly_head(data, rank, KEY)
