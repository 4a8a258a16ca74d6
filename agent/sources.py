"""Sensor recordings or pictures of the device: a spool folder, or a replay of one in time.

What cannot be read is reported once, by file, row and reason; the others go on. Where a channel is missing,
the reason names the line of agent.toml that would map it.
"""

import difflib
import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.config import SourceConfig
from protocol import channels, units
from protocol import recording as recordings
from protocol.channels import ChannelError
from protocol.errors import DataError
from protocol.input_schema import InputSchema
from protocol.package import Manifest
from protocol.recording import UNLABELLED, Recording
from runtime.pictures import PictureFile, pictures_in, read_picture

log = logging.getLogger(__name__)

SUFFIXES = (".csv", ".parquet")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
"""A key that TOML takes without quotes."""


@dataclass(frozen=True)
class Listing:
    """A recording or picture in the folder."""

    path: Path
    key: str
    """Changes when the file changes."""
    rows: int | None
    """Rows that count so far; None: all."""
    label: int = UNLABELLED
    """Of a picture, by its folder; recordings hold their labels themselves."""


def recordings_in(directory: Path) -> list[Path]:
    """Recordings of a folder by name; one whose name starts with a dot is still being written."""
    return sorted(
        path
        for path in directory.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


class Source:
    """Recordings, or pictures, in the order of their names, which should grow with time."""

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
        """Reason why a recording or picture cannot be read, by file name."""

    @property
    def mapping(self) -> str:
        """Names how channels are read: what was computed under another mapping is of no use."""
        return repr(sorted(self._config.channels.items())) if self._config.channels else ""

    def accept(self, manifest: Manifest) -> None:
        """Check what the owner says about channels against a package.

        Raises:
            ChannelError: the owner maps a channel that the package does not have, or a unit that cannot be
                converted to the package's.
        """
        try:
            channels.check(manifest.schema, self._config.channels)
        except ChannelError as error:
            raise ChannelError(f"[source] of agent.toml: {error}") from None

    @property
    def available(self) -> bool:
        """Whether the folder is there."""
        return self._directory.is_dir()

    def list(self, schema: InputSchema) -> Iterator[Listing]:
        """What is there now; nothing while the folder is away (a mount, a memory card)."""
        if not self.available:
            reason = f"source.directory: there is no folder {self._directory}"
            if self.problems.get("source") != reason:
                log.error("%s", reason)
            self.problems["source"] = reason
            return
        self.problems.pop("source", None)
        elapsed = (self._now() - self._started) * self._config.speed * schema.sample_rate_hz
        uncovered = int(elapsed) if self._config.kind == "replay" else None
        if schema.of_images:
            yield from self._pictures(schema, uncovered)
            return
        for path in recordings_in(self._directory):
            if uncovered is not None and uncovered <= 0:
                return
            try:
                status = path.stat()
            except OSError:  # it left between the listing and now
                continue
            yield Listing(path, f"{path.name} {status.st_size} {status.st_mtime_ns}", uncovered)
            if uncovered is not None:
                recording = self.read(path, schema)
                uncovered -= len(recording.samples) if recording else 0

    def read(self, path: Path, schema: InputSchema) -> Recording | None:
        """Read one recording, or one picture as a recording of one row.

        Returns:
            None: it cannot be read, and `problems` says why.
        """
        name = path.relative_to(self._directory).as_posix() if schema.of_images else path.name
        try:
            if schema.of_images:
                recording = _picture(PictureFile(path, name, UNLABELLED), schema)
            else:
                with path.open("rb") as stream:
                    recording = recordings.parse(stream, name, schema, columns=self._config.channels)
        except ChannelError as error:
            self._report(name, f"{error}{_advice(error, schema)}")
            return None
        except (DataError, OSError) as error:
            self._report(name, str(error))
            return None
        self.problems.pop(name, None)
        return recording

    def _pictures(self, schema: InputSchema, uncovered: int | None) -> Iterator[Listing]:
        files, errors = pictures_in(self._directory, schema)
        folders = {str(error).partition(":")[0]: str(error) for error in errors}
        present = {file.name for file in files} | folders.keys()
        for name in set(self.problems) - present:  # mended by taking it away
            del self.problems[name]
        for name, reason in folders.items():
            self._report(name, reason)
        for file in files[:uncovered]:
            try:
                status = file.path.stat()
            except OSError:  # it left between the listing and now
                continue
            yield Listing(file.path, f"{file.name} {status.st_size} {status.st_mtime_ns}", None, file.label)

    def _report(self, name: str, reason: str) -> None:
        if self.problems.get(name) is None:
            log.error("skipped: %s", reason)
        self.problems[name] = reason


def _advice(error: ChannelError, schema: InputSchema) -> str:
    """What the owner can write into agent.toml so that a missing channel is found."""
    if not error.channel:
        return ""
    likely = difflib.get_close_matches(error.channel, error.columns, 1, 0.5) or error.columns[:1]
    key = error.channel if _BARE_KEY.fullmatch(error.channel) else json.dumps(error.channel)
    entry = f"column = {json.dumps(likely[0] if likely else 'COLUMN')}"
    unit = schema.unit(error.channel)
    hint = ""
    if unit:
        entry += f", unit = {json.dumps(unit)}"
        others = ", ".join(units.convertible(unit))
        hint = f" (or the column's own unit: {others})" if others else ""
    return f"; if it stands in another column, add to [source]: channels.{key} = {{ {entry} }}{hint}"


def _picture(file: PictureFile, schema: InputSchema) -> Recording:
    pixels = read_picture(file, schema)
    return Recording(file.name, pixels[None], np.full(1, UNLABELLED, np.int64))
