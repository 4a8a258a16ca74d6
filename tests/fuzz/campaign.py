"""One campaign, in a process of its own: a target under libFuzzer (atheris), every input measured.

    python -m tests.fuzz.campaign TARGET DIRECTORY INPUTS SECONDS SEED

Started by `python -m tests.fuzz`. Findings and the state of things go into DIRECTORY. libFuzzer ends this
process without a word to Python, so the state is written as it goes.
"""

import contextlib
import hashlib
import json
import logging
import os
import resource
import sys
import time
import traceback
import tracemalloc
from pathlib import Path
from random import Random
from typing import Any

import atheris

with atheris.instrument_imports(include=["protocol", "runtime.link", "agent", "server"]):
    from tests.fuzz.catalogue import TARGETS, kept
from tests.fuzz.target import MemoryFindingError, observe

HANG_SECONDS = 10
ADDRESS_SPACE_BYTES = 2 << 30
"""Beyond what the process has at its start: an allocation that is larger fails."""
MAX_FINDINGS = 20
WRITE_EVERY = 2000
TRACE_EVERY, TRACE_TOGETHER = 64, 64
"""tracemalloc makes decoding several times slower, so only every so many inputs are traced, those that raised
the process's peak of resident memory, and at the end all that libFuzzer kept."""


class Campaign:
    """Feeds inputs to a target and counts what comes of them."""

    def __init__(self, name: str, directory: Path, inputs: int, seconds: float) -> None:
        self._target = TARGETS[name]
        self._directory = directory
        self._inputs, self._seconds = inputs, seconds
        self._started = time.monotonic()
        self._resident = resident_bytes()
        self.counts = {
            "inputs": 0,
            "past_first_check": 0,
            "accepted": 0,
            "traced": 0,
            "peak_bytes": 0,
            "limit_of_peak": 0,
        }
        self._worst = 0.0
        self._to_trace: list[bytes] = []
        self._findings: dict[str, str] = {}

    def one(self, data: bytes) -> None:
        """Take one input from libFuzzer."""
        counts = self.counts
        counts["inputs"] += 1
        before = resident_bytes()
        try:
            seen = observe(self._target, data)
        except Exception as error:  # noqa: BLE001 - whatever is not declared is a finding
            self._keep(data, error)
        else:
            counts["past_first_check"] += seen.past_first_check
            counts["accepted"] += seen.accepted
        if counts["inputs"] % TRACE_EVERY == 0 or resident_bytes() > before:
            self._to_trace.append(data)
        if len(self._to_trace) >= TRACE_TOGETHER:
            self.trace()
        late = self._seconds and time.monotonic() - self._started > self._seconds
        if counts["inputs"] >= self._inputs or late or len(self._findings) >= MAX_FINDINGS:
            self.finish()
        if counts["inputs"] % WRITE_EVERY == 0:
            self.write()

    def trace(self) -> None:
        """Decode inputs again under tracemalloc, and note the largest share of a declared limit."""
        tracemalloc.start()
        for data in self._to_trace:
            try:
                try:
                    seen = observe(self._target, data)
                except MemoryFindingError:
                    # Again: what fills a cache once, or atheris's own tables, is not the input's.
                    seen = observe(self._target, data)
            except Exception as error:  # noqa: BLE001 - as in `one`
                self._keep(data, error)
                continue
            if seen.peak > self._worst * seen.limit:
                self._worst = seen.peak / seen.limit
                self.counts["peak_bytes"], self.counts["limit_of_peak"] = seen.peak, seen.limit
        tracemalloc.stop()
        self.counts["traced"] += len(self._to_trace)
        self._to_trace.clear()

    def finish(self) -> None:
        """Trace what libFuzzer kept, write the state down and leave."""
        self._to_trace += [path.read_bytes() for path in (self._directory / "corpus").iterdir()]
        self.trace()
        self.write(done=True)
        os._exit(0)

    def mutate(self, data: bytes, longest: int, seed: int) -> bytes:
        """Change an input for libFuzzer."""
        random = Random(seed)
        changed = self._target.mutate(data, random, lambda part: bytes(atheris.Mutate(part, longest)))
        return changed if len(changed) <= longest else changed[:longest]

    def write(self, *, done: bool = False) -> None:
        """Write the state down."""
        state: dict[str, Any] = {
            **self.counts,
            "seconds": time.monotonic() - self._started,
            "resident_growth_bytes": resident_bytes() - self._resident,
            "findings": self._findings,
            "done": done,
        }
        path = self._directory / "state.json"
        path.with_suffix(".new").write_text(json.dumps(state))
        path.with_suffix(".new").replace(path)

    def _keep(self, data: bytes, error: Exception) -> None:
        """Write the first input of each kind of finding down."""
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
        if not any(known.startswith(f"{kind}: ") for known in self._findings):
            path = self._directory / f"finding-{hashlib.sha256(data).hexdigest()[:16]}"
            path.write_bytes(data)
            self._findings[f"{kind}: {str(error)[:200]}"] = str(path)
            self.write()


def resident_bytes() -> int:
    """Most memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run one campaign; never returns."""
    name, place, inputs, seconds, seed = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    directory, target = Path(place), TARGETS[name]
    corpus, seeds = directory / "corpus", directory / "seeds"
    for folder in (corpus, seeds):
        folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (seeds / f"{number:03}").write_bytes(data)
    for path in [*seeds.iterdir(), *kept(name)]:  # caches fill, and imports come, before anything is measured
        with contextlib.suppress(Exception):  # it comes again, and is noted then
            observe(target, path.read_bytes())
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    space = pages * resource.getpagesize() + ADDRESS_SPACE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    campaign = Campaign(name, directory, int(inputs), float(seconds))
    folders = [str(corpus), str(seeds), *({str(path.parent) for path in kept(name)})]
    options = [
        f"-max_len={target.longest}",
        f"-timeout={HANG_SECONDS}",
        "-rss_limit_mb=0",  # the limit of the address space stands
        f"-artifact_prefix={directory}/",
        f"-seed={seed}",
        "-runs=-1",
    ]
    atheris.Setup(
        [sys.argv[0], *options, *folders],
        campaign.one,
        custom_mutator=campaign.mutate,
        internal_libfuzzer=True,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
