"""The density of normal windows: what a fleet learns together is what the pooled data would teach."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from agent.density import Density, advance, standardise
from models.anomaly_head import INITIAL_NORM, initial_head
from protocol.quantisation import dequantise, quantise, to_float

SIZE, RANK = 12, 3
SEEDS = st.integers(0, 2**32 - 1)


def normal_windows(seed: int, count: int = 60) -> NDArray[np.float64]:
    """Deviations of one device: three strong directions that all devices share, and noise of its own."""
    shared = np.linalg.qr(np.random.Generator(np.random.PCG64(1)).normal(size=(SIZE, RANK)))[0]
    random = np.random.Generator(np.random.PCG64(seed))
    return random.normal(size=(count, RANK)) * (6, 4, 3) @ shared.T + random.normal(size=(count, SIZE)) * 0.5


def second_moment(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    moment = windows.T @ windows
    return np.asarray(moment / np.trace(moment))


def covariance(density: Density) -> NDArray[np.float64]:
    along = density.directions * density.variances @ density.directions.T
    across = np.eye(SIZE) - density.directions @ density.directions.T
    return np.asarray(along + density.rest * across)


@given(st.lists(SEEDS, min_size=2, max_size=5))
def test_the_mean_of_the_devices_steps_is_the_step_of_their_mean_second_moment(seeds: list[int]) -> None:
    head = initial_head(SIZE, RANK)
    steps = [advance(head, [normal_windows(seed)]) for seed in seeds]
    moment = np.mean([second_moment(normal_windows(seed)) for seed in seeds], axis=0)
    pooled = moment @ (head.astype(np.float64).reshape(SIZE, RANK) / INITIAL_NORM)
    assert np.allclose(np.mean(steps, axis=0), pooled.reshape(-1), atol=1e-6)


def test_coarsely_quantised_rounds_find_the_directions_of_the_fleet() -> None:
    head, parts = initial_head(SIZE, RANK), [slice(0, SIZE * RANK)]
    for number in range(10):
        decoded = []
        for device in range(8):
            difference = advance(head, [normal_windows(device)]) - head
            seed = bytes([number, device]) * 16
            decoded.append(to_float(dequantise(quantise(difference, parts, seed, 2.5), parts, seed)))
        head = (head + np.mean(decoded, axis=0)).astype(np.float32)
    moment = np.mean([second_moment(normal_windows(device)) for device in range(8)], axis=0)
    values, vectors = np.linalg.eigh(moment)
    cosines = np.linalg.svd(Density.of(head, SIZE).directions.T @ vectors[:, -RANK:])[1]
    assert cosines.min() > 0.99
    assert np.allclose(np.sort(Density.of(head, SIZE).variances), SIZE * values[-RANK:], rtol=0.1)


def test_a_fleet_that_has_converged_sends_next_to_nothing() -> None:
    head = initial_head(SIZE, RANK)
    for _ in range(60):
        head = advance(head, [normal_windows(0)])
    assert np.linalg.norm(advance(head, [normal_windows(0)]) - head) < 1e-5


@given(arrays(np.float64, (5, SIZE), elements=st.floats(-1e6, 1e6)))
def test_no_step_is_longer_than_one_whatever_the_data(windows: NDArray[np.float64]) -> None:
    after = advance(initial_head(SIZE, RANK), [windows])
    assert np.isfinite(after).all()
    assert np.linalg.norm(after.astype(np.float64)) <= 1 + 1e-6


def test_windows_without_variance_leave_the_head_as_it_is() -> None:
    head = initial_head(SIZE, RANK)
    assert np.array_equal(advance(head, [np.zeros((4, SIZE))]), head)


@given(arrays(np.float32, SIZE * RANK, elements=st.floats(-64, 64, width=32)))
def test_any_release_gives_a_proper_density(head: NDArray[np.float32]) -> None:
    density = Density.of(head, SIZE)
    windows = normal_windows(0, 5)
    assert (density.variances > 0).all()
    assert density.rest > 0
    assert np.isfinite(density.scores(windows)).all()
    assert (density.scores(windows) >= 0).all()
    assert np.isfinite(density.losses(windows)).all()


def test_scores_and_losses_are_those_of_the_covariance_written_out() -> None:
    density = Density.of(
        advance(advance(initial_head(SIZE, RANK), [normal_windows(0)]), [normal_windows(0)]), SIZE
    )
    windows, matrix = normal_windows(3), covariance(density)
    lengths = np.einsum("ij,jk,ik->i", windows, np.linalg.inv(matrix), windows)
    assert np.allclose(density.scores(windows), lengths / SIZE)
    angular = 0.5 * np.log(lengths / np.sum(windows**2, axis=1)) + 0.5 * np.linalg.slogdet(matrix)[1] / SIZE
    assert np.allclose(density.losses(windows), angular)


def test_a_head_that_knows_nothing_takes_all_directions_alike() -> None:
    windows = normal_windows(0)
    scores = Density.of(initial_head(SIZE, RANK), SIZE).scores(windows)
    assert np.allclose(scores / np.mean(windows**2, axis=1), scores[0] / np.mean(windows[0] ** 2), rtol=1e-2)


def test_how_far_a_window_is_out_does_not_change_its_loss() -> None:
    density = Density.of(advance(initial_head(SIZE, RANK), [normal_windows(0)]), SIZE)
    assert np.allclose(density.losses(normal_windows(1)), density.losses(1000 * normal_windows(1)))


@given(SEEDS, st.floats(0.01, 100), st.floats(-100, 100))
def test_gain_and_offset_of_a_sensor_change_nothing(seed: int, gain: float, offset: float) -> None:
    windows = normal_windows(seed % 100, 30).astype(np.float32)
    moved = (windows * np.float32(gain) + np.float32(offset)).astype(np.float32)
    expected = standardise(windows, windows[:10])
    assert np.allclose(standardise(moved, moved[:10]), expected, atol=2e-2 * np.abs(expected).max())


@pytest.mark.parametrize("level", [0.0, 5.0])
def test_a_feature_that_stood_still_does_not_decide(level: float) -> None:
    windows = normal_windows(0, 30).astype(np.float32)
    windows[:, 0] = level
    windows[20:, 0] += 1e-4
    assert np.abs(standardise(windows, windows[:10])[20:, 0]).max() < 0.1


def test_windows_that_are_all_alike_give_finite_deviations() -> None:
    windows = np.ones((8, SIZE), np.float32)
    assert not standardise(windows, windows[:4]).any()
