"""What a device does with a head: a step of its own, two classifiers, and nothing where something lacks."""

from typing import Any

import numpy as np
import pytest

from agent import classifiers, discriminant
from agent.dataset import Labelled
from agent.discriminant import Discriminant
from agent.errors import EngineError
from agent.update import without_heads
from protocol.discriminant import Statistics
from protocol.package import DISCRIMINANT, EMBEDDING
from tests.agent.test_training import data
from tests.builders import (
    CLASSES,
    DIMENSION,
    PARAMETERS,
    DiscriminantEngine,
    LogisticEngine,
    discriminant_manifest,
    headed_adapter,
    tiny_manifest,
    tiny_members,
)

ENGINE: Any = DiscriminantEngine()
MANIFEST = discriminant_manifest({**tiny_members(), EMBEDDING: b"embedding"})
HEAD = MANIFEST.task_slices()[DISCRIMINANT]
RELEASE = headed_adapter(0.5)
WINDOWS, LATER, NOTHING = data(5, 5), data(200, 200, seed=1), data(0, 0)


def test_a_step_moves_the_head_and_nothing_else() -> None:
    kept = RELEASE.copy()
    after = classifiers.with_step(ENGINE, MANIFEST, RELEASE, WINDOWS, 0)
    embedded = ENGINE.embed(WINDOWS.features)
    assert after[HEAD].tobytes() == discriminant.advance(RELEASE[HEAD], embedded, WINDOWS.labels, 0).tobytes()
    assert after[HEAD].tobytes() != RELEASE[HEAD].tobytes()
    assert after[:PARAMETERS].tolist() == RELEASE[:PARAMETERS].tolist()
    assert RELEASE.tobytes() == kept.tobytes()


def test_the_classifier_in_use_knows_all_labels_and_that_of_the_gate_does_not() -> None:
    training = WINDOWS.take(np.array([0, 1, 8, 9]))
    found = classifiers.of_release(ENGINE, MANIFEST, RELEASE, training, WINDOWS)
    assert set(found) == {"discriminant", "discriminant_full"}
    statistics = Statistics.of(RELEASE[HEAD], DIMENSION)
    for name, windows in (("discriminant", training), ("discriminant_full", WINDOWS)):
        expected = discriminant.fit(statistics, ENGINE.embed(windows.features), windows.labels)
        assert found[name].tobytes() == expected.vector().tobytes()
        logits = Discriminant.of(found[name], len(CLASSES)).logits(ENGINE.embed(LATER.features))
        assert np.mean(logits.argmax(1) == LATER.labels) > 0.9


@pytest.mark.parametrize(
    ("engine", "windows"), [(ENGINE, NOTHING), (LogisticEngine(), WINDOWS)], ids=["no labels", "no embedding"]
)
def test_without_labels_or_an_embedding_the_head_stays_and_there_is_no_classifier(
    engine: Any, windows: Labelled
) -> None:
    assert classifiers.with_step(engine, MANIFEST, RELEASE, windows, 0).tobytes() == RELEASE.tobytes()
    assert classifiers.of_release(engine, MANIFEST, RELEASE, windows, windows) == {}


def test_what_was_said_of_the_head_is_taken_out_of_a_difference() -> None:
    difference = np.arange(1, len(RELEASE) + 1, dtype=np.float32)
    found = without_heads(MANIFEST, difference)
    assert not found[HEAD].any()
    assert found[:PARAMETERS].tolist() == difference[:PARAMETERS].tolist()
    assert difference.all()  # the one given stays
    headless = tiny_manifest(tiny_members())
    assert without_heads(headless, difference[:PARAMETERS]).all()


def test_an_engine_that_does_not_run_the_embedding_says_so() -> None:
    from agent.engine import PackageEngine  # noqa: PLC0415 - what the runtimes share

    class Runtime(PackageEngine):
        name = "litert"

        def describe(self) -> str:
            return self.name

        def _run_prefix(self, windows: Any) -> Any:
            raise NotImplementedError

        def _run_step(self, *_: Any) -> Any:
            raise NotImplementedError

        def _run_predict(self, adapter: Any, features: Any) -> Any:
            raise NotImplementedError

    engine = Runtime(MANIFEST)
    assert (MANIFEST.embedding_size, engine.embedding_size) == (DIMENSION, 0)
    with pytest.raises(EngineError, match="litert: expected a package with an embedding that this engine"):
        engine.embed(WINDOWS.features)
