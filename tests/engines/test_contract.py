"""The contract of a training engine: it computes what torch computes, and refuses what does not fit."""

from collections.abc import Callable

import numpy as np
import pytest

from agent.config import EngineConfig
from agent.engine import Engine
from agent.engines import open_engine
from agent.errors import EngineError
from tests.engines.cases import LEARNING_RATE, SHORT, Case

LIMIT = 1e-5


@pytest.fixture
def engine(case: Case, engine_name: str) -> Engine:
    return open_engine(case.folder, case.manifest, EngineConfig(engine_name), threads=1)


def relative(found: object, expected: object) -> float:
    found, expected = (np.asarray(value, np.float64) for value in (found, expected))
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def first_batch(case: Case, engine: Engine) -> tuple[np.ndarray, ...]:
    """Features, labels and weights."""
    rows = slice(0, engine.batch)
    features = engine.features(case.torch["windows"][rows])
    return features, case.torch["labels"][rows], case.torch["weights"][rows]


def test_it_says_what_a_package_takes(case: Case, engine: Engine) -> None:
    assert engine.batch == case.manifest.batch
    assert engine.feature_size == case.manifest.feature_size
    assert engine.parameters == len(case.torch["gradient"])
    assert engine.classes == case.torch["logits"].shape[1]


def test_loss_and_gradient_are_those_of_torch(case: Case, engine: Engine) -> None:
    loss, gradient = engine.loss_and_gradient(case.torch["adapter"], *first_batch(case, engine))
    assert relative(loss, case.torch["loss"]) <= LIMIT
    assert gradient.dtype == np.float32
    assert relative(gradient, case.torch["gradient"]) <= LIMIT


def test_logits_of_more_rows_than_a_batch_are_those_of_torch(case: Case, engine: Engine) -> None:
    features = engine.features(case.torch["windows"])
    assert len(features) == 2 * engine.batch + SHORT
    assert relative(engine.predict(case.torch["adapter"], features), case.torch["logits"]) <= LIMIT


def test_a_short_last_batch_counts_exactly_its_own_rows(case: Case, engine: Engine) -> None:
    rows = slice(-SHORT, None)
    features = engine.features(case.torch["windows"])[rows]
    labels, weights = case.torch["labels"][rows], case.torch["weights"][rows]
    loss, gradient = engine.loss_and_gradient(case.torch["adapter"], features, labels, weights)
    assert relative(loss, case.torch["short_loss"]) <= LIMIT
    assert relative(gradient, case.torch["short_gradient"]) <= LIMIT


def test_fifty_steps_take_the_loss_where_torch_takes_it(case: Case, engine: Engine) -> None:
    batch = first_batch(case, engine)
    adapter, curve = case.initial, []
    for _ in case.torch["curve"]:
        loss, gradient = engine.loss_and_gradient(adapter, *batch)
        adapter = adapter - LEARNING_RATE * gradient
        curve.append(loss)
    assert curve[-1] < 0.8 * curve[0]
    assert relative(curve, case.torch["curve"]) <= 1e-4


def test_the_same_step_twice_gives_the_same_bits(case: Case, engine: Engine) -> None:
    batch = first_batch(case, engine)
    loss, gradient = engine.loss_and_gradient(case.torch["adapter"], *batch)
    kept = gradient.copy()
    # A step in between, with other values: nothing of it may stay behind.
    engine.loss_and_gradient(case.initial, *batch)
    assert np.array_equal(gradient, kept), "a returned gradient belongs to the caller"
    again, gradient_again = engine.loss_and_gradient(case.torch["adapter"], *batch)
    assert again == loss
    assert np.array_equal(gradient_again, gradient)


def test_new_windows_between_steps_change_no_gradient(case: Case, engine: Engine) -> None:
    batch = first_batch(case, engine)
    _, before = engine.loss_and_gradient(case.torch["adapter"], *batch)
    features = engine.features(case.torch["windows"][: engine.batch])
    _, after = engine.loss_and_gradient(case.torch["adapter"], features, *batch[1:])
    assert np.array_equal(before, after)


def test_a_batch_without_any_weight_moves_nothing(case: Case, engine: Engine) -> None:
    features, labels, weights = first_batch(case, engine)
    loss, gradient = engine.loss_and_gradient(case.initial, features, labels, np.zeros_like(weights))
    assert loss == 0
    assert not gradient.any()


def test_nothing_to_predict_gives_nothing(case: Case, engine: Engine) -> None:
    assert engine.features(case.torch["windows"][:0]).shape == (0, engine.feature_size)
    nothing = np.zeros((0, engine.feature_size), np.float32)
    assert engine.predict(case.initial, nothing).shape == (0, engine.classes)


def test_arrays_in_another_layout_or_precision_are_converted(case: Case, engine: Engine) -> None:
    features, labels, weights = first_batch(case, engine)
    loss, gradient = engine.loss_and_gradient(case.initial, features, labels, weights)
    found = engine.loss_and_gradient(
        case.initial.astype(np.float64), np.asfortranarray(features), labels.astype(np.int32), weights
    )
    assert found[0] == loss
    assert np.array_equal(found[1], gradient)


MISFITS: dict[str, tuple[Callable[[Case, Engine], object], str]] = {
    "windows of another length": (
        lambda case, engine: engine.features(case.torch["windows"][:, :, :-1]),
        "expected windows",
    ),
    "windows with another number of channels": (
        lambda case, engine: engine.features(case.torch["windows"][:, :-1]),
        "expected windows",
    ),
    "an adapter that is too short": (
        lambda case, engine: engine.predict(
            case.initial[:-1], np.zeros((1, engine.feature_size), np.float32)
        ),
        "expected an adapter",
    ),
    "features that are too wide": (
        lambda case, engine: engine.predict(case.initial, np.zeros((1, engine.feature_size + 1), np.float32)),
        "expected features",
    ),
    "more rows than a batch": (
        lambda case, engine: engine.loss_and_gradient(
            case.initial,
            np.zeros((engine.batch + 1, engine.feature_size), np.float32),
            np.zeros(engine.batch + 1, np.int64),
            np.ones(engine.batch + 1, np.float32),
        ),
        "expected at most",
    ),
    "fewer labels than features": (
        lambda case, engine: engine.loss_and_gradient(
            case.initial,
            np.zeros((4, engine.feature_size), np.float32),
            np.zeros(3, np.int64),
            np.ones(4, np.float32),
        ),
        "expected labels and weights",
    ),
    "weights in two dimensions": (
        lambda case, engine: engine.loss_and_gradient(
            case.initial,
            np.zeros((4, engine.feature_size), np.float32),
            np.zeros(4, np.int64),
            np.ones((4, 1), np.float32),
        ),
        "expected labels and weights",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_shapes_that_do_not_belong_together_are_refused(case: Case, engine: Engine, misfit: str) -> None:
    call, message = MISFITS[misfit]
    with pytest.raises(EngineError, match=message):
        call(case, engine)


@pytest.mark.parametrize("content", [b"", b"no graph at all" * 100])
def test_a_damaged_graph_is_an_engine_error(case: Case, engine: Engine, content: bytes) -> None:
    kept = {path: path.read_bytes() for path in case.folder.iterdir() if path.suffix != ".safetensors"}
    try:
        for path in kept:
            path.write_bytes(content)
        features = np.zeros((1, engine.feature_size), np.float32)
        with pytest.raises(EngineError, match=r"training step|features"):
            engine.loss_and_gradient(case.initial, features, np.zeros(1, np.int64), np.ones(1, np.float32))
    finally:
        for path, original in kept.items():
            path.write_bytes(original)
