"""A live view of running rounds, read from the server's store."""

from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from server.store import Store

MOST_ROWS = 16


class RoundsView:
    """Rounds done, updates of the open round, what each device says; plain lines without a terminal."""

    def __init__(self, console: Console, rounds: int) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self._rounds = self._progress.add_task("rounds", total=rounds)
        self._updates = self._progress.add_task("updates of the open round", total=None)
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._done = 0

    def __enter__(self) -> "RoundsView":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def update(self, store: Store) -> None:
        """Look at the store and draw."""
        rows = store.rounds()
        done = sum(1 for row in rows if row["outcome"] == "released")
        devices = store.devices()
        newest = store.newest_release()
        reports = store.reports(newest.number) if newest else {}
        self._progress.update(self._rounds, completed=done)
        current = next((row for row in rows if row["closed_at"] is None), None)
        total = len(current["cohort"]) if current else len(devices)
        self._progress.update(self._updates, completed=current["counted"] if current else 0, total=total)
        if self._console.is_terminal:
            self._live.update(Group(self._progress, _devices(devices, reports)))
        elif done > self._done:
            loss = newest.metrics.get("loss_before", 0.0) if newest else 0.0
            self._console.print(f"round {done}: {newest.updates if newest else 0} updates, loss {loss:.3f}")
        self._done = done


def _devices(devices: list[dict[str, Any]], reports: dict[str, dict[str, Any]]) -> Table:
    table = Table("device", "state", "release", "labels", "uses", "gain", box=None)
    for device in devices[:MOST_ROWS]:
        report = reports.get(device["id"])
        table.add_row(
            device["id"],
            "[green]online[/green]" if device["online"] else "[dim]offline[/dim]",
            str(device["release"]) if device["release"] >= 0 else "-",
            str(device["labelled_windows"]),
            report["choice"] if report else "-",
            f"{report['gain']:+.3f}" if report else "",
        )
    if len(devices) > MOST_ROWS:
        table.add_row(f"... and {len(devices) - MOST_ROWS} more")
    return table
