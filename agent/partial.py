"""Chunks of an artifact on disk, each where it belongs in one file.

Nothing but the file says which chunks are there: after a restart they are hashed again.
"""

import hashlib
from pathlib import Path

from protocol.artifacts import Artifact


class PartialFiles:
    """A folder with one artifact on its way; the first chunk of another one removes it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, artifact: Artifact) -> Path:
        """Where an artifact's chunks go."""
        return self._directory / f"{artifact.sha256.hex()}.partial"

    def have(self, artifact: Artifact) -> list[int]:
        """Chunks of an artifact that are on disk from an earlier attempt."""
        try:
            with self.path(artifact).open("rb") as file:
                return [
                    index
                    for index, digest in enumerate(artifact.chunk_sha256)
                    if hashlib.sha256(file.read(artifact.chunk_bytes)).digest() == digest
                ]
        except FileNotFoundError:
            return []

    def write_chunk(self, artifact: Artifact, index: int, data: bytes) -> None:
        """Keep a checked chunk."""
        path = self.path(artifact)
        self.keep_only(artifact)
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.seek(artifact.chunk_range(index)[0])
            file.write(data)

    def keep_only(self, artifact: Artifact | None) -> None:
        """Remove all other partial files; None: all of them."""
        for other in self._directory.glob("*.partial"):
            if artifact is None or other != self.path(artifact):
                other.unlink()
