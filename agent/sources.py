"""Sensor recordings of the device: a spool folder, or a replay of one in time.

A recording that cannot be read is reported once, by file, row and reason; the others go on.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.config import SourceConfig
from protocol import recording as recordings
from protocol.errors import DataError
from protocol.input_schema import InputSchema
from protocol.recording import Recording

log = logging.getLogger(__name__)

SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True)
class Listing:
    """A recording in the folder."""

    path: Path
    key: str
    """Changes when the file changes."""
    rows: int | None
    """Rows that count so far; None: all."""


def recordings_in(directory: Path) -> list[Path]:
    """Recordings of a folder by name; one whose name starts with a dot is still being written."""
    return sorted(
        path
        for path in directory.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


class Source:
    """Recordings in the order of their names, which should grow with time."""

    def __init__(self, config: SourceConfig, now: Callable[[], float]) -> None:
        """Take a folder.

        Args:
            config: which folder, and whether to replay it.
            now: seconds, for the replay.
        """
        self._config = config
        self._directory = Path(config.directory)
        self._now = now
        self._started = now()
        self.problems: dict[str, str] = {}
        """Reason why a recording cannot be read, by file name."""

    @property
    def available(self) -> bool:
        """Whether the folder is there."""
        return self._directory.is_dir()

    def list(self, schema: InputSchema) -> Iterator[Listing]:
        """The recordings that are there now; none while the folder is away (a mount, a memory card)."""
        if not self.available:
            reason = f"source.directory: there is no folder {self._directory}"
            if self.problems.get("source") != reason:
                log.error("%s", reason)
            self.problems["source"] = reason
            return
        self.problems.pop("source", None)
        elapsed = (self._now() - self._started) * self._config.speed * schema.sample_rate_hz
        uncovered = int(elapsed) if self._config.kind == "replay" else None
        for path in recordings_in(self._directory):
            if uncovered is not None and uncovered <= 0:
                return
            status = path.stat()
            yield Listing(path, f"{path.name} {status.st_size} {status.st_mtime_ns}", uncovered)
            if uncovered is not None:
                recording = self.read(path, schema)
                uncovered -= len(recording.samples) if recording else 0

    def read(self, path: Path, schema: InputSchema) -> Recording | None:
        """Read one recording; None: it cannot be read, and `problems` says why."""
        try:
            with path.open("rb") as stream:
                recording = recordings.parse(stream, path.name, schema)
        except (DataError, OSError) as error:
            if path.name not in self.problems:
                log.error("skipped a recording: %s", error)
            self.problems[path.name] = str(error)
            return None
        self.problems.pop(path.name, None)
        return recording
