"""Writing an image to media, several at once, and reading each back.

The first MiB of a medium, with its partition table, is erased first and written last, when all the rest is on
the medium. So a medium whose writing was cut short, by a power cut, Ctrl-C or an error, has no partition
table: nothing boots from it, and nobody takes it for a good one. A medium that does not read back well is
erased there, too. What one medium does has no effect on the others.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from firmware_tools.block_map import BlockMap
from firmware_tools.errors import FirmwareError
from firmware_tools.medium_file import CHUNK_BYTES, MediumWriter
from firmware_tools.read_back import Fault, Progress, read_back

GOOD, FAULTY, FAILED, REFUSED, INTERRUPTED = ("good", "faulty", "failed", "refused", "interrupted")
WRITING, READING = "writing", "reading back"
HEAD_BYTES = 1 << 20
_BLANK = "its start is blank, so nothing boots from it: flash it again, or take another one"


@dataclass(frozen=True)
class Result:
    """What became of one medium."""

    target: str
    verdict: str
    """"good": written and read back; "faulty": reads back differently; "failed"; "refused"; "interrupted"."""
    reason: str = ""
    """Why it is not good, and what to do."""
    medium: str = ""
    """Its serial, where it has one."""
    bytes_written: int = 0
    bytes_read_back: int = 0
    past_cache: bool = False
    """Whether it was read back past the cache; else the cache was dropped before."""
    seconds: float = 0.0
    faults: tuple[Fault, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For people's programs."""
        return asdict(self)


class Observer(Protocol):
    """Is told how far each medium is; called from several threads."""

    def advance(self, number: int, phase: str, more: int) -> None:
        """So many bytes more of a medium are written or read back."""

    def finish(self, number: int, result: Result) -> None:
        """A medium is done with."""


class _InterruptedError(Exception):
    """The user wants to stop."""


def flash(
    image: Path,
    block_map: BlockMap,
    targets: Sequence[Path],
    observer: Observer,
    stop: threading.Event,
) -> list[Result]:
    """Write an image to media and read them back, all at once. The targets were checked before.

    Args:
        image: the image.
        block_map: of it.
        targets: block devices, or files that exist.
        observer: is told how far each is; by its place in `targets`.
        stop: ends the work at the next chunk when it is set.

    Returns:
        What became of each, in the order of `targets`.
    """

    def work(number: int) -> Result:
        def advance(phase: str, more: int) -> None:
            observer.advance(number, phase, more)

        result = flash_one(image, block_map, targets[number], advance, stop)
        observer.finish(number, result)
        return result

    with ThreadPoolExecutor(max_workers=max(1, len(targets))) as pool:
        return list(pool.map(work, range(len(targets))))


def flash_one(
    image: Path, block_map: BlockMap, target: Path, advance: Callable[[str, int], None], stop: threading.Event
) -> Result:
    """Write an image to one medium and read it back; errors come in the result.

    Args:
        image: the image.
        block_map: of it.
        target: block device, or file that exists.
        advance: (phase, bytes more) is called for every chunk.
        stop: ends the work at the next chunk when it is set.
    """
    done = {WRITING: 0, READING: 0}
    began = time.perf_counter()

    def progress(phase: str) -> Progress:
        def count(more: int) -> None:
            if stop.is_set():
                raise _InterruptedError
            done[phase] += more
            advance(phase, more)

        return count

    def result(verdict: str, reason: str = "", **more: Any) -> Result:
        return Result(
            str(target),
            verdict,
            reason,
            bytes_written=done[WRITING],
            bytes_read_back=done[READING],
            seconds=time.perf_counter() - began,
            **more,
        )

    if stop.is_set():
        return result(INTERRUPTED, "nothing was written to it")
    try:
        with MediumWriter(target) as writer:
            write_image(image, block_map, writer, progress(WRITING))
        found = read_back(image, block_map, target, progress(READING))
    except _InterruptedError:
        if done[WRITING] == block_map.mapped_bytes:
            return result(INTERRUPTED, f"it was written, but not read back whole; {_erase(target)}")
        return result(INTERRUPTED, _BLANK)
    except (FirmwareError, OSError) as error:
        text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        return result(FAILED, f"{text}; {_erase(target)}")
    if not found.good:
        first = found.faults[0]
        reason = (
            f"{len(found.faults)} stretches read back differently, the first at bytes {first.first_byte} to "
            f"{first.last_byte} ({first.where}); {_erase(target)}"
        )
        return result(FAULTY, reason, past_cache=found.past_cache, faults=found.faults)
    return result(GOOD, past_cache=found.past_cache)


def write_image(image: Path, block_map: BlockMap, writer: MediumWriter, progress: Progress) -> None:
    """Write the mapped blocks of an image; on the medium when this returns, the partition table last.

    The hashes of the map are left to reading back, which finds an image that is not that of its map as well.

    Raises:
        FirmwareError: the image ends before its map does.
        OSError: the medium cannot be written.
    """
    head_end = min(HEAD_BYTES, block_map.image_bytes)
    head: list[tuple[int, bytes]] = []
    buffer = memoryview(bytearray(CHUNK_BYTES))
    writer.reserve(block_map.image_bytes)
    writer.write(bytes(head_end), 0)
    writer.sync()
    with image.open("rb", buffering=0) as source:
        for offset, length in map(block_map.extent, block_map.ranges):
            source.seek(offset)
            position, end = offset, offset + length
            while position < end:
                limit = head_end if position < head_end else end
                done = source.readinto(buffer[: min(CHUNK_BYTES, limit - position, end - position)])
                if not done:
                    raise FirmwareError(f"{image}: ends at {position}, before its map: the image is cut off")
                if position < head_end:
                    head.append((position, bytes(buffer[:done])))
                else:
                    writer.write(buffer[:done], position)
                position += done
                progress(done)
    writer.sync()
    for position, content in head:
        writer.write(content, position)
    writer.sync()


def _erase(target: Path) -> str:
    """Erase the start of a medium that is not good; says in what state it is."""
    with contextlib.suppress(FirmwareError, OSError):
        with MediumWriter(target) as writer:
            writer.write(bytes(HEAD_BYTES), 0)
            writer.sync()
        return _BLANK
    return "its start could not be erased either: do not use it"
