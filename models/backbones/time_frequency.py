"""A backbone for vibration and motion: convolutions over time beside convolutions over spectra.

window -> normalise -> stem (3 strided convolutions) -> pool (mean, deviation) -> blocks.0.time
                    -> log power of overlapping segments, less its mean
                       -> spectrum (2 convolutions) -> pool                    -> blocks.0.frequency
both views -> blocks.1 -> head

A broken gear shows in the spectrum, whatever the gain of the sensor; what a person does shows in the course
and the level of the signal. The views meet only behind a layer of their own: where they shared it, devices
unlike the source devices were worse off (docs/backbones.md).
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.backbones.backbone import Backbone, check_kind
from models.backbones.conv1d import WIDTH, convolution, pooled, stem, strides_for
from models.errors import AdapterError
from protocol.input_schema import InputSchema, WindowSpec

SHORTEST = 64
"""Fewest rows per window that make a spectrum worth having: with 32 it did harm (docs/backbones.md)."""
FLOOR = 1e-4
"""Power, relative to that of the channel on the source devices, below which everything is alike."""


class TimeFrequencyBackbone(Backbone):
    """Adaptable layers are `blocks.0` (both views side by side), `blocks.1`, `head` and those of the stem."""

    NAME = "time-frequency"
    ADAPTER = "bottleneck"
    LAYERS: ClassVar = {
        "bottleneck": ("blocks.0", "blocks.1"),
        "lora": ("blocks.0.time.0", "blocks.0.frequency.0", "blocks.1.0"),
    }
    RANKS: ClassVar = {"bottleneck": 16, "lora": 16}

    basis: Tensor

    def __init__(self, channels: int, classes: int, length: int) -> None:
        super().__init__(channels, 1)
        self.channels = channels
        # 7 to 15 segments that overlap by half remain for the pooling, more in windows above 1,024 rows.
        self.segment = 1 << max(4, min(8, int(math.log2(length / 4))))
        self.bins = self.segment // 2
        # It follows from the segment's length: no need to keep it with the weights.
        self.register_buffer("basis", fourier_basis(self.segment), persistent=False)
        self.stem = stem(channels, strides_for(length))
        self.spectrum = nn.Sequential(
            *convolution(channels * self.bins, WIDTH // 2, 1), *convolution(WIDTH // 2, WIDTH // 2, 3)
        )
        self.blocks = nn.ModuleList([Views(), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())])
        self.head = nn.Linear(WIDTH, classes)

    @classmethod
    def build(cls, schema: InputSchema, window: WindowSpec) -> "TimeFrequencyBackbone":
        """Choose strides and segments for a schema's windows.

        Raises:
            AdapterError: pictures, or windows too short for a spectrum.
        """
        check_kind(cls, schema, images=False)
        if window.length < SHORTEST:
            raise AdapterError(
                f"backbone {cls.NAME}: window length: expected at least {SHORTEST} rows, got {window.length}",
                "use longer windows or --backbone conv1d, or export a module of your own",
            )
        return cls(len(schema.channels), len(schema.classes), window.length)

    def forward(self, window: Tensor) -> Tensor:
        """Map windows, float32 [batch, channels, length], to logits, float32 [batch, classes]."""
        normalised = self.normalised(window)
        time = pooled(self.stem(normalised))
        frequency = pooled(self.spectrum(self.spectra(normalised)))
        features = torch.cat([time, frequency], 1)
        for block in self.blocks:
            features = block(features)
        logits: Tensor = self.head(features)
        return logits

    def spectra(self, window: Tensor) -> Tensor:
        """Log power, float32 [batch, channels * bins, segments], less its mean over each channel's window.

        Without the mean a gain, which differs from sensor to sensor, changes nothing.
        """
        count, _, length = window.shape
        parts = nn.functional.conv1d(window.reshape(-1, 1, length), self.basis, stride=self.segment // 2)
        power = parts[:, : self.bins].square() + parts[:, self.bins :].square()
        logarithm = (power + FLOOR).log()
        centred = logarithm - logarithm.mean((1, 2), keepdim=True)
        return centred.reshape(count, self.channels * self.bins, -1)


class Views(nn.Module):
    """A layer for each view, side by side; float32 [batch, 2 * WIDTH] -> [batch, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH // 2), nn.ReLU())
        self.frequency = nn.Sequential(nn.Linear(WIDTH, WIDTH // 2), nn.ReLU())

    def forward(self, features: Tensor) -> Tensor:
        """Map the pooled features of both views, time first."""
        return torch.cat([self.time(features[:, :WIDTH]), self.frequency(features[:, WIDTH:])], 1)


def fourier_basis(segment: int) -> Tensor:
    """Cosines, then sines, under a Hann window, float32 [2 * (segment // 2), 1, segment].

    A Fourier transform as a convolution: every runtime has one. The mean of a segment is left out.
    """
    time = torch.arange(segment, dtype=torch.float64)
    frequency = torch.arange(1, segment // 2 + 1, dtype=torch.float64)[:, None]
    angle = 2 * math.pi * frequency * time / segment
    hann = torch.sin(math.pi * (time + 0.5) / segment).square()
    # A sine of deviation 1 has a power of about 1, whatever the segment.
    scale = math.sqrt(2) / float(hann.sum())
    return (torch.cat([angle.cos(), angle.sin()]) * hann * scale)[:, None, :].float()
