"""Variations of windows that a backbone must not mind: mounting, gain, speed, start and noise.

Source and edge devices differ in exactly these, so the backbone sees them at pre-training. Those of pictures
are in image_augmentation.py.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

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


TABULAR = Augmentation(gain=0.0, offset=0.3, noise=0.1, speed=0.0, shift=0.0)
"""Process values have levels of their own on every device, and a place in the window that means something; a
factor on a temperature would be nonsense."""


def default_variation(backbone: str) -> Variation:
    """Return what suits the data that a backbone is for."""
    if backbone == "conv2d":
        return ImageAugmentation()
    return TABULAR if backbone == "mlp" else Augmentation()
