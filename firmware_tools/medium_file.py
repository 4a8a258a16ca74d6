"""A medium as an open file: writes that are on it when they are said to be, reads that come from it.

Reading back through the page cache would only show what was to be written. So it is read past the cache
(O_DIRECT), or, where the target does not allow that, after the cache was dropped.
"""

import mmap
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from firmware_tools.errors import FirmwareError

CHUNK_BYTES = 1 << 20
"""Of reads and writes; a multiple of every sector."""
_ALIGNMENT = 4096
DIRTY_BYTES = 64 << 20
"""Most that waits in memory to be written, so that progress is that of the medium."""


class MediumWriter:
    """Writes to a medium that nothing else uses; close it, or use it in a with statement."""

    def __init__(self, target: Path) -> None:
        """Open a block device, exclusively, or a file that exists.

        Raises:
            FirmwareError: something uses the device, or it cannot be opened.
        """
        block = stat.S_ISBLK(target.stat().st_mode)
        try:
            # On a block device O_EXCL fails if it or a part of it is mounted, in a RAID, or swap.
            self._descriptor = os.open(target, os.O_RDWR | (os.O_EXCL if block else 0))
        except OSError as error:
            raise FirmwareError(
                f"{target}: {error.strerror}; is it mounted or in use? Writing to media often needs root"
            ) from error
        self._block = block
        self._waiting = 0

    def __enter__(self) -> "MediumWriter":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def reserve(self, size: int) -> None:
        """Make a file at least as long as the image; a device has its size.

        Raises:
            OSError: there is no room.
        """
        if not self._block and os.fstat(self._descriptor).st_size < size:
            os.ftruncate(self._descriptor, size)

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data`.

        Raises:
            OSError: the medium takes no more, or is gone.
        """
        view = memoryview(data)
        while view:
            done = os.pwrite(self._descriptor, view, offset)
            view, offset = view[done:], offset + done
            self._waiting += done
        if self._block and self._waiting >= DIRTY_BYTES:
            os.fdatasync(self._descriptor)
            self._waiting = 0

    def sync(self) -> None:
        """Have everything on the medium, and nothing in the cache.

        Raises:
            OSError: it could not be written.
        """
        os.fsync(self._descriptor)
        self._waiting = 0
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


class MediumReader:
    """Reads what is on a medium, not what is in the cache; close it, or use it in a with statement."""

    def __init__(self, target: Path) -> None:
        """Open a block device or a file; what waits to be written is written first.

        Raises:
            FirmwareError: it cannot be opened.
        """
        try:
            self._descriptor = os.open(target, os.O_RDONLY)
        except OSError as error:
            raise FirmwareError(f"{target}: {error.strerror}; reading media often needs root") from error
        os.fsync(self._descriptor)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            self._direct = os.open(target, os.O_RDONLY | os.O_DIRECT)
        except OSError:
            self._direct = -1
        self._buffers = [mmap.mmap(-1, CHUNK_BYTES) for _ in range(2)]  # O_DIRECT wants aligned addresses
        self._ahead = ThreadPoolExecutor(max_workers=1)

    def __enter__(self) -> "MediumReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._ahead.shutdown()
        os.close(self._descriptor)
        if self._direct >= 0:
            os.close(self._direct)

    @property
    def past_cache(self) -> bool:
        """Whether reads go past the cache; else it was dropped before."""
        return self._direct >= 0

    def read(self, offset: int, length: int) -> Iterator[memoryview]:
        """Read a stretch in chunks, each good until the next is asked for; fewer bytes where the medium ends.

        The next chunk is read while the caller works on one.

        Raises:
            OSError: the medium cannot be read there.
        """
        end, number = offset + length, 0
        pending = self._ahead.submit(self._read_chunk, 0, offset, min(CHUNK_BYTES, length))
        while offset < end:
            done = pending.result()
            if not done:
                return
            offset, current, number = offset + done, number, 1 - number
            if offset < end:
                following = min(CHUNK_BYTES, end - offset)
                pending = self._ahead.submit(self._read_chunk, number, offset, following)
            with memoryview(self._buffers[current]) as whole, whole[:done] as chunk:
                yield chunk

    def _read_chunk(self, number: int, offset: int, wanted: int) -> int:
        """Read into one of the two buffers; how much, which is less only where the medium ends."""
        with memoryview(self._buffers[number]) as whole:
            # Past the cache in whole sectors: a cut one at the image's end is read with what follows it.
            rounded = -(-wanted // _ALIGNMENT) * _ALIGNMENT
            if self._direct >= 0 and offset % _ALIGNMENT == 0:
                try:
                    return min(os.preadv(self._direct, [whole[:rounded]], offset), wanted)
                except OSError:  # e.g. EINVAL of a file system that takes O_DIRECT only when opening
                    os.close(self._direct)
                    self._direct = -1
            return os.preadv(self._descriptor, [whole[:wanted]], offset)
