"""Pulling a large artifact in chunks: a state machine without I/O.

The device sets the pace: at most `WINDOW` chunks are asked for at a time, what does not come is asked for
again, every chunk is checked by its hash on arrival. The caller keeps the chunks and tells which it has, so
a transfer goes on after any interruption.
"""

from collections.abc import Iterable

from protocol.artifacts import Artifact
from protocol.messages import Chunk, ChunkRequest

WINDOW = 4
TIMEOUT_SECONDS = 10.0


class Download:
    """One artifact on its way."""

    def __init__(self, artifact: Artifact, have: Iterable[int] = ()) -> None:
        """Start or go on.

        Args:
            artifact: what is wanted.
            have: chunks that are on disk, each checked.
        """
        self.artifact = artifact
        self._missing = set(range(len(artifact.chunk_sha256))) - set(have)
        self._asked: dict[int, float] = {}

    @property
    def complete(self) -> bool:
        """Whether every chunk is there."""
        return not self._missing

    @property
    def progress(self) -> float:
        """Share of the chunks that is there."""
        return 1 - len(self._missing) / len(self.artifact.chunk_sha256)

    def restart(self) -> None:
        """Forget what was asked: the link broke, nothing of it will come."""
        self._asked.clear()

    def request(self, now: float) -> ChunkRequest | None:
        """What to ask for now; None: enough is on its way."""
        # A clock that goes back must not keep a chunk from being asked for again.
        self._asked = {index: at for index, at in self._asked.items() if 0 <= now - at < TIMEOUT_SECONDS}
        free = WINDOW - len(self._asked)
        wanted = sorted(self._missing - set(self._asked))[: max(0, free)]
        if not wanted:
            return None
        self._asked.update(dict.fromkeys(wanted, now))
        return ChunkRequest(self.artifact.sha256, tuple(wanted))

    def receive(self, chunk: Chunk) -> bool:
        """Check a chunk; True: it is new and belongs on disk.

        Raises:
            ArtifactError: other bytes than announced; the chunk is asked for again after the timeout.
        """
        if chunk.artifact != self.artifact.sha256:
            return False
        self.artifact.check_chunk(chunk.index, chunk.data)
        self._asked.pop(chunk.index, None)
        if chunk.index not in self._missing:
            return False
        self._missing.discard(chunk.index)
        return True
