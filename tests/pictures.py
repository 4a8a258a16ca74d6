"""Small pictures and image fleets for the tests, written as cameras and people write them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protocol.input_schema import ImageSpec, InputSchema

SCHEMA = InputSchema("image", ("grey",), 1.0, ("bright", "dark"), ImageSpec(8, 6))
FLEET = """\
[schema]
kind = "image"
channels = ["grey"]
classes = ["bright", "dark"]

[image]
height = 16
width = 12
"""
DEVICE = '\n[[device]]\nid = "{id}"\ndomain = "{domain}"\nrole = "{role}"\n'


def save(path: Path, pixels: NDArray[np.uint8]) -> Path:
    """Write one picture, uint8 [height, width] or [height, width, 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def shade(path: Path, level: int, height: int = 8, width: int = 6) -> Path:
    """Write a picture of one grey level."""
    return save(path, np.full((height, width), level, np.uint8))


def write_fleet(folder: Path, *, pictures: int = 12, sources: int = 2, edges: int = 1) -> Path:
    """Write devices with pictures of two kinds: a bright bar at the top, or at the bottom, on noise."""
    folder.mkdir(parents=True, exist_ok=True)
    devices = [(f"source{i}", "source") for i in range(sources)] + [
        (f"edge{i}", "edge") for i in range(edges)
    ]
    tables = [DEVICE.format(id=name, domain="camera", role=role) for name, role in devices]
    (folder / "fleet.toml").write_text(FLEET + "".join(tables))
    random = np.random.default_rng(0)
    for name, _ in devices:
        for index in range(pictures):
            for label, rows in (("bright", slice(0, 8)), ("dark", slice(8, 16))):
                pixels = random.integers(0, 80, (16, 12))
                pixels[rows] += 120
                save(folder / name / label / f"{index:03d}.png", pixels.astype(np.uint8))
    return folder
