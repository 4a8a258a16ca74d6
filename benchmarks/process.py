"""What programs cost: CPU seconds and memory of a process with all its descendants, sampled while they run.

CPU seconds are user plus system time. Children that have ended count as soon as their parent has waited for
them, as the kernel adds them to it; a tree's figure never falls. Memory is the sum over the processes that
are alive: RSS counts a page that several share once for each, PSS divides it among them. `psutil` reads both.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import psutil

SAMPLE_SECONDS = 0.05
PSS_EVERY = 10
"""Samples between two of PSS, for which the kernel walks every mapping."""
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class Sample:
    """A process tree at one moment."""

    time: float
    """Of the monotonic clock."""
    cpu_seconds: float
    rss_bytes: int
    pss_bytes: int
    """0: not measured this time."""
    processes: int


def look(root: int, *, pss: bool = False) -> Sample | None:
    """Measure a process and its descendants now; None when it is gone."""
    try:
        top = psutil.Process(root)
        members = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return None
    cpu, rss, shared, count = 0.0, 0, 0, 0
    now = time.monotonic()
    for member in members:
        try:
            with member.oneshot():
                times = member.cpu_times()
                cpu += times.user + times.system + times.children_user + times.children_system
                rss += member.memory_info().rss
            count += 1
            shared += member.memory_full_info().pss if pss else 0
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended between the list and the look
    return Sample(now, cpu, rss, shared, count) if count else None


class Sampler:
    """Watches process trees from a thread of its own; use as a context manager."""

    def __init__(self, roots: Mapping[str, int], *, seconds: float = SAMPLE_SECONDS) -> None:
        """Take the trees' names and root processes."""
        self.samples: dict[str, list[Sample]] = {name: [] for name in roots}
        self.peak_rss: dict[str, dict[str, int]] = {name: {} for name in roots}
        """Per tree, the highest VmHWM in bytes of any process of each program name."""
        self._roots = dict(roots)
        self._seconds = seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def cpu_between(self, name: str, start: float, stop: float) -> float:
        """CPU seconds of a tree between two moments of the monotonic clock."""
        times = [sample.time for sample in self.samples[name]]
        used = np.maximum.accumulate([sample.cpu_seconds for sample in self.samples[name]])
        return float(np.interp(stop, times, used) - np.interp(start, times, used))

    def peak_between(self, name: str, start: float, stop: float) -> Sample:
        """The sample with the highest RSS between two moments, with the highest PSS of that time."""
        inside = [sample for sample in self.samples[name] if start <= sample.time <= stop]
        if not inside:
            raise ValueError(f"{name}: expected samples between {start} and {stop}, there are none")
        top = max(inside, key=lambda sample: sample.rss_bytes)
        pss = max(sample.pss_bytes for sample in inside)
        return Sample(top.time, top.cpu_seconds, top.rss_bytes, pss, top.processes)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        count = 0
        while not self._stopping.is_set():
            for name, root in self._roots.items():
                sample = look(root, pss=count % PSS_EVERY == 0)
                if sample is not None:
                    self.samples[name].append(sample)
                if count % PSS_EVERY == 0:
                    self._note_peaks(name, root)
            count += 1
            self._stopping.wait(self._seconds)

    def _note_peaks(self, name: str, root: int) -> None:
        try:
            top = psutil.Process(root)
            members = [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for member in members:
            try:
                label = _program(member.cmdline()) or member.name()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            peaks = self.peak_rss[name]
            peaks[label] = max(peaks.get(label, 0), peak_rss(member.pid))


def _program(command: Sequence[str]) -> str:
    """Name of a Python program, from `python -m NAME` or `python PATH/NAME`."""
    if "-m" in command[:-1]:
        return command[command.index("-m") + 1]
    return Path(command[1]).name if len(command) > 1 else ""


def peak_rss(pid: int | str = "self") -> int:
    """VmHWM of a process in bytes: the most that was ever resident; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


class Child:
    """A program in a session of its own, its output in a file; it and its descendants end with `stop`."""

    def __init__(
        self, command: Sequence[str], log: Path, *, cwd: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it."""
        self.command = list(command)
        self.log = log
        self.started = time.monotonic()
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command,
                cwd=cwd,
                env={**os.environ, **(environment or {})},
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def check(self) -> None:
        """Raise when it ended by itself.

        Raises:
            RuntimeError: with the last lines of its output.
        """
        if self.process.poll() is not None:
            raise RuntimeError(
                f"{self.command[0]} ended with {self.process.returncode}:\n{self.last_words()}"
            )

    def last_words(self, lines: int = 15) -> str:
        """The end of its output."""
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])

    def stop(self) -> None:
        """Ask it to end, and end by force what is left of it after a while."""
        family = []
        try:
            family = psutil.Process(self.pid).children(recursive=True)
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(STOP_SECONDS)
        except psutil.NoSuchProcess:
            pass
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        deadline = time.monotonic() + STOP_SECONDS
        while not all(map(_ended, family)) and time.monotonic() < deadline:
            time.sleep(0.01)


def _ended(process: psutil.Process) -> bool:
    """Whether a process is gone, or only waits for whoever adopted it to notice."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def one_thread(count: int = 1) -> dict[str, str]:
    """Environment under which numerical libraries use `count` threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return dict.fromkeys(names, str(count))
