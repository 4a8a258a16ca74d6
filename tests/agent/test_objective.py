"""The losses that the gate compares: an adapter cannot win by being less sure of itself."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from agent.dataset import Labelled
from agent.objective import comparable_losses, losses, spread

LABELS = np.array([0, 1, 1, 0, 2], np.int64)
DATA = Labelled(np.zeros((5, 1), np.float32), LABELS, np.zeros(5, np.int64), np.arange(5))
LOGITS = np.array([[2, 0, 0], [0, 3, 0], [1, 0, 0], [0, 0, 1], [0, 0, 4]], np.float32)


@dataclass
class Says:
    """An engine whose adapter is what it says."""

    logits: np.ndarray

    def predict(self, _adapter: Any, features: Any) -> np.ndarray:
        return self.logits[: len(features)]


def comparable(logits: np.ndarray) -> np.ndarray:
    return comparable_losses(logits, LABELS)


@pytest.mark.parametrize("sureness", [0.01, 0.5, 30.0])
def test_how_sure_an_adapter_is_changes_nothing(sureness: float) -> None:
    np.testing.assert_allclose(comparable(LOGITS * np.float32(sureness)), comparable(LOGITS), rtol=1e-5)
    plain = losses(Says(LOGITS * np.float32(sureness)), np.zeros(1, np.float32), DATA)  # type: ignore[arg-type]
    assert not np.allclose(plain, comparable(LOGITS))


def test_a_window_that_is_right_costs_less_than_one_that_is_wrong() -> None:
    found = comparable(LOGITS)
    wrong = LOGITS.argmax(1) != LABELS
    assert found[~wrong].max() < found[wrong].min()


def test_an_adapter_that_says_nothing_costs_what_guessing_costs() -> None:
    np.testing.assert_allclose(comparable(np.zeros_like(LOGITS)), np.log(3))
    assert comparable_losses(LOGITS[:0], LABELS[:0]).shape == (0,)


def test_windows_without_any_prediction_do_not_spoil_the_others() -> None:
    said = LOGITS.astype(np.float64)
    said[2] = np.nan
    found = comparable(said)
    assert np.isnan(found).tolist() == [False, False, True, False, False]
    np.testing.assert_allclose(spread(said), said[[0, 1, 3, 4]].std())
    assert spread(np.full((2, 3), np.nan)) == spread(np.zeros((2, 3))) == spread(np.zeros((0, 3))) == 1.0
