"""What devices may pull in chunks: the announced package, and the keyframes of the newest two releases.

The release before the newest one stays on offer, so that a device which is just pulling it is not refused. An
artifact that is not on offer, and a chunk that it does not have, are refused. Nothing is sent here.
"""

from collections.abc import Iterator
from pathlib import Path

from protocol.artifacts import Artifact, describe
from protocol.errors import ArtifactError, EncodingError
from protocol.messages import Chunk, ChunkRequest

KEYFRAMES = 2


class Offers:
    """Artifacts by their SHA-256."""

    def __init__(self) -> None:
        self._package: tuple[Artifact, Path] | None = None
        self._keyframes: dict[bytes, tuple[Artifact, bytes]] = {}

    def offer_package(self, artifact: Artifact, path: Path) -> None:
        """Offer a package on disk, instead of the one before."""
        self._package = artifact, path

    def offer_keyframe(self, data: bytes) -> Artifact:
        """Offer the newest release's keyframe; returns its description."""
        artifact = describe(data)
        self._keyframes[artifact.sha256] = artifact, data
        for sha256 in list(self._keyframes)[:-KEYFRAMES]:
            del self._keyframes[sha256]
        return artifact

    def chunks(self, request: ChunkRequest) -> Iterator[Chunk]:
        """The chunks that a device asks for, in its order, one in memory at a time.

        Raises:
            EncodingError: the artifact is not on offer, or it has no such chunk; before any chunk is read.
            ArtifactError: the package cannot be read.
        """
        if request.artifact in self._keyframes:
            artifact, data = self._keyframes[request.artifact]
            _check_indices(artifact, request)
            for index in request.indices:
                start, end = artifact.chunk_range(index)
                yield Chunk(artifact.sha256, index, data[start:end])
        elif self._package and request.artifact == self._package[0].sha256:
            artifact, path = self._package
            _check_indices(artifact, request)
            yield from _read_chunks(artifact, path, request)
        else:
            raise EncodingError(f"no artifact {request.artifact.hex()[:16]} is on offer")


def _check_indices(artifact: Artifact, request: ChunkRequest) -> None:
    for index in request.indices:
        if not 0 <= index < len(artifact.chunk_sha256):
            raise EncodingError(f"expected chunks below {len(artifact.chunk_sha256)}, got {index}")


def _read_chunks(artifact: Artifact, path: Path, request: ChunkRequest) -> Iterator[Chunk]:
    try:
        with path.open("rb") as file:
            for index in request.indices:
                start, end = artifact.chunk_range(index)
                file.seek(start)
                yield Chunk(artifact.sha256, index, file.read(end - start))
    except OSError as error:
        raise ArtifactError(f"the package cannot be read: {error.strerror}; push it again") from error
