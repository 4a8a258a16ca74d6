"""The firmware demo: from a bare host to a device that joined, was updated, and went back by itself.

What the device says of its updates is read from the server's database, every word of it.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from server.store import Store
from simulation.firmware_site import DEVICE, MOUNT_STICK, ON_STICK, Images, Site, Step, make_stick

GOOD, BETTER, BROKEN = "1.0.0", "1.1.0", "1.2.0"
_SPOOL = "/data/graftwork/spool"


def run(directory: Path, console: Console) -> dict[str, Any]:
    """Run the demo in a folder; returns the figures of its last line.

    Raises:
        SimulationError: a step failed; with what the program said.
    """
    started = time.monotonic()
    images = Images(directory)
    for version in (GOOD, BETTER):
        console.print(f"building version {version}")
        images.build(version)
    console.print(f"building version {BROKEN} (with a broken agent)")
    images.build(BROKEN, overlay=images.broken_agent())
    bundles = {f"{version}.raucb": images.bundle(version) for version in (BETTER, BROKEN)}
    built = time.monotonic() - started
    site = Site(directory)
    site.provision(directory / "images" / GOOD / "image.img")
    recordings = {f"spool/{path.name}": path for path in site.recordings()}
    stick = make_stick(directory / "stick.img", {**recordings, **bundles})
    joined = (directory / "joined").resolve()
    healthy = joined.with_name("healthy")
    for mark in (joined, healthy):
        mark.unlink(missing_ok=True)
    words: list[str] = []

    def tell(text: str) -> None:
        console.print(f"  the server knows: {text}", style="green", highlight=False)

    def watch(store: Store) -> None:
        if not joined.exists() and _rounds(store):
            joined.touch()
            tell(f"{DEVICE} took part in a round")
        for row in store.devices():
            word = row["firmware_update"] or f"runs {row['firmware']}"
            if row["firmware"] and (not words or words[-1] != word):
                words.append(word)
                tell(f"{DEVICE} {word}")
                if word == f"healthy {BETTER}":
                    healthy.touch()

    with site:
        site.boot(
            _steps(joined, healthy), stick, watch,
            lambda line: console.print(line[:110], highlight=False, markup=False),
        )  # fmt: skip
    with contextlib.closing(site.store()) as store:
        [row] = store.devices()
        rounds = _rounds(store)
    return {
        "built_seconds": round(built, 1),
        "joined": bool(rounds),
        "rounds": rounds,
        "reported": words,
        "firmware": row["firmware"],
        "update": row["firmware_update"],
        "false_success": any(word == f"healthy {BROKEN}" for word in words),
        "seconds": round(time.monotonic() - started, 1),
    }


def _rounds(store: Store) -> int:
    """Rounds with an update of the device in them."""
    return sum(row["outcome"] == "released" and bool(row["counted"]) for row in store.rounds())


def _steps(joined: Path, healthy: Path) -> list[Step]:
    """What happens to the device: it joins, is updated, and goes back from a broken version by itself.

    It goes on once the server knows: a device says what it is, not what it was meanwhile.
    """
    update = f"graftwork-firmware device update --no-reboot {ON_STICK}"
    return [
        {"boot": "A"},
        {
            "run": f"{MOUNT_STICK} && mkdir -p {_SPOOL} && cp {ON_STICK}/spool/* {_SPOOL}/ && "
            f"chown -R graftwork: {_SPOOL}"
        },
        {"host": f"until [ -e '{joined}' ]; do sleep 1; done", "seconds": 900.0},
        {"run": f"{update}/{BETTER}.raucb"},
        {"reboot": "B"},
        {"run": "graftwork-firmware device status", "contains": f"healthy {BETTER}"},
        {"host": f"until [ -e '{healthy}' ]; do sleep 1; done", "seconds": 300.0},
        {"run": f"{MOUNT_STICK} && {update}/{BROKEN}.raucb"},
        {"send": "systemctl reboot"},
        {"loader": "A"},
        {"loader": "A"},
        {"loader": "A"},
        {"boot": "B"},
        {"run": "graftwork-firmware device status", "contains": f"rolled back from {BROKEN} to {BETTER}"},
        {"run": "sleep 15"},
    ]
