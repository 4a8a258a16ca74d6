"""Keeping a long-running program small on Linux: one heap, and nothing resident that only starting up needed.

onnxruntime touches about 16 MB of its own code while it registers kernels and optimises graphs, and never
again. Those pages are clean and come back from the file if they are wanted after all, so dropping them costs
nothing; a board with little memory would have to find and drop them itself, at a worse moment.

Elsewhere than on Linux with glibc nothing happens.
"""

import ctypes
import logging
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_ARENA_MAX = -1, -8
_TRIM_BYTES = 64 * 1024


def use_one_heap() -> None:
    """Let all threads share one heap that gives back what is free; to be called before threads start.

    glibc gives every thread an arena of its own and keeps what it once took. An agent's threads wait most of
    the time, so they do not compete.
    """
    libc = _libc()
    if libc is not None:
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def release_start_up() -> None:
    """Drop code pages that may not be needed again, and give free heap back; call it after loading things."""
    libc = _libc()
    if libc is None:
        return
    libc.malloc_trim(0)
    for start, length in _code_mappings():
        # Only code: it is never written to, so that every page is what the file holds.
        if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED):
            log.debug("madvise: errno %d", ctypes.get_errno())


def resident_bytes() -> int:
    """Resident memory of this process now; 0 where the system does not say."""
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """Most memory that was resident since the start; 0 where the system does not say.

    Not ru_maxrss of getrusage: it counts the parent that started this process.
    """
    return _status("VmHWM")


def _status(name: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, UnicodeDecodeError):
        return 0
    return 0


def _libc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
    except OSError:
        return None


def _code_mappings() -> Iterator[tuple[int, int]]:
    """Address and length of mapped code: file-backed, private, executable, not writable."""
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for line in lines:
        addresses, permissions, _, _, inode, *path = line.split(maxsplit=5)
        if permissions == "r-xp" and inode != "0" and path:
            start, _, end = addresses.partition("-")
            yield int(start, 16), int(end, 16) - int(start, 16)
