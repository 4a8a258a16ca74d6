"""The fleet and the undisturbed run that the failures are compared with."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.plant import Plant, write_small_fleet


@dataclass(frozen=True)
class Reference:
    """How a run ends when nothing happens."""

    release: str
    updates: dict[int, dict[str, bytes]]


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_fleet(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, fleet: Path) -> Reference:
    with Plant(tmp_path_factory.mktemp("reference"), fleet).running() as plant:
        release = plant.finish()
        return Reference(release, {number: plant.updates(number) for number in (1, 2)})
