"""A device that comes when others have long begun."""

import hashlib
import re
import signal
from pathlib import Path

import pytest

from agent.config import STORE_FILE
from agent.store import Store
from tests.system.plant import PACKAGE, Plant, needs_mosquitto, until

pytestmark = [pytest.mark.system, needs_mosquitto]


def test_a_device_joins_after_two_rounds(tmp_path: Path, fleet: Path) -> None:
    plant = Plant(tmp_path, fleet, rounds=0, minimum_devices=2)
    first, _, late = plant.names
    with plant.running(late=(late,)):
        until(lambda: plant.store.releases() and plant.store.releases()[0]["number"] >= 2, "release 2")
        plant.signal(first, signal.SIGSTOP)  # no further release comes while the newcomer catches up
        plant.join(late)
        state = until(lambda: caught_up(plant, late), "the newcomer holds the newest release")
        assert state >= 2
        plant.signal(first, signal.SIGCONT)
        numbers = until(
            lambda: [row["number"] for row in plant.store.rounds() if late in plant.updates(row["number"])],
            "a round counts the newcomer",
        )
        assert min(numbers) > 2
    store = Store(plant.states[late] / STORE_FILE)
    assert store.state().package == hashlib.sha256(PACKAGE.read_bytes()).digest()
    store.close()
    taken = re.findall(r"release=(\d+) windows", plant.agent(late).log_file.read_text("utf-8"))
    assert int(taken[0]) >= 2


def caught_up(plant: Plant, name: str) -> int:
    newest = plant.store.releases()[0]["number"]
    row = next(row for row in plant.store.devices() if row["id"] == name)
    return int(row["release"]) if row["online"] and row["release"] == newest else 0
