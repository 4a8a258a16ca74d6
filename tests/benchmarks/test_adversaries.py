"""Attacks of the benchmark: what they send is what their papers say."""

import numpy as np
import pytest

from benchmarks.adversaries import ATTACKS, View


@pytest.fixture
def view() -> View:
    random = np.random.default_rng(0)
    return View(random.normal(0.2, 0.1, (9, 40)), random.normal(0.2, 0.1, (3, 40)), 9.0, random)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attacker_sends_one_finite_update(view: View, name: str) -> None:
    sent = ATTACKS[name].send(view)
    assert sent.shape == view.own.shape
    assert np.isfinite(sent).all()


def test_inner_product_manipulation_turns_the_mean_when_it_is_strong_enough(view: View) -> None:
    honest = view.honest.mean(0)
    for name, turned in (("IPM 0.5", False), ("IPM 10", True)):
        mean = np.concatenate([view.honest, ATTACKS[name].send(view)]).mean(0)
        assert (float(mean @ honest) < 0) == turned


def test_a_little_is_enough_hides_among_the_honest_updates(view: View) -> None:
    [sent, *others] = ATTACKS["ALIE 1.5"].send(view)
    assert all(np.array_equal(sent, other) for other in others)
    assert np.allclose((view.honest.mean(0) - sent) / view.honest.std(0), 1.5)
    distances = np.linalg.norm(view.honest - view.honest.mean(0), axis=1)
    assert np.linalg.norm(sent - view.honest.mean(0)) < 2 * distances.max()


@pytest.mark.parametrize(
    "name", ["noise at the bound", "label flip, scaled", "sign flip at the bound, boasting"]
)
def test_what_is_drawn_out_is_as_long_as_the_server_lets_pass(view: View, name: str) -> None:
    assert np.allclose(np.linalg.norm(ATTACKS[name].send(view), axis=1), view.bound)


def test_a_flipped_sign_points_the_other_way(view: View) -> None:
    for name in ("sign flip x3", "sign flip at the bound, boasting"):
        assert (np.sum(ATTACKS[name].send(view) * view.own, axis=1) < 0).all()
