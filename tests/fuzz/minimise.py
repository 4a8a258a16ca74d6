"""Chooses the few inputs that are kept: each goes from one line to another as none before it does.

Smallest first, so that what is kept is small. It needs no fuzzer, only the interpreter's own tracing.
"""

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.target import Target, observe

ROOT = Path(__file__).parents[2]
ROOMS = tuple(f"{ROOT / room}/" for room in ("protocol", "runtime", "agent", "server"))

Arc = tuple[str, int, int]


def minimise(target: Target, inputs: Iterable[bytes]) -> list[bytes]:
    """Keep the inputs that reach something new, the smallest first."""
    for data in target.seeds():
        arcs_of(target, data)  # what happens only once, as the filling of caches, is no input's doing
    seen: set[Arc] = set()
    kept = []
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        new = arcs_of(target, data) - seen
        if new:
            seen |= new
            kept.append(data)
    return kept


def arcs_of(target: Target, data: bytes) -> set[Arc]:
    """Pairs of lines that follow one another in the decoders' rooms while an input is decoded."""
    arcs: set[Arc] = set()

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        if event != "call" or not frame.f_code.co_filename.startswith(ROOMS):
            return None
        last = 0

        def step(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal last
            line = -frame.f_lineno if event == "exception" else frame.f_lineno
            arcs.add((frame.f_code.co_filename, last, line))
            last = line
            return step

        return step

    sys.settrace(enter)
    try:
        with contextlib.suppress(Exception):  # a finding is kept like everything else
            observe(target, data)
    finally:
        sys.settrace(None)
    return arcs
