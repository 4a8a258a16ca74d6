"""What is fuzzed: a decoder, the errors it declares, the memory it declares, and inputs that reach its depth.

A target turns bytes into a case. Whatever an attacker would do himself (sign, hash, pack) belongs into making
the case; only the decoder's own work is measured.
"""

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from protocol.errors import ProtocolError

ERROR_BYTES = 16 * 1024
"""What the error itself takes: exception, traceback, text, and frames of code that atheris instrumented."""

Raw = Callable[[bytes], bytes]
"""Changes bytes without knowing what they mean: libFuzzer's mutations, or those of `mutations.raw`."""


@dataclass(frozen=True)
class Case:
    """One input, ready to be decoded."""

    decode: Callable[[Callable[[], None]], object]
    """Decodes; calls its argument once the first check is passed."""
    limit: int
    """Bytes of memory that the decoder declares for this input."""


@dataclass(frozen=True)
class Target:
    """A decoder that faces the network."""

    name: str
    prepare: Callable[[bytes], Case]
    seeds: Callable[[], list[bytes]]
    """Inputs that real encoders wrote; the same every time."""
    mutate: Callable[[bytes, Random, Raw], bytes]
    """Changes an input so that checksums, hashes and signatures still hold, at least now and then."""
    longest: int
    """Bytes of the longest input."""
    first_check: str
    """What most random bytes fail at, in words."""


@dataclass(frozen=True)
class Observation:
    """What a decoder made of an input."""

    past_first_check: bool
    accepted: bool
    peak: int
    """Bytes of memory that decoding took at most, as tracemalloc sees them."""
    limit: int


class MemoryFindingError(AssertionError):
    """A decoder took more than twice the memory that it declares."""


def observe(target: Target, data: bytes) -> Observation:
    """Decode one input and measure it.

    Memory is measured where tracemalloc runs; else `peak` is 0.

    Raises:
        MemoryFindingError: it took more than twice the declared memory.
        Exception: any but ProtocolError that the decoder let out: a finding.
    """
    case = target.prepare(data)
    past = accepted = False

    def passed() -> None:
        nonlocal past
        past = True

    before, _ = tracemalloc.get_traced_memory()
    if tracemalloc.is_tracing():
        tracemalloc.reset_peak()
    try:
        case.decode(passed)
        accepted = True
    except ProtocolError:
        pass
    _, peak = tracemalloc.get_traced_memory()
    seen = Observation(past or accepted, accepted, max(0, peak - before), case.limit)
    if seen.peak > 2 * case.limit + ERROR_BYTES:
        raise MemoryFindingError(f"{target.name}: {seen.peak} bytes of memory, declared are {case.limit}")
    return seen
