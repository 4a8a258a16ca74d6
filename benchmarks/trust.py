"""The attack table: does anything get past identities, signatures, seals and roots; and what do they cost?

    python -m benchmarks.trust [--quick] [--seed S] [--devices N] [--kills K] [--json]

Attacks are played against real mosquitto with TLS, a real server and real agents (attack_stage.py), and where
it is about what one device believes, against a device in this process (attack_trial.py). Beside each an
honest control has to work. Then a fleet of N devices enrols, K times anew; server or one of the brokers is
killed with SIGKILL on the way (enrolment.py). `--quick` leaves that out.

JSON: `attacks`, `succeeded`; `logged`, the share of those that could be noticed at all for which the log of
somebody honest has the reason, and the device where one was shown; `logged_reason_only`, the share for which
it has the reason alone; `passive`, those that nobody could notice. `revocation_seconds`: the longest from
`devices revoke` to the end of the live session. `crypto_ms_per_update`: CPU time to sign, seal, open and
verify 64 KiB, median; `bytes_added`: what signature and seal add to it. `enrolled`: devices with a working
identity, of the worst run; `enrolment_seconds`: of the slowest.
"""

import argparse
import json
import logging
import secrets
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import enrolment
from benchmarks.attack_book import Result, summary
from benchmarks.attack_client import AttackError
from benchmarks.attack_connections import CONNECTIONS
from benchmarks.attack_device import WORDS
from benchmarks.attack_identity import IDENTITY
from benchmarks.attack_packages import PACKAGES
from benchmarks.attack_retained import RETAINED
from benchmarks.attack_revocation import REVOCATION
from benchmarks.attack_stage import MACHINES, PACKAGE, Stage
from benchmarks.attack_trial import Trial
from benchmarks.attack_updates import UPDATES
from protocol import cbor, records
from protocol.errors import ProtocolError
from protocol.messages import Update, sign_message, verify_message
from protocol.sealing import SealingKey, unseal
from protocol.signing import PrivateKey
from protocol.topics import Topics
from server.broker import find_mosquitto

log = logging.getLogger(__name__)

ON_TRIAL = (WORDS, PACKAGES)
ON_STAGE = (CONNECTIONS, UPDATES, RETAINED, IDENTITY, REVOCATION)
"""In this order: later groups change what the stage holds."""
NAMES = tuple(name for group in (*ON_TRIAL, *ON_STAGE) for name in group.names)
UPDATE_BYTES = 64 * 1024
REPETITIONS = 200
DEVICES, KILLS = 1000, 3
TABLE_WIDTH = 140


@dataclass(frozen=True)
class Played:
    """The whole table."""

    results: tuple[Result, ...]
    revocation_seconds: float
    """The longest."""


def play(directory: Path, note: Callable[[Result], None] = lambda _: None) -> Played:
    """Play all attacks.

    Args:
        directory: for everything that the programs write.
        note: told each result as it comes.

    Raises:
        AttackError: an honest control failed although no attack succeeded.
    """
    results: list[Result] = []

    def keep(result: Result) -> None:
        results.append(result)
        note(result)

    stage = Stage(directory / "stage")
    try:
        _play_all(stage, directory / "trial", keep)
    except (AttackError, ProtocolError) as error:
        if not any(result.finding.succeeded for result in results):
            raise
        log.error("what an attack left behind ends the table here: %s", error)
    return Played(tuple(results), max(stage.revocation_seconds, default=0.0))


def _play_all(stage: Stage, directory: Path, keep: Callable[[Result], None]) -> None:
    trial = Trial(directory, stage.homes[MACHINES[0]] / "spool", PACKAGE.read_bytes())
    try:
        for of_trial in ON_TRIAL:
            of_trial.play(trial, keep)
    finally:
        trial.close()
    with stage:
        for of_stage in ON_STAGE:
            of_stage.play(stage, keep)


def cost() -> tuple[float, int]:
    """CPU milliseconds of an update of 64 KiB at both ends, median; and bytes that are added to it."""
    key, sealing, topic = PrivateKey.generate(), SealingKey.generate(), Topics("plant").up("pump-1", "update")
    update = Update(7, bytes(8), 40, bytes(6), secrets.token_bytes(UPDATE_BYTES))
    spent, sealed = [], b""
    for _ in range(REPETITIONS):
        started = time.process_time()
        sealed = sealing.public.seal(sign_message(update, key, topic), topic, update.round)
        opened = unseal(sealed, [sealing], topic, limit=1 << 24)
        verify_message(Update, opened.plaintext, key.public, topic)
        spent.append(time.process_time() - started)
    plain = cbor.encode(records.to_numbered(update))
    return statistics.median(spent) * 1000, len(sealed) - len(plain)


