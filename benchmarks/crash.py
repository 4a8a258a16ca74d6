"""Kills agents, server and broker at hundreds of moments: is anything lost, or counted twice?

    python -m benchmarks.crash [--points N] [--seed S] [--point K] [--json]

A small federation of real processes (mosquitto, a server, three agents, three rounds) runs once undisturbed
and once per point; a point kills processes with SIGKILL after an event and starts them again
(`crash_points.py`). Every run must end with the same releases, made of the same updates, each counted once,
and the journal that it leaves must give these releases again.
A run that does not is kept in `--directory`, and `--point K` repeats it.

Measured 2026-11-23 on 2 shared x86-64 cores: see docs/benchmarks.md.
"""

import argparse
import contextlib
import json
import shutil
import signal
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.crash_points import EVENTS, VICTIMS, Point, make_point
from benchmarks.crash_run import RunError, run
from benchmarks.crash_template import make_template
from benchmarks.crash_verdict import RECOVERIES, Remains, Verdict, compare, read_remains
from server.broker import find_mosquitto
from server.errors import ServerError

POINTS = 200
WORKERS = 2
TABLE_WIDTH = 120


@dataclass(frozen=True)
class Result:
    """What became of a point."""

    point: Point
    verdict: Verdict
    seconds: float
    recoveries: Mapping[str, int] = field(default_factory=dict)
    """What the programs had to do about it: see crash_verdict.RECOVERIES."""
    replays: int = 0
    """Releases that were recomputed from the journal that the run left."""


def main() -> int:
    """Run the matrix; print a table and JSON; 1 when any point failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=POINTS, help=f"how many points (default: {POINTS})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--point", type=int, help="only this one")
    parser.add_argument(
        "--directory", type=Path, default=Path("runs/benchmarks/crash"), help="for runs that failed"
    )
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    options = parser.parse_args()
    if find_mosquitto() is None:
        parser.error("mosquitto is not installed; on Debian: apt install mosquitto")
    # The programs have sessions of their own: whoever ends this one must let it end them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    numbers = range(options.points) if options.point is None else [options.point]
    points = [make_point(options.seed, number) for number in numbers]
    started = time.monotonic()
    columns = (TextColumn("kill -9"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True)) as progress:
        task = progress.add_task("undisturbed run", total=len(points))
        bad = 0

        def note(result: Result) -> None:
            nonlocal bad
            if not result.verdict.good:
                bad += 1
                progress.console.print(f"{result.point}\n    {result.verdict}", highlight=False, markup=False)
            progress.update(task, advance=1, description=f"{bad} failed")

        results = run_points(points, options.directory, note)
    if not options.json:
        console = Console()
        console.width = max(console.width, TABLE_WIDTH)
        console.print(_table(results))
    print(json.dumps(report(results, options.seed, time.monotonic() - started)))
    return int(any(not result.verdict.good for result in results))


def run_points(points: Iterable[Point], directory: Path, note: Callable[[Result], None]) -> list[Result]:
    """Run points, two at a time, each against one undisturbed run.

    Args:
        points: of the matrix.
        directory: where runs that failed are kept; earlier ones of the same points are replaced.
        note: told each result as it comes.

    Returns:
        The results in the order of the points' numbers.

    Raises:
        RunError: the undisturbed run did not come to its end, or its journal gives other releases.
    """
    stopping = threading.Event()
    with tempfile.TemporaryDirectory(prefix="graftwork-crash-") as scratch:
        place = Path(scratch)
        template = make_template(place)
        run(template, place / "undisturbed", None, stopping)
        undisturbed = read_remains(place / "undisturbed")
        itself = compare(undisturbed, undisturbed)
        if not itself.good:
            raise RunError(f"the undisturbed run: {itself}")

        def one(point: Point) -> Result:
            remains: Remains | None = None
            name, started = f"seed-{point.seed}-point-{point.number}", time.monotonic()
            try:
                run(template, place / name, point, stopping)
                remains = read_remains(place / name)
                verdict = compare(remains, undisturbed)
            except (RunError, ServerError) as error:
                verdict = Verdict(failed=str(error))
                with contextlib.suppress(
                    OSError, sqlite3.Error
                ):  # it may have ended before there was anything
                    remains = read_remains(place / name)
                    verdict = replace(compare(remains, undisturbed), failed=str(error))
            shutil.rmtree(directory / name, ignore_errors=True)
            if verdict.good:
                shutil.rmtree(place / name)
            else:
                shutil.copytree(place / name, directory / name)
            seconds = time.monotonic() - started
            if remains is None:
                return Result(point, verdict, seconds)
            return Result(point, verdict, seconds, remains.recoveries, len(remains.replays))

        with ThreadPoolExecutor(WORKERS) as pool:
            futures: list[Future[Result]] = [pool.submit(one, point) for point in points]
            try:
                for future in as_completed(futures):
                    note(future.result())
            except BaseException:
                stopping.set()  # Ctrl-C: end the processes of the runs in progress
                pool.shutdown(cancel_futures=True)
                raise
    return sorted((future.result() for future in futures), key=lambda result: result.point.number)


def report(results: list[Result], seed: int, seconds: float) -> dict[str, Any]:
    """Sum up: `lost` and `double` in updates, `different_releases` in runs, `replays` in releases."""
    verdicts = [result.verdict for result in results]
    return {
        "points": len(results),
        "lost": sum(len(verdict.lost) for verdict in verdicts),
        "double": sum(len(verdict.double) for verdict in verdicts),
        "different_releases": sum(
            bool(verdict.different or verdict.replayed_otherwise) for verdict in verdicts
        ),
        "replays": sum(result.replays for result in results),
        "replays_different": sum(len(verdict.replayed_otherwise) for verdict in verdicts),
        "failed": sum(not verdict.good for verdict in verdicts),
        "seed": seed,
        "seconds": round(seconds, 1),
        "seconds_per_point": round(statistics.median(result.seconds for result in results), 2),
        "longest_seconds": round(max(result.seconds for result in results), 1),
        "kills": sum(len(blow.processes) for result in results for blow in result.point.blows),
        **{name: sum(result.recoveries.get(name, 0) for result in results) for name in RECOVERIES},
        "failures": [
            {
                "point": result.point.number,
                "seed": seed,
                "what": str(result.point),
                "found": str(result.verdict),
            }
            for result in results
            if not result.verdict.good
        ],
    }


def _table(results: list[Result]) -> Table:
    """Points by victims and event, those that failed behind them."""
    table = Table(
        "killed",
        *EVENTS,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="points, failed ones in brackets",
    )
    for victims in VICTIMS:
        row = []
        for kind in EVENTS:
            here = [r for r in results if r.point.victims == victims and r.point.event.kind == kind]
            bad = sum(not result.verdict.good for result in here)
            row.append(f"{len(here) or '-'}{f' ({bad})' if bad else ''}")
        table.add_row(victims, *row)
    return table


if __name__ == "__main__":
    sys.exit(main())
