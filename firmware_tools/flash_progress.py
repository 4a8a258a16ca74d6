"""How far each medium is: bars in a terminal, else a line at every tenth."""

import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TextIO

from firmware_tools.flash import READING, WRITING, Observer, Result


class Lines:
    """A line for each medium and tenth."""

    def __init__(self, targets: Sequence[Path], total: int, file: TextIO) -> None:
        """Begin.

        Args:
            targets: names of the media.
            total: bytes of each phase.
            file: where the lines go.
        """
        self._targets = targets
        self._total = max(1, total)
        self._file = file
        self._lock = threading.Lock()
        self._done = {(number, phase): 0 for number in range(len(targets)) for phase in (WRITING, READING)}

    def advance(self, number: int, phase: str, more: int) -> None:
        """See Observer."""
        with self._lock:
            before = self._done[number, phase]
            self._done[number, phase] = after = before + more
            if after * 10 // self._total > before * 10 // self._total:
                percent = after * 10 // self._total * 10
                print(f"{self._targets[number]}: {phase} {percent} %", file=self._file, flush=True)

    def finish(self, number: int, result: Result) -> None:
        """See Observer."""
        with self._lock:
            print(f"{self._targets[number]}: {result.verdict}", file=self._file, flush=True)


class Bars:
    """A bar for each medium, once for writing and once for reading back; used in a with statement."""

    def __init__(self, targets: Sequence[Path], total: int, file: TextIO) -> None:
        """Begin; see Lines.

        Raises:
            ImportError: rich is not installed.
        """
        from rich import progress  # noqa: PLC0415 - the extra "firmware" has it, a device has not
        from rich.console import Console  # noqa: PLC0415

        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            console=Console(file=file),
        )
        self._targets = targets
        self._phases = [WRITING] * len(targets)
        self._tasks = [self._bars.add_task(f"{target} {WRITING}", total=total) for target in targets]

    def __enter__(self) -> "Bars":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def advance(self, number: int, phase: str, more: int) -> None:
        """See Observer."""
        if phase != self._phases[number]:
            self._phases[number] = phase
            self._bars.reset(self._tasks[number], description=f"{self._targets[number]} {phase}")
        self._bars.advance(self._tasks[number], more)

    def finish(self, number: int, result: Result) -> None:
        """See Observer."""
        description = f"{self._targets[number]} {result.verdict}"
        self._bars.update(self._tasks[number], description=description)


def observe(
    targets: Sequence[Path], total: int, file: TextIO | None = None
) -> AbstractContextManager[Observer]:
    """Bars where `file` (default: standard error) is a terminal and rich is installed, else lines."""
    file = file or sys.stderr
    if file.isatty():
        with suppress(ImportError):
            return Bars(targets, total, file)
    return nullcontext(Lines(targets, total, file))
