"""The decoded updates of one round, to be read more than once, by update or by range of parameters.

In memory up to a bound, beyond it in a temporary file that has no name and is gone with the process. The
journal remains the store of updates: after a restart they are decoded from it into a new spool.
"""

import tempfile
import weakref
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from server.rules.rule import Fixed

_BYTES = 8
_MIB = 1 << 20


class Spool:
    """A table of updates; its memory is bounded, however many come."""

    def __init__(self, parameters: int, memory_mib: int) -> None:
        """Start with nothing.

        Args:
            parameters: of each update.
            memory_mib: MiB of updates held in memory; `columns` gives blocks of this size.
        """
        self.weights: list[int] = []
        """What each update claims to count for."""
        self._parameters = parameters
        self._memory = memory_mib * _MIB
        self._file = tempfile.SpooledTemporaryFile(max_size=self._memory)  # noqa: SIM115 - closed by finalize
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return len(self.weights)

    def add(self, update: Fixed, weight: int) -> None:
        """Take an update, int64 [parameters], and its weight."""
        self._file.seek(len(self) * self._parameters * _BYTES)
        self._file.write(np.ascontiguousarray(update, "<i8").tobytes())
        self.weights.append(weight)

    def rows(self) -> Iterator[Fixed]:
        """Each update, int64 [parameters], one in memory at a time."""
        for index in range(len(self)):
            yield self.row(index)

    def row(self, index: int) -> Fixed:
        """One update, int64 [parameters]."""
        return self._read(index, 0, self._parameters)

    def columns(self) -> Iterator[tuple[slice, NDArray[np.int64]]]:
        """All updates' values of one range of parameters after another, int64 [updates, range]."""
        width = max(1, self._memory // (_BYTES * max(1, len(self))))
        for start in range(0, self._parameters, width):
            part = slice(start, min(start + width, self._parameters))
            block = np.empty((len(self), part.stop - part.start), np.int64)
            for index in range(len(self)):
                block[index] = self._read(index, part.start, part.stop)
            yield part, block

    def _read(self, index: int, start: int, stop: int) -> Fixed:
        self._file.seek((index * self._parameters + start) * _BYTES)
        return np.frombuffer(self._file.read((stop - start) * _BYTES), "<i8")
