"""The statistics that a device's windows are normalised by, in a file beside its features.

They are taken from all the windows that are there, taken anew each time there are twice as many, and final
from `ENOUGH` on: features of a device that goes on for years must stay comparable, and so must the adapter
trained on them. Nothing here is ever part of a message.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path

from agent.sources import Source
from protocol import records, windows
from protocol.errors import ProtocolError
from protocol.input_schema import DEVICE, DEVICE_MEAN
from protocol.normalisation import Moments, Statistics
from protocol.package import Manifest
from runtime import whole_files

log = logging.getLogger(__name__)

STATISTICS_FILE = "statistics.json"
ENOUGH = 256
"""Windows from which statistics are final."""


class DeviceStatistics:
    """Statistics on disk."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        """Read what is there.

        Args:
            directory: of the features.
            manifest: of the installed package.
        """
        self._path = directory / STATISTICS_FILE
        self._normalisation = manifest.schema.normalisation or DEVICE
        self._manifest = manifest
        self._seen: list[tuple[str, int | None]] = []
        self.current: Statistics | None = None
        """None until there is a window."""
        if self._path.exists():
            self._load()

    @property
    def name(self) -> str:
        """Changes when the statistics change; no part of it is one of their numbers."""
        return self.current.name if self.current else "none"

    def look(self, source: Source) -> bool:
        """Take statistics anew where that is due; returns whether they changed, and features with them."""
        before = self.current.windows if self.current else 0
        if before >= ENOUGH:
            return False
        listings = list(source.list(self._manifest.schema))
        seen = [(listing.key, listing.rows) for listing in listings]
        if seen == self._seen:
            return False
        self._seen = seen
        moments = Moments()
        for listing in listings:
            recording = source.read(listing.path, self._manifest.schema)
            if recording is not None:
                cut = windows.cut(recording, self._manifest.window)
                end = cut.start + self._manifest.window.length
                moments.add(cut.x if listing.rows is None else cut.x[end <= listing.rows])
        found = moments.statistics(self._normalisation)
        if found is None or found.windows < min(ENOUGH, 2 * before):
            return False
        self._write(found)
        log.info(
            "windows are normalised by the statistics of %d windows%s",
            found.windows,
            "" if found.windows >= ENOUGH else "; more will be taken into account",
        )
        return True

    def _write(self, found: Statistics) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(found)), "utf-8")
        whole_files.rename(partial, self._path)
        self.current = found

    def _load(self) -> None:
        try:
            found = records.from_named(Statistics, json.loads(self._path.read_text("utf-8")))
            expected = len(self._manifest.schema.channels), self._normalisation == DEVICE_MEAN
            if (len(found.mean), found.deviation is None) != expected:
                raise ValueError(f"expected {expected[0]} channels, {self._normalisation}")  # noqa: TRY301
        except (OSError, ValueError, TypeError, ProtocolError) as error:
            log.warning("%s: the statistics are damaged and are taken anew: %s", self._path, error)
            return
        self.current = found