def enrol(
    directory: Path, kills: Iterable[enrolment.Kill], devices: int, note: Callable[[int], None]
) -> list[enrolment.Outcome]:
    """Let fleets of `devices` enrol, each at a site of its own."""
    outcomes = []
    for number, kill in enumerate(kills):
        folder = directory / f"enrolment-{number}"
        folder.mkdir(parents=True)
        with enrolment.Site(folder) as site:
            names = [f"device-{index:04d}" for index in range(devices)]
            outcomes.append(enrolment.run(site, names, kill, note=note))
    return outcomes


def main() -> int:
    """Play, measure, print; 1 if an attack succeeded or a device has no identity."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="without the enrolment of a fleet")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--devices", type=int, default=DEVICES, help=f"that enrol (default: {DEVICES})")
    parser.add_argument("--kills", type=int, default=KILLS, help=f"fleets, one kill each (default: {KILLS})")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    options = parser.parse_args()
    if find_mosquitto() is None:
        parser.error("mosquitto is not installed; on Debian: apt install mosquitto")
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("agent").propagate = False  # what a device refuses stands in the table
    # The programs have sessions of their own: whoever ends this one must let it end them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="graftwork-trust-") as scratch,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task("attacks", total=len(NAMES))

        def note(result: Result) -> None:
            if result.finding.succeeded:
                progress.console.print(f"succeeded: {result.name}: {result.finding.detail}", highlight=False)
            progress.update(task, advance=1, description=result.group)

        played = play(Path(scratch), note)
        milliseconds, added = cost()
        outcomes: list[enrolment.Outcome] = []
        if not options.quick:
            kills = [enrolment.make_kill(options.seed, k, options.devices) for k in range(options.kills)]
            enrolling = progress.add_task("enrolment", total=options.devices)
            outcomes = enrol(
                Path(scratch), kills, options.devices, lambda n: progress.update(enrolling, completed=n)
            )
    found = {
        **summary(played.results),
        "revocation_seconds": round(played.revocation_seconds, 2),
        "crypto_ms_per_update": round(milliseconds, 2),
        "bytes_added": added,
        **_of_fleets(outcomes),
        "seed": options.seed,
        "seconds": round(time.monotonic() - started, 1),
    }
    if not options.json:
        console = Console()
        console.width = max(console.width, TABLE_WIDTH)
        console.print(_table(played.results))
        for outcome in outcomes:
            text = f"{outcome.enrolled} of {outcome.devices} enrolled in {outcome.seconds:.1f} s"
            console.print(f"{text}; killed: {outcome.kill}", highlight=False)
    for problem in [text for outcome in outcomes for text in outcome.problems][:20]:
        print(problem, file=sys.stderr)
    print(json.dumps(found))
    whole = len(played.results) == len(NAMES)
    return int(bool(found["succeeded"]) or not whole or any(outcome.problems for outcome in outcomes))


def _of_fleets(outcomes: list[enrolment.Outcome]) -> dict[str, Any]:
    if not outcomes:
        return {}
    return {
        "enrolled": min(outcome.enrolled for outcome in outcomes),
        "enrolment_devices": outcomes[0].devices,
        "enrolment_seconds": round(max(outcome.seconds for outcome in outcomes), 1),
        "enrolment_kills": [str(outcome.kill) for outcome in outcomes],
    }


def _table(results: Iterable[Result]) -> Table:
    table = Table("attack", "tried", "succeeded", "who noticed", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    group = ""
    for result in results:
        if result.group != group:
            group = result.group
            table.add_section()
            table.add_row(f"[bold]{group}[/bold]")
        trace = result.finding.trace
        whom = trace.device or ("-" if result.nameless else "not by name")
        noticed = f"{trace.where}: {whom}" if trace.where else "nobody"
        won = "[red]YES[/red]" if result.finding.succeeded else "no"
        table.add_row(result.name, result.tried, won, "nobody can" if result.passive else noticed)
    return table


if __name__ == "__main__":
    sys.exit(main())
