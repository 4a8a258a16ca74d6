"""Large objects as content-addressed chunks, which a device pulls at its own pace.

60 KiB chunks fit the payload limits of hosted brokers (128 KB and 64 KB); every chunk is checked by its hash
on arrival, so a transfer resumes after any interruption with the chunks that are still missing.
"""

import hashlib
from dataclasses import dataclass

from protocol.errors import ArtifactError

CHUNK_BYTES = 60 * 1024
MAX_CHUNKS = 32_768


@dataclass(frozen=True)
class Artifact:
    """A large object, by its hash and those of its chunks."""

    sha256: bytes
    size: int
    chunk_bytes: int
    chunk_sha256: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if len(self.sha256) != 32 or any(len(digest) != 32 for digest in self.chunk_sha256):
            raise ValueError("sha256: expected 32 bytes each")
        if not 1 <= self.chunk_bytes <= 16 * 1024 * 1024:
            raise ValueError(f"chunk_bytes: expected 1 byte to 16 MiB, got {self.chunk_bytes}")
        expected = -(-self.size // self.chunk_bytes)
        if self.size < 1 or len(self.chunk_sha256) != expected or expected > MAX_CHUNKS:
            raise ValueError(f"chunk_sha256: expected {expected} hashes, got {len(self.chunk_sha256)}")

    def chunk_range(self, index: int) -> tuple[int, int]:
        """First byte of chunk `index` and the byte behind its last."""
        start = index * self.chunk_bytes
        return start, min(start + self.chunk_bytes, self.size)

    def check_chunk(self, index: int, data: bytes) -> None:
        """Check that `data` is chunk `index`.

        Raises:
            ArtifactError: no such chunk, or other bytes.
        """
        if not 0 <= index < len(self.chunk_sha256):
            raise ArtifactError(f"expected a chunk below {len(self.chunk_sha256)}, got {index}")
        if hashlib.sha256(data).digest() != self.chunk_sha256[index]:
            raise ArtifactError(f"chunk {index} does not have the announced hash")


def describe(data: bytes, chunk_bytes: int = CHUNK_BYTES) -> Artifact:
    """Cut `data` into chunks and hash them."""
    chunks = (data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes))
    return Artifact(
        hashlib.sha256(data).digest(),
        len(data),
        chunk_bytes,
        tuple(hashlib.sha256(chunk).digest() for chunk in chunks),
    )
