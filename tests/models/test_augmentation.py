"""Variations of windows: orientation, dead channels, and which channels turn together."""

import math

import pytest
import torch

from models.augmentation import Augmentation, default_variation, rotations
from models.axes import axes_of
from models.errors import TrainingError

NOTHING = {"gain": 0.0, "offset": 0.0, "noise": 0.0, "speed": 0.0, "shift": 0.0}
MOTION = ("x_acc", "y_acc", "z_acc", "x_gyro", "y_gyro", "z_gyro")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_rotations_keep_lengths_and_turn_no_further_than_asked() -> None:
    turns = rotations(200, math.radians(40), generator())
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3).expand(200, 3, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(200))
    cosine = (turns.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    degrees = cosine.clamp(-1, 1).acos().rad2deg()
    assert float(degrees.max()) <= 40.1
    assert float(degrees.max()) > 35
    assert float(degrees.min()) < 5


def test_a_turned_device_turns_all_its_sensors_alike_and_nothing_else() -> None:
    window = torch.randn(8, 7, 20) + 3
    augmentation = Augmentation(**NOTHING, orientation=180, axes=axes_of((*MOTION, "temperature")))
    turned = augmentation(window, torch.ones(7, 1), generator())
    torch.testing.assert_close(turned[:, 6], window[:, 6])
    for sensor in (slice(0, 3), slice(3, 6)):
        torch.testing.assert_close(turned[:, sensor].norm(dim=1), window[:, sensor].norm(dim=1))
        assert float((turned[:, sensor] - window[:, sensor]).abs().amax((1, 2)).min()) > 0.05
    torch.testing.assert_close(
        (turned[:, :3] * turned[:, 3:6]).sum(1), (window[:, :3] * window[:, 3:6]).sum(1), rtol=1e-3, atol=1e-3
    )


def test_a_silent_channel_stands_at_its_mean_and_the_others_go_on() -> None:
    window = torch.randn(400, 4, 30)
    found = Augmentation(**NOTHING, silence=0.25)(window, torch.ones(4, 1), generator())
    still = found.std(2) < 1e-6
    assert 0.2 < float(still.double().mean()) < 0.3
    torch.testing.assert_close(found[~still], window[~still])
    torch.testing.assert_close(found.mean(2), window.mean(2))


def test_the_only_channel_is_never_silenced() -> None:
    window = torch.randn(50, 1, 30)
    torch.testing.assert_close(
        Augmentation(**NOTHING, silence=1.0)(window, torch.ones(1, 1), generator()), window
    )


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (MOTION, ((0, 1, 2), (3, 4, 5))),
        (("accX", "accY", "accZ"), ((0, 1, 2),)),
        (("ACC_X", "ACC_Y", "ACC_Z"), ((0, 1, 2),)),
        (("gyro.x", "gyro.z", "gyro.y", "temperature"), ((0, 2, 1),)),
        (("acc1x", "acc1y", "acc1z", "acc2x", "acc2y", "acc2z"), ((0, 1, 2), (3, 4, 5))),
        (("x", "y"), ()),
        (("max", "may", "maz"), ()),
        (("Accelerometer1RMS", "Accelerometer2RMS", "Current"), ()),
    ],
)
def test_the_axes_of_a_sensor_are_known_by_their_names(
    channels: tuple[str, ...], expected: tuple[tuple[int, int, int], ...]
) -> None:
    assert axes_of(channels) == expected


def test_process_values_are_neither_turned_nor_moved() -> None:
    variation = default_variation("mlp", MOTION)
    assert isinstance(variation, Augmentation)
    assert (variation.axes, variation.speed, variation.shift) == ((), 0, 0)


@pytest.mark.parametrize("strength", [{"orientation": 181.0}, {"silence": 1.5}, {"noise": -0.1}])
def test_impossible_strengths_are_refused(strength: dict[str, float]) -> None:
    with pytest.raises(TrainingError, match=next(iter(strength))):
        Augmentation(**strength)
