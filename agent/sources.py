"""Sensor recordings of the device: a spool folder, or a replay of one in time.

A recording that cannot be read is reported once, by file, row and reason; the others go on.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.config import SourceConfig
from agent.errors import AgentError
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

    def list(self, schema: InputSchema) -> Iterator[Listing]:
        """The recordings that are there now.

        Raises:
            AgentError: there is no such folder.
        """
        if not self._directory.is_dir():
            raise AgentError(f"source.directory: there is no folder {self._directory}")
        elapsed = (self._now() - self._started) * self._config.speed * schema.sample_rate_hz
        uncovered = int(elapsed) if self._config.kind == "replay" else None
        paths = (path for path in self._directory.iterdir() if path.suffix in SUFFIXES)
        for path in sorted(paths):
            # A name that starts with a dot is a recording that is still being written.
            if not path.is_file() or path.name.startswith("."):
                continue
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
