"""What a run left on disk, and how it differs from the run in which nothing was killed."""

import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.config import STORE_FILE
from server import config as server_config
from server.errors import ServerError
from server.replay import SAME, replay_all
from server.store import Store
from simulation.experiment import SERVER_CONFIG

RECOVERIES = {
    "rounds_resumed": r"resumed round=\d+",
    "duplicate_receipts": r"update duplicate",
    "keyframes_fetched": r"fetching its keyframe",
    "disconnections": r"disconnected: ",
}
"""What the programs' logs say when they had to recover: whether the kills hit where it matters."""


@dataclass(frozen=True)
class Remains:
    """Of a run that has ended."""

    updates: dict[tuple[str, int], bytes]
    """SHA-256 of the journalled envelope by device and round."""
    releases: dict[int, tuple[bytes, int, int]]
    """(SHA-256, updates counted, total weight) by number."""
    held: dict[str, bytes]
    """SHA-256 of the release that each device holds."""
    outbox: frozenset[tuple[str, int]]
    """Device and round of each update that has no receipt."""
    answers: dict[tuple[str, int], int]
    """How often each device says that it made an update for a round."""
    receipts: dict[tuple[str, int], tuple[str, ...]]
    """Verdicts of the receipts that cleared an outbox."""
    replays: dict[int, str] = field(default_factory=dict)
    """What the server's own replay found by release; "": the same bits."""
    recoveries: dict[str, int] = field(default_factory=dict)
    """How often each of RECOVERIES happened."""


@dataclass(frozen=True)
class Verdict:
    """How a run differs from the undisturbed one."""

    lost: tuple[str, ...] = ()
    """Updates that are not counted, or whose device does not know that they are."""
    double: tuple[str, ...] = ()
    """Updates that are counted, or were made, more than once."""
    different: tuple[str, ...] = ()
    """Releases, and updates, that have other bytes than those of the undisturbed run."""
    replayed_otherwise: tuple[str, ...] = ()
    """Releases that the run's own journal does not give, or not any more."""
    failed: str = ""
    """Why the run did not come to its end."""

    @property
    def good(self) -> bool:
        """Whether there is no difference."""
        return not (self.lost or self.double or self.different or self.replayed_otherwise or self.failed)

    def __str__(self) -> str:
        failed = (f"failed: {self.failed}",) if self.failed else ()
        texts = [
            ("lost", self.lost),
            ("double", self.double),
            ("different", self.different),
            ("replayed otherwise", self.replayed_otherwise),
        ]
        return "; ".join((*(f"{name}: {', '.join(what)}" for name, what in texts if what), *failed)) or "good"


def read_remains(directory: Path) -> Remains:
    """Read what a run left; all its programs have ended.

    Args:
        directory: of the run, as simulation/experiment.py lays it out.
    """
    database = directory / "server" / "data" / "server.sqlite"
    devices = sorted(path.name for path in (directory / "devices").iterdir())
    held: dict[str, bytes] = {}
    outbox: set[tuple[str, int]] = set()
    answers: dict[tuple[str, int], int] = {}
    receipts: dict[tuple[str, int], tuple[str, ...]] = {}
    for device in devices:
        store = directory / "devices" / device / "state" / STORE_FILE
        held.update((device, base) for (base,) in _rows(store, "SELECT value FROM facts WHERE name = 'base'"))
        outbox |= {(device, number) for (number,) in _rows(store, "SELECT round FROM outbox")}
        log = (directory / "devices" / device / "agent.log").read_text("utf-8", "replace")
        for number in re.findall(r"round=(\d+) update=\d+ bytes", log):
            answers[device, int(number)] = answers.get((device, int(number)), 0) + 1
        for number, word in re.findall(r"round=(\d+) update ([a-z]+)", log):
            receipts[device, int(number)] = (*receipts.get((device, int(number)), ()), word)
    logs = [directory / "server" / "server.log"]
    logs += [directory / "devices" / device / "agent.log" for device in devices]
    texts = [path.read_text("utf-8", "replace") for path in logs]
    return Remains(
        {
            (device, number): sha
            for device, number, sha in _rows(database, "SELECT device, round, sha256 FROM updates")
        },
        {
            number: (sha, updates, weight)
            for number, sha, updates, weight in _rows(
                database, "SELECT number, sha256, updates, weight FROM releases"
            )
        },
        held,
        frozenset(outbox),
        answers,
        receipts,
        _replays(directory / "server"),
        {name: sum(len(re.findall(pattern, text)) for text in texts) for name, pattern in RECOVERIES.items()},
    )


def compare(run: Remains, undisturbed: Remains) -> Verdict:
    """Hold a run against the undisturbed one."""
    refused = {key for key, words in run.receipts.items() if set(words) - {"counted", "duplicate"}}
    missing = undisturbed.updates.keys() - run.updates.keys()
    lost = [f"{_name(key)} is not in the journal" for key in sorted(missing)]
    lost += [f"{_name(key)} has no receipt" for key in sorted(run.outbox - missing)]
    lost += [f"{_name(key)} got a receipt that it is not counted" for key in sorted(refused - missing)]
    double = [f"{_name(key)} was made {times} times" for key, times in run.answers.items() if times > 1]
    double += [f"{_name(key)} was not due" for key in sorted(run.updates.keys() - undisturbed.updates.keys())]
    different = [
        f"update of {_name(key)}"
        for key, sha256 in run.updates.items()
        if undisturbed.updates.get(key, sha256) != sha256
    ]
    for number in sorted(undisturbed.releases.keys() & run.releases.keys()):
        found, due = run.releases[number], undisturbed.releases[number]
        text = (
            f"release {number} counts {found[1]} updates of weight {found[2]}, due are {due[1]} of {due[2]}"
        )
        # A release of fewer updates says nothing new where the journal lacks them.
        if found[1:] < due[1:] and not any(key[1] == number for key in missing):
            lost.append(text)
        elif found[1:] > due[1:]:
            double.append(text)
        if found[0] != due[0]:
            different.append(f"release {number}")
    odd = undisturbed.releases.keys() ^ run.releases.keys()
    different += [f"release {number} is missing, or was not due" for number in sorted(odd)]
    devices = (name for name, sha256 in undisturbed.held.items() if run.held.get(name) != sha256)
    different += [f"{name} holds another release" for name in devices]
    replayed = [f"release {number}: {reason}" for number, reason in sorted(run.replays.items()) if reason]
    replayed += [
        f"release {number}: was not replayed" for number in sorted(run.releases.keys() - run.replays.keys())
    ]
    return Verdict(tuple(lost), tuple(double), tuple(different), tuple(replayed))


def _replays(server: Path) -> dict[int, str]:
    """Recompute every release of a run from its journal, as `graftwork-server replay all` does."""
    config = server_config.load(server / SERVER_CONFIG)
    store = Store(Path(config.data_directory), config.database)
    try:
        return {
            found.release: "" if found.verdict == SAME else f"{found.verdict}: {found.reason}"
            for found in replay_all(store, config.federation)
        }
    except ServerError as error:
        return {-1: str(error)}
    finally:
        store.close()


def _name(key: tuple[str, int]) -> str:
    return f"{key[0]} round {key[1]}"


def _rows(path: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(statement).fetchall()
