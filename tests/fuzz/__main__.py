"""Hostile bytes, by the million, for every decoder that faces the network.

    python -m tests.fuzz all --inputs 1000000 [--seconds N] [--workers N] [--json]
    python -m tests.fuzz package --replay runs/fuzz/package/finding-0
    python -m tests.fuzz all --keep

Coverage-guided by atheris (libFuzzer), one process per target. A finding is an error that the decoder does
not declare, more than twice the memory that it declares, 10 seconds without an answer, or the end of the
process.
Inputs that lead to one are written to the directory, with the command that replays them. `--keep` puts the
smallest inputs that reach all that was reached into tests/fuzz/corpus, which `make test` replays.
"""

import argparse
import importlib.util
import itertools
import json
import logging
import shutil
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.fuzz.catalogue import CORPUS, TARGETS, kept
from tests.fuzz.minimise import minimise
from tests.fuzz.target import observe

INPUTS = 1_000_000
SLICE = 250_000
"""Inputs per process: atheris 3.0 leaks the result of every comparison of arrays."""
POLL_SECONDS = 0.5
LARGEST_KEPT = 4096


def main() -> int:
    """Run campaigns; print a table, or JSON; 1 when there is a finding."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "target", choices=["all", *TARGETS], metavar="TARGET", help=f"all, {', '.join(TARGETS)}"
    )
    parser.add_argument("--inputs", type=int, default=INPUTS, help=f"per target (default: {INPUTS:,})")
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="per target at most; 0: as long as it takes"
    )
    parser.add_argument("--workers", type=int, default=1, help="targets at a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, default=Path("runs/fuzz"), help="for state and findings")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="only this input, with its traceback")
    parser.add_argument(
        "--keep", action="store_true", help="choose the corpus anew from what was found so far"
    )
    options = parser.parse_args()
    names = list(TARGETS) if options.target == "all" else [options.target]
    logging.disable(logging.CRITICAL)  # what is refused is logged, by the million
    if options.replay:
        return _replay(names[0], options.replay)
    if options.keep:
        for name in names:
            _keep(name, options.directory / name)
        return 0
    if importlib.util.find_spec("atheris") is None:
        parser.error(
            "atheris is not installed here; `make fuzz` installs it (Linux x86-64, Python 3.11 to 3.13)"
        )
    started = time.monotonic()
    with _progress(options.json) as progress:
        bars = {name: progress.add_task(name, total=options.inputs) for name in names}

        def one(name: str) -> dict[str, Any]:
            return campaign(name, options, lambda done: progress.update(bars[name], completed=done))

        with ThreadPoolExecutor(options.workers) as pool:
            results = list(pool.map(one, names))
    if not options.json:
        Console().print(_table(results))
    findings = sum(len(result["findings"]) for result in results)
    summary = {"targets": results, "findings": findings, "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps(summary))
    return int(findings > 0)


def campaign(name: str, options: argparse.Namespace, note: Callable[[int], None]) -> dict[str, Any]:
    """Run one target to its end, slice by slice; returns what came of it.

    Args:
        name: of the target.
        options: of the command line.
        note: told how many inputs were decoded so far.
    """
    directory: Path = options.directory / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    total: dict[str, Any] = {
        "target": name,
        "inputs": 0,
        "seconds": 0.0,
        "findings": {},
        "edges": 0,
        "corpus": 0,
    }
    ended = False
    for number in itertools.count():
        inputs = min(SLICE, options.inputs - total["inputs"])
        seconds = max(0.0, options.seconds - total["seconds"])
        if inputs <= 0 or ended or (options.seconds and not seconds):
            break
        before = dict(total)
        arguments = [name, str(directory), str(inputs), str(seconds), str(options.seed + number)]
        state = _slice(directory, arguments, lambda done, start=before["inputs"]: note(start + done))
        ended = not state.pop("done")
        total = _together(before, {**state, **_coverage(directory)})
        (directory / "total.json").write_text(json.dumps(total))  # of a run that is cut short
    for kind, file in total["findings"].items():
        command = f"python -m tests.fuzz {name} --replay {file}"
        print(f"{name}: {kind}\n    {command}", file=sys.stderr)
    return total


def _slice(directory: Path, arguments: list[str], note: Callable[[int], None]) -> dict[str, Any]:
    """Run some inputs in a process of their own; returns its state, `done` if it came to its end."""
    (directory / "state.json").unlink(missing_ok=True)
    state: dict[str, Any] = {"inputs": 0, "seconds": 0.0, "findings": {}, "done": False}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.campaign", *arguments], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                _STOPPING.wait(POLL_SECONDS)
                state = _read(directory, state)
                note(state["inputs"])
        finally:
            process.kill()
            process.wait()
    state = _read(directory, state)
    if not state["done"]:
        # libFuzzer wrote the input down if it hung; a process that was killed left nothing.
        left = sorted(path for kind in ("timeout", "crash", "oom") for path in directory.glob(f"{kind}-*"))
        state["findings"][f"the process ended by itself ({process.returncode})"] = str(
            [*left, directory / "log"][0]
        )
    return state


def _together(before: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Sum of two slices; of peaks the larger share of its limit, of what was reached and kept the larger."""
    after = {**before, "findings": {**before["findings"], **state["findings"]}}
    for name in ("inputs", "past_first_check", "accepted", "traced"):
        after[name] = before.get(name, 0) + state.get(name, 0)
    after["seconds"] = round(before["seconds"] + state["seconds"], 1)
    for name in ("edges", "corpus", "resident_growth_bytes"):
        after[name] = max(before.get(name, 0), state.get(name, 0))
    worst = max(
        (before, state), key=lambda part: part.get("peak_bytes", 0) / max(1, part.get("limit_of_peak", 1))
    )
    for name in ("peak_bytes", "limit_of_peak"):
        after[name] = worst.get(name, 0)
    return after


