"""Small fleet directories, written as users write them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FLEET = """\
[schema]
kind = "timeseries"
channels = ["vibration", "speed"]
sample_rate_hz = 100.0
classes = ["slow", "quick"]

[window]
length = 64
stride = 32
"""
DEVICE = '\n[[device]]\nid = "{id}"\ndomain = "{domain}"\nrole = "{role}"\n'
CHANNELS = ("vibration", "speed")


def write_fleet(folder: Path, *, rows: int = 1600, sources: int = 2) -> Path:
    """Write source devices with two kinds of oscillation, and an edge device with an unreadable recording."""
    folder.mkdir(parents=True, exist_ok=True)
    devices = [DEVICE.format(id=f"source{i}", domain="a", role="source") for i in range(sources)]
    devices.append(DEVICE.format(id="edge0", domain="b", role="edge"))
    (folder / "fleet.toml").write_text(FLEET + "".join(devices))
    random = np.random.default_rng(0)
    for index in range(sources):
        for label, frequency in (("slow", 0.05), ("quick", 0.2)):
            wave = np.sin(2 * np.pi * frequency * np.arange(rows) + index) * (1 + index)
            samples = np.stack([wave, np.full(rows, 3.0)], 1) + random.normal(0, 0.1, (rows, 2))
            write_recording(folder / f"source{index}" / f"{label}.csv", samples, [label] * rows)
    (folder / "edge0").mkdir()
    (folder / "edge0" / "private.csv").write_text("not to be read")
    return folder


def write_recording(file: Path, samples: NDArray[np.float64], labels: list[str]) -> None:
    """Write one CSV recording with its labels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join([*CHANNELS, "label"])]
    lines += [
        ",".join([*(f"{v:.5f}" for v in row), label]) for row, label in zip(samples, labels, strict=True)
    ]
    file.write_text("\n".join(lines) + "\n")
