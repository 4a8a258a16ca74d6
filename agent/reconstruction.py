"""From a release's message to its adapters: by its difference, from what the device has, or by its keyframe.

In this order, the cheapest first:

1. The device has the adapter already: as a package's initial one, or from a message that came before.
2. The message holds the whole adapter, or the difference to one that the device has.
3. The keyframe is pulled in chunks, as packages are. Of two releases the newer one's is pulled.

An adapter is handed on only with the hash that the server signed, and is kept before anything is trained from
it: the next difference starts from it even if a newer release or a restart cuts the training short. A
difference that gives other bits falls back to the keyframe, once. What is to be sent is returned, not sent.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from agent.download import Download
from agent.engine import Floats
from agent.partial import PartialFiles
from agent.store import Store
from protocol.errors import ArtifactError, ProtocolError
from protocol.messages import BASE_BYTES, Chunk, ChunkRequest, Release
from protocol.package import Manifest
from protocol.release_coding import (
    adapter_sha256,
    check_adapter,
    decode_keyframe,
    keyframe_limit,
    release_adapter,
)

log = logging.getLogger(__name__)


class Reconstruction:
    """Adapters of releases, with at most one keyframe on its way."""

    def __init__(self, store: Store, directory: Path) -> None:
        """Take the device's memory, and a folder for a keyframe on its way."""
        self._store = store
        self._partial = PartialFiles(directory)
        self._newest = -1
        """Number of the newest release that was asked for."""
        self._release: Release | None = None
        """Whose keyframe is on its way."""
        self._download: Download | None = None
        self._refused = b""
        """The release that not even its keyframe gave; not pulled again in this life."""

    def adapter(self, release: Release, manifest: Manifest) -> Floats | None:
        """The adapters of a release of the installed package, stacked; None: not yet, or never.

        float32 [release.domains * parameters].

        Where it is not there yet, `request` has something to ask for; when `receive` returns the release, ask
        again. A release older than one that was asked for is never there.
        """
        if release.number < self._newest:
            return None
        self._newest = release.number
        held = {adapter_sha256(adapter): adapter for adapter in self._held()}
        found = held.get(release.adapter_sha256)
        if found is None:
            found = self._from_message(release, held, manifest)
            if found is None:
                found = self._from_keyframe(release, manifest)
            if found is None:
                return None
            self._store.receive(found)
        self._stop()
        return found

    def link_broke(self) -> None:
        """Nothing that was asked for will come."""
        if self._download:
            self._download.restart()

    def request(self, now: float) -> ChunkRequest | None:
        """What to ask the server for now."""
        return self._download.request(now) if self._download else None

    def receive(self, chunk: Chunk) -> Release | None:
        """Keep a chunk if it is wanted; returns the release whose keyframe it completes.

        Raises:
            ArtifactError: other bytes than announced.
        """
        if self._download is None or not self._download.receive(chunk):
            return None
        self._partial.write_chunk(self._download.artifact, chunk.index, chunk.data)
        return self._release if self._download.complete else None

    def _held(self) -> Iterator[Floats]:
        """Adapters that a difference may start from: the newest one received, and the package's own."""
        for name in ("received", "initial"):
            adapter = self._store.adapter(name)
            if adapter is not None:
                yield adapter

    def _from_message(
        self, release: Release, held: Mapping[bytes, Floats], manifest: Manifest
    ) -> Floats | None:
        bases = [adapter for sha256, adapter in held.items() if sha256[:BASE_BYTES] == release.base]
        if not release.body or (release.base and not bases):
            return None
        try:
            return release_adapter(
                release, bases[0] if bases else None, manifest.slices().values(), manifest.parameters
            )
        except ProtocolError as error:
            log.warning("release=%d by its message: %s", release.number, error)
            return None

    def _from_keyframe(self, release: Release, manifest: Manifest) -> Floats | None:
        """Decode the keyframe once all of it is there; until then pull it, instead of any other one."""
        if release.adapter_sha256 == self._refused:
            return None
        if release.keyframe is None:
            self._refuse(release, "the message gives no other way to the adapter")
            return None
        size = release.domains * manifest.parameters
        if release.keyframe.size > keyframe_limit(size):
            self._refuse(release, f"a keyframe of {release.keyframe.size} bytes is too large")
            return None
        if self._download is None or self._download.artifact != release.keyframe:
            self._download = Download(release.keyframe, self._partial.have(release.keyframe))
            log.info("release=%d: fetching its keyframe of %d bytes", release.number, release.keyframe.size)
        self._release = release
        if not self._download.complete:
            return None
        try:
            data = self._partial.path(release.keyframe).read_bytes()
            return check_adapter(decode_keyframe(data, size), release.adapter_sha256)
        except (ArtifactError, OSError) as error:
            self._refuse(release, str(error))
            return None

    def _refuse(self, release: Release, reason: str) -> None:
        log.error("release=%d is refused: %s", release.number, reason)
        self._refused = release.adapter_sha256
        self._stop()

    def _stop(self) -> None:
        self._release = self._download = None
        self._partial.keep_only(None)
