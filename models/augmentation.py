"""Variations of windows that a backbone must not mind: mounting, gain, speed, start, noise and dead channels.

Source and edge devices differ in exactly these, so the backbone sees them at pre-training (Um et al. 2017,
arXiv:1706.00527). Which channels are the axes of one sensor, their names say (axes.py). Variations of
pictures are in image_augmentation.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from models.axes import axes_of
from models.errors import TrainingError
from models.image_augmentation import ImageAugmentation


class Variation(Protocol):
    """Varies a batch; the same generator, the same variation."""

    def __call__(self, window: Tensor, deviation: Tensor, random: torch.Generator) -> Tensor:
        """Vary windows or pictures, float32 [batch, *input_shape], in the units of `deviation`."""


@dataclass(frozen=True)
class Augmentation:
    """How far windows are varied; every strength is 0 for none."""

    gain: float = 0.5
    """Standard deviation of the natural logarithm of the factor, one per window and channel."""
    offset: float = 0.1
    """Standard deviation of the constant, in standard deviations of the channel."""
    noise: float = 0.1
    """Largest standard deviation of white noise, in the same unit; each window draws its own."""
    speed: float = 0.05
    """Largest relative change of the sampling rate; half of the windows keep theirs."""
    shift: float = 0.25
    """Largest shift in time, as a share of the window; the ends are mirrored."""
    orientation: float = 30.0
    """Largest angle by which a device is turned, in degrees, about an axis of its own for each window."""
    silence: float = 0.0
    """Chance that a channel stands still at its mean over the window, as a broken sensor does. Off: with 0.1
    federations on sp_sw_har were worse (docs/backbones.md)."""
    axes: tuple[tuple[int, int, int], ...] = ()
    """Channels that are x, y and z of one sensor; all sensors of a device turn together."""

    def __post_init__(self) -> None:
        limits = {"orientation": 180.0, "silence": 1.0, "speed": 0.9, "shift": 1.0}
        for name in ("gain", "offset", "noise", "speed", "shift", "orientation", "silence"):
            strength, limit = getattr(self, name), limits.get(name, math.inf)
            if not 0 <= strength <= limit:
                raise TrainingError(f"augmentation {name}: expected 0 to {limit:g}, got {strength}")

    def __call__(self, window: Tensor, deviation: Tensor, random: torch.Generator) -> Tensor:
        """Vary a batch.

        Args:
            window: float32 [batch, channels, length].
            deviation: float32 [channels, 1], standard deviation of each channel.
            random: source of the variation.

        Returns:
            float32 [batch, channels, length].
        """
        count, channels, length = window.shape
        # A window of one row has nowhere to move to.
        if length > 1:
            window = self._move(window, random)
        # First what happens to the device, then what its sensors make of it.
        if self.axes and self.orientation:
            window = self._turn(window, random)
        if self.silence and channels > 1:
            window = self._silenced(window, random)
        gain = (torch.randn(count, channels, 1, generator=random) * self.gain).exp()
        offset = torch.randn(count, channels, 1, generator=random) * self.offset
        level = torch.rand(count, 1, 1, generator=random) * self.noise
        noise = torch.randn(window.shape, generator=random) * level
        return window * gain + (offset + noise) * deviation

    def _move(self, window: Tensor, random: torch.Generator) -> Tensor:
        """Shift each window and change its speed, by linear interpolation between samples."""
        count, _, length = window.shape
        changed = torch.rand(count, 1, generator=random) < 0.5
        rate = 1 + (torch.rand(count, 1, generator=random) * 2 - 1) * self.speed * changed
        # Whole samples: a fraction would smooth high frequencies even at unchanged speed.
        shift = ((torch.rand(count, 1, generator=random) * 2 - 1) * self.shift * length).round()
        last = length - 1
        position = torch.arange(length) * rate + shift
        position = (last - (position % (2 * last) - last).abs()).clamp(0, last)
        lower = position.floor().long()
        fraction = (position - lower)[:, None, :]
        upper = (lower + 1).clamp(max=last)

        def take(index: Tensor) -> Tensor:
            return window.gather(2, index[:, None, :].expand_as(window))

        return take(lower) * (1 - fraction) + take(upper) * fraction

    def _turn(self, window: Tensor, random: torch.Generator) -> Tensor:
        """Turn each window's device; in raw units, so that gravity keeps its length."""
        turns = rotations(len(window), math.radians(self.orientation), random)
        turned = window.clone()
        for axes in self.axes:
            turned[:, axes] = turns @ window[:, axes]
        return turned

    def _silenced(self, window: Tensor, random: torch.Generator) -> Tensor:
        still = torch.rand(*window.shape[:2], 1, generator=random) < self.silence
        return torch.where(still, window.mean(2, keepdim=True), window)


def rotations(count: int, largest: float, random: torch.Generator) -> Tensor:
    """Rotations about random axes by random angles, float32 [count, 3, 3] (Rodrigues' formula).

    Args:
        count: how many.
        largest: angle in radians; angles are drawn evenly from 0 to it.
        random: source of axes and angles.
    """
    axis = torch.nn.functional.normalize(torch.randn(count, 3, generator=random), dim=1)
    angle = torch.rand(count, 1, 1, generator=random) * largest
    x, y, z = axis.unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).reshape(count, 3, 3)
    return torch.eye(3) + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)


TABULAR = Augmentation(gain=0.0, offset=0.3, noise=0.1, speed=0.0, shift=0.0)
"""Process values have levels of their own on every device, and a place in the window that means something; a
factor on a temperature would be nonsense."""


def default_variation(backbone: str, channels: Sequence[str]) -> Variation:
    """Return what suits the data that a backbone is for.

    Args:
        backbone: its name.
        channels: their names, which tell the axes of a sensor.
    """
    if backbone == "conv2d":
        return ImageAugmentation()
    return TABULAR if backbone == "mlp" else replace(Augmentation(), axes=axes_of(channels))
