"""Follows the log file of a mosquitto, a bounded piece at a time, and keeps that file small.

At debug level mosquitto writes some six lines for every message, and never starts a new file by itself. It
opens its log for appending, so another program may cut the file to nothing at any time: the next line stands
at its beginning. The follower does that once everything in a large file is read. What mosquitto writes in the
microseconds between the last look and the cut is lost.

The file belongs to the broker, which is not trusted: the follower opens no link, waits for no pipe, and cuts
only what is a plain file with one name.
"""

import errno
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from server.incidents import LOG_LOST, Incident, parse

log = logging.getLogger(__name__)

READ_BYTES = 256 * 1024
"""Of one call: some 2,500 lines."""
LINE_BYTES = 4096
"""Of a line; mosquitto writes at most 1,000, and what is longer is cut."""
LARGEST_BYTES = 16 * 1024 * 1024
"""Of the file, before it is cut."""
OVERFLOW = 4
"""Times the largest size at which a file is cut although it is not read to its end."""


@dataclass(frozen=True)
class Place:
    """Up to where a log was read; one that is kept over a restart saves reading the file again."""

    inode: int = 0
    offset: int = 0
    """Bytes before the first line that was not read."""


class Follower:
    """Reads one log. Absence, rotation and truncation of the file are none of the caller's business."""

    def __init__(
        self, path: Path, federation: str, place: Place | None = None, *, largest_bytes: int = LARGEST_BYTES
    ) -> None:
        """Begin at a place, or at the beginning of the file.

        Args:
            path: the file; it need not exist.
            federation: see incidents.parse.
            place: `place` of an earlier follower; if it is of another file, the file is read from its start.
            largest_bytes: of the file; 0: it is never cut (something else rotates it).
        """
        self._path = path
        self._federation = federation
        self._largest = largest_bytes
        self._descriptor: int | None = None
        self._resume = place or Place()
        self._inode = 0
        self._read = 0
        """Bytes of the file that were read."""
        self._line = b""
        """Beginning of a line whose end is not written yet."""
        self._pending = 0
        """Bytes of the file since its last complete line."""
        self._complaint = ""

    @property
    def place(self) -> Place:
        """Up to the end of the last complete line."""
        return Place(self._inode, max(0, self._read - self._pending)) if self._inode else self._resume

    def read(self, limit: int = READ_BYTES) -> list[Incident]:
        """What up to `limit` more bytes of the log say, in order; without a file nothing. Never raises.

        Where the file was replaced, up to `limit` bytes of each of the two are read.
        """
        try:
            return self._follow(limit)
        except OSError as error:
            if error.errno != errno.ENOENT:
                self._complain(f"the broker's log {self._path} cannot be read: {error.strerror}")
            return []

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "Follower":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _follow(self, limit: int) -> list[Incident]:
        # mosquitto closes the old file before it writes to the new one: looked at in this order, the old one
        # is complete when the new one has something in it.
        replaced = self._replaced()
        if self._descriptor is None:
            self._open()
        incidents = self._take(limit)
        if not replaced:
            return incidents + self._cut()
        if self._read >= self._size():
            self.close()
            incidents += self.read(limit)  # what the old one said counts, even if the new one cannot be read
        return incidents

    def _replaced(self) -> bool:
        if self._descriptor is None:
            return False
        try:
            found = os.lstat(self._path)
        except FileNotFoundError:
            return False  # renamed; mosquitto still writes to it, until it opens a new one
        return found.st_ino != self._inode and found.st_size > 0

    def _open(self) -> None:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(self._path, os.O_RDWR | flags)
        except PermissionError:
            descriptor = os.open(self._path, os.O_RDONLY | flags)  # not ours to cut
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "expected a plain file")
        self._descriptor, self._inode = descriptor, status.st_ino
        self._begin()
        if self._resume.inode == status.st_ino and self._resume.offset <= status.st_size:
            self._read = self._resume.offset
        self._resume = Place()

    def _begin(self) -> None:
        self._read, self._pending, self._line = 0, 0, b""

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size if self._descriptor is not None else 0

    def _take(self, limit: int) -> list[Incident]:
        if self._descriptor is None:
            return []
        if self._size() < self._read:  # somebody else cut it
            self._begin()
        data = os.pread(self._descriptor, limit, self._read)
        self._read += len(data)
        incidents = []
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._append(end)
            found = parse(self._line.decode("utf-8", "replace"), self._federation)
            self._line, self._pending = b"", 0
            incidents += [found] if found else []
        self._append(rest)
        self._pending += len(rest)
        return incidents

    def _append(self, part: bytes) -> None:
        self._line += part[: LINE_BYTES - len(self._line)]

    def _cut(self) -> list[Incident]:
        """Cut a file that is large and read; or one that is so large that reading will not keep up."""
        size = self._size()
        if not self._largest or self._descriptor is None or size <= self._largest:
            return []
        lost = size - self._read
        if lost > 0 and size <= OVERFLOW * self._largest:
            return []
        if os.fstat(self._descriptor).st_nlink > 1:
            self._complain(f"the broker's log {self._path} is not cut: the file has more than one name")
            return []
        try:
            os.ftruncate(self._descriptor, 0)
        except OSError as error:
            self._complain(
                f"the broker's log {self._path} is large and cannot be cut: {error.strerror}; let the server "
                "write it, or rotate it"
            )
            return []
        self._read = 0  # the end of a line that was begun is still to come
        if lost <= 0:
            return []
        self._begin()
        return [Incident(None, "", LOG_LOST, f"{lost} bytes")]

    def _complain(self, text: str) -> None:
        """Say it once, not with every look."""
        if text != self._complaint:
            log.warning("%s", text)
            self._complaint = text
