"""What boot tests share: the folder of images, and that they run only when they are asked for."""

import os
from pathlib import Path

import pytest

from simulation.firmware_site import Images


@pytest.fixture(scope="session")
def directory() -> Path:
    """Images are kept here from run to run; what is up to date is not built again."""
    if not os.environ.get("GRAFTWORK_BOOT"):
        pytest.skip("boots virtual machines for half an hour: make test-firmware")
    return Path(os.environ.get("GRAFTWORK_FIRMWARE_DIRECTORY", "runs/firmware")).resolve()


@pytest.fixture(scope="session")
def images(directory: Path) -> Images:
    return Images(directory)
