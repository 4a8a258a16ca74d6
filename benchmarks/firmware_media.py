"""Media: is every fault found, what does reading back cost, how long do 1,000 identities take?

    python -m benchmarks.firmware_media [--faults 100] [--mebibytes 256] [--repeats 3]

`faults_found` flashes an image to a file, changes one random bit of a mapped block, reads the whole of it
back, and puts the bit right; so 100 times. `readback_ratio` runs `bmaptool copy` and `graftwork-firmware
flash`, which also reads back, on the same image in turn, each as a program of its own, and compares their
medians. `identities_seconds` is one command from tokens to seeds and ledger. All of it is on files: a card
is slower, and reading it back costs what reading a card costs.
"""

import argparse
import hashlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from firmware_tools.block_map import for_image, render
from firmware_tools.flash import GOOD, Result, flash
from firmware_tools.read_back import read_back
from protocol.signing import PrivateKey

MIB = 1 << 20
GOAL_RATIO = 1.5
GOAL_SECONDS = 10.0


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--mebibytes", type=int, default=256, help="data of the image for readback_ratio")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "faults_found": faults_found(Path(folder), options.faults),
            "readback_ratio": readback_ratio(Path(folder), options.mebibytes * MIB, options.repeats),
            "identities_seconds": identities_seconds(Path(folder)),
        }
    print(json.dumps(result))


def faults_found(folder: Path, faults: int = 100, size: int = 64 * MIB, seed: int = 0) -> dict[str, Any]:
    """Inject single-bit faults one by one into a flashed file, and read all of it back each time.

    Args:
        folder: for image and target, both removed afterwards.
        faults: how many.
        size: bytes of the image, half of which is data.
        seed: of what is random.

    Returns:
        `faults`, `found` (with the right offset), and `seconds` for one read-back, mean.

    Raises:
        SystemExit: flashing fails, or a good target does not read back.
    """
    source = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    image, target = _image(folder / "faults.img", size // 2, source), folder / "faults.card"
    target.touch()
    block_map = for_image(image)
    [result] = flash(image, block_map, [target], _Silence(), threading.Event())
    if result.verdict != GOOD:
        raise SystemExit(f"flashing failed: {result.reason}")
    extents = [block_map.extent(one) for one in block_map.ranges]
    found, seconds = 0, 0.0
    for _ in range(faults):
        [(start, length)] = source.choices(extents, weights=[length for _, length in extents])
        offset, bit = start + source.randrange(length), 1 << source.randrange(8)
        _flip(target, offset, bit)
        began = time.perf_counter()
        seen = read_back(image, block_map, target).faults
        seconds += time.perf_counter() - began
        found += [(fault.first_byte, fault.last_byte) for fault in seen] == [(offset, offset)]
        _flip(target, offset, bit)
    if not read_back(image, block_map, target).good:
        raise SystemExit("a target without faults does not read back")
    for path in (image, target):
        path.unlink()
    return {"faults": faults, "found": found, "seconds": round(seconds / max(1, faults), 3)}


def readback_ratio(folder: Path, data: int = 256 * MIB, repeats: int = 3) -> dict[str, Any]:
    """Compare flashing with read-back to what `bmaptool copy` takes, which does not read back.

    Args:
        folder: for image and targets, all removed afterwards.
        data: mapped bytes of the image.
        repeats: of both, in turn.

    Returns:
        Medians `ours_seconds` and `bmaptool_seconds`, their `ratio`, `goal`; `skipped` where bmaptool is
        missing.
    """
    bmaptool = shutil.which("bmaptool")
    if bmaptool is None:
        return {"skipped": "bmaptool is missing: apt install bmap-tools"}
    image = _image(folder / "ratio.img", data, random.Random(1))  # noqa: S311
    bmap, target = folder / "ratio.bmap", folder / "ratio.card"
    bmap.write_bytes(render(for_image(image)))
    ours = [sys.executable, "-m", "firmware_tools", "flash", str(image), str(target), "--file"]
    commands = {
        "bmaptool": [bmaptool, "copy", "--bmap", str(bmap), str(image), str(target)],
        "ours": [*ours, "--bmap", str(bmap)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            target.unlink(missing_ok=True)
            target.touch()
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - began)
    for path in (image, bmap, target):
        path.unlink()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "mebibytes": data // MIB,
        **{f"{name}_seconds": round(value, 2) for name, value in medians.items()},
        "ratio": round(medians["ours"] / medians["bmaptool"], 2),
        "goal": GOAL_RATIO,
    }


def identities_seconds(folder: Path, count: int = 1000) -> dict[str, Any]:
    """Provision devices with one command: tokens are read, seeds written, the ledger filled.

    Returns:
        `identities`, `seconds` of the command with both ways of making keys, and `goal`.
    """
    tokens, ca = folder / "tokens", folder / "ca.crt"
    tokens.mkdir()
    ca.write_text("certificate\n")
    for number in range(1, count + 1):
        token = hashlib.sha256(str(number).encode()).hexdigest()[:40]
        (tokens / f"edge-{number:04}.token").write_text(token + "\n")
    seconds = {}
    for name, option in (("on_device", f"--tokens={tokens}"), ("factory_keys", "--factory-keys")):
        command = [
            sys.executable,
            "-m",
            "firmware_tools",
            "provision",
            "identities",
            f"--count={count}",
            option,
        ]
        command += [f"--ledger={folder / name}.sqlite", f"--output={folder / name}", "--federation=plant"]
        command += [f"--server-key={PrivateKey.generate().public.raw.hex()}", "--broker-host=broker.example"]
        began = time.perf_counter()
        subprocess.run([*command, f"--services-ca={ca}"], check=True, capture_output=True)
        seconds[name] = round(time.perf_counter() - began, 2)
    return {"identities": count, "seconds": seconds, "goal": GOAL_SECONDS}


class _Silence:
    """Nobody looks."""

    def advance(self, number: int, phase: str, more: int) -> None:
        """See Observer."""

    def finish(self, number: int, result: Result) -> None:
        """See Observer."""


def _image(path: Path, data: int, source: random.Random) -> Path:
    """A sparse image of twice its data: runs of 4 KiB to 8 MiB."""
    with path.open("wb") as file:
        file.truncate(2 * data)
        position, left = 0, data
        while left:
            run = min(left, source.randrange(1, 2048) * 4096)
            file.seek(position)
            file.write(source.randbytes(run))
            position, left = position + 2 * run, left - run
    return path


def _flip(target: Path, offset: int, bit: int) -> None:
    with target.open("rb+") as file:
        file.seek(offset)
        [byte] = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ bit]))


if __name__ == "__main__":
    main()
