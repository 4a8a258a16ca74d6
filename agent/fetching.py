"""Fetching an announced package: chunks asked for, checked, kept, and installed when all are there.

Joins the download machine (download.py) and the folder of packages (installation.py). What is to be sent is
returned, not sent.
"""

import logging

from agent.download import Download
from agent.installation import Installation
from protocol.errors import ProtocolError
from protocol.messages import Announcement, Chunk, ChunkRequest
from protocol.package import Manifest

log = logging.getLogger(__name__)

UNANSWERED = 3
"""Requests without any chunk after which the log says so."""


class Fetching:
    """At most one package on its way; a newer announcement replaces it."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._announcement: Announcement | None = None
        self._download: Download | None = None
        self._unanswered = 0

    @property
    def announcement(self) -> Announcement | None:
        """Of the package that is fetched, or was last."""
        return self._announcement

    def begin(self, announcement: Announcement) -> None:
        """Start, or go on with the chunks that an earlier attempt left on disk."""
        artifact = announcement.package
        self._announcement = announcement
        self._download = Download(artifact, self._installation.have(artifact))
        log.info("fetching package %s: %d bytes", announcement.name, artifact.size)

    def link_broke(self) -> None:
        """Nothing that was asked for will come."""
        if self._download:
            self._download.restart()

    def request(self, now: float) -> ChunkRequest | None:
        """What to ask the server for now."""
        request = self._download.request(now) if self._download else None
        if request:
            self._unanswered += 1
            if self._unanswered == UNANSWERED:
                log.warning(
                    "the server does not answer: is this device registered there, with this key? does the "
                    "broker take messages of 64 KiB (message_size_limit, max_packet_size)?"
                )
        return request

    def receive(self, chunk: Chunk) -> None:
        """Keep a chunk if it is wanted.

        Raises:
            ArtifactError: other bytes than announced.
        """
        self._unanswered = 0
        if self._download and self._download.receive(chunk):
            self._installation.write_chunk(self._download.artifact, chunk.index, chunk.data)

    def finish(self) -> tuple[Announcement, Manifest] | None:
        """Install the package once all its chunks are there; None: not yet, or it was refused."""
        if self._download is None or self._announcement is None or not self._download.complete:
            return None
        announcement, self._download = self._announcement, None
        try:
            return announcement, self._installation.install(announcement.package)
        except ProtocolError as error:
            log.error("the package %s is refused: %s", announcement.name, error)
            return None
