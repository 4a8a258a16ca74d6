"""Variations of pictures that a backbone must not mind: light, contrast, place, size, tilt and noise.

No mirroring: digits, signs and machines have a right way round.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class ImageAugmentation:
    """How far pictures are varied; every strength is 0 for none."""

    brightness: float = 0.5
    """Standard deviation of the constant, in standard deviations of the channel; one for all channels."""
    contrast: float = 0.3
    """Standard deviation of the natural logarithm of the factor around each picture's mean."""
    noise: float = 0.2
    """Largest standard deviation of white noise, in the same unit; each picture draws its own."""
    shift: float = 0.08
    """Largest shift, as a share of height and width."""
    zoom: float = 0.12
    """Largest relative change of size, in each direction by itself."""
    tilt: float = 0.08
    """Largest rotation, in radians."""

    def __call__(self, window: Tensor, deviation: Tensor, random: torch.Generator) -> Tensor:
        """Vary a batch.

        Args:
            window: float32 [batch, channels, height, width].
            deviation: float32 [channels, 1, 1], standard deviation of each channel.
            random: source of the variation.

        Returns:
            float32 [batch, channels, height, width]; not confined to 0 to 1.
        """
        count = len(window)
        window = self._move(window, random)
        centre = window.mean((1, 2, 3), keepdim=True)
        contrast = (torch.randn(count, 1, 1, 1, generator=random) * self.contrast).exp()
        light = torch.randn(count, 1, 1, 1, generator=random) * self.brightness
        level = torch.rand(count, 1, 1, 1, generator=random) * self.noise
        noise = torch.randn(window.shape, generator=random) * level
        return centre + (window - centre) * contrast + (light + noise) * deviation

    def _move(self, window: Tensor, random: torch.Generator) -> Tensor:
        """Shift, scale and tilt each picture; what comes in from outside is its mirrored border."""
        count, _, height, width = window.shape

        def uniform(columns: int) -> Tensor:
            return torch.rand(count, columns, generator=random) * 2 - 1

        zoom, shift, angle = (
            1 + uniform(2) * self.zoom,
            uniform(2) * 2 * self.shift,
            uniform(1)[:, 0] * self.tilt,
        )
        # Coordinates run from -1 to 1 on both sides, so a rotation needs the ratio of the sides.
        ratio = height / width
        matrix = torch.stack(
            [
                torch.stack([zoom[:, 0] * angle.cos(), -angle.sin() * ratio, shift[:, 0]], 1),
                torch.stack([angle.sin() / ratio, zoom[:, 1] * angle.cos(), shift[:, 1]], 1),
            ],
            1,
        )
        grid = functional.affine_grid(matrix, list(window.shape), align_corners=False)
        return functional.grid_sample(window, grid, padding_mode="reflection", align_corners=False)