_STOPPING = threading.Event()


def _read(directory: Path, before: dict[str, Any]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((directory / "state.json").read_text())
    except FileNotFoundError:
        return before
    return found


def _coverage(directory: Path) -> dict[str, int]:
    """What libFuzzer said last of edges reached, and of inputs kept for reaching something new."""
    found = {"edges": 0, "corpus": 0}
    for line in (directory / "log").read_text(errors="replace").splitlines():
        words = line.split()
        if "cov:" in words and "corp:" in words:
            found["edges"] = int(words[words.index("cov:") + 1])
            found["corpus"] = int(words[words.index("corp:") + 1].split("/")[0])
    return found


def _replay(name: str, path: Path) -> int:
    tracemalloc.start()
    try:
        for _ in range(2):  # the first call fills caches
            seen = observe(TARGETS[name], path.read_bytes())
    except Exception:  # noqa: BLE001 - that is the finding
        traceback.print_exc()
        return 1
    print(seen)
    return 0


def _keep(name: str, directory: Path) -> None:
    """Choose a target's corpus anew, from the old one, the seeds, and what a campaign found."""
    target = TARGETS[name]
    inputs = [path.read_bytes() for path in [*kept(name), *(directory / "corpus").glob("*")]]
    chosen = minimise(target, [*(data for data in inputs if len(data) <= LARGEST_KEPT), *target.seeds()])
    shutil.rmtree(CORPUS / name, ignore_errors=True)
    (CORPUS / name).mkdir(parents=True)
    for number, data in enumerate(chosen):
        (CORPUS / name / f"{number:03}").write_bytes(data)
    print(f"{name}: {len(chosen)} of {len(inputs)} inputs, {sum(map(len, chosen))} bytes")


def _progress(quiet: bool) -> Progress:
    columns = (TextColumn("{task.description:15}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True, quiet=quiet))


def _table(results: list[dict[str, Any]]) -> Table:
    table = Table(
        "target",
        "inputs",
        "past first check",
        "accepted",
        "inputs/s",
        "edges",
        "peak of limit",
        "findings",
        box=box.SIMPLE_HEAD,
    )
    for row in results:
        inputs = max(1, row["inputs"])
        table.add_row(
            row["target"],
            f"{row['inputs']:,}",
            f"{row['past_first_check'] / inputs:.0%}",
            f"{row['accepted'] / inputs:.1%}",
            f"{inputs / max(1e-9, row['seconds']):,.0f}",
            str(row["edges"]),
            f"{row['peak_bytes']:,} of {row['limit_of_peak']:,}",
            str(len(row["findings"])),
        )  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(main())
