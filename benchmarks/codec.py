"""Size, error and speed of the update codec, beside what others send.

    python -m benchmarks.codec [--json] [--no-demo] [--no-fleets] [--data DIR]

Vectors: Gaussian, heavy-tailed (Student t, 3 degrees, with a log-normal scale per 1,000 parameters), and the
real updates of the demo's devices after three rounds (the personal adapter minus the release). For each: bits
per parameter of the coded body; its overhead to the entropy of the symbols; the error relative to its
energy (NMSE); the distance to the rate-distortion bound of a Gaussian of that energy (at R bits no code has
less error than 2**(-2R); a heavy-tailed vector may beat it); millions of parameters per second of quantising
and encoding, of decoding and restoring, and of both together, on one core.

Beside it: float32, float16 with zstd, 4 bits in the manner of QSGD (one scale, stochastic rounding), and the
largest 1 % of the values in float16 with coded gaps.

Last, what coding costs in accuracy on the real fleets (coding_accuracy.py): `accuracy_difference_points`
is that of the fleet on which it is worst, of the adapters that the devices use. The data sets' folders are in
`DIR` ($GRAFTWORK_DATA by default).

Measured 2026-11-24 on 2 shared x86-64 cores: see docs/results.md.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from agent.store import Store
from benchmarks.coding_accuracy import Cost, as_row, costs
from benchmarks.rehearsal import data_directory
from protocol import entropy_coding
from protocol.charter import TrainingPolicy
from protocol.quantisation import Quantised, dequantise, dither_seed, quantise, to_float

Floats = NDArray[np.float32]
SIZES = (10_000, 100_000, 1_000_000)
REPEATS = 5
STEP_RATIO = TrainingPolicy.step_ratio


def main() -> None:
    """Measure and print a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--no-demo", action="store_true", help="without the updates of a demo run")
    parser.add_argument("--no-fleets", action="store_true", help="without the accuracy on real fleets")
    parser.add_argument("--data", help="folder of the data sets (default: $GRAFTWORK_DATA)")
    parser.add_argument("--labels", type=int, default=15, help="labelled windows per class and device")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", default="0,1,2", help="of backbone, labels and training")
    options = parser.parse_args()
    fleets = [] if options.no_fleets else _costs(options)
    rows = [ours(kind, synthetic(kind, size)) for size in SIZES for kind in ("gaussian", "heavy_tailed")]
    updates = [] if options.no_demo else list(demo_updates())
    rows += [mean_of([ours("demo", update) for update in updates])] if updates else []
    others = [
        {"kind": kind, "code": name, **code(vector)}
        for kind, vector in (
            ("gaussian", synthetic("gaussian", 100_000)),
            *(("demo", u) for u in updates[:1]),
        )
        for name, code in OTHERS.items()
    ]
    if not options.json:
        for row in [*rows, *others]:
            print("  ".join(f"{name} {value}" for name, value in row.items()))
        for found in fleets:
            print(_line(found))
    largest = next(row for row in rows if row["kind"] == "gaussian" and row["parameters"] == SIZES[-1])
    real = rows[-1]
    worst = min((found.difference["fleet"] for found in fleets), default=None)
    summary = {
        "bits_per_parameter": max([real["bits_per_parameter"], *(round(f.body_bits, 3) for f in fleets)]),
        "accuracy_difference_points": None if worst is None else round(worst, 3),
        "entropy_overhead": real["entropy_overhead"],
        "parameters_per_second": largest["both_mparameters_per_second"] * 1e6,
    }
    results = {"results": rows, "others": others, "fleets": [as_row(found) for found in fleets]}
    print(json.dumps({**summary, **results}))


def _costs(options: argparse.Namespace) -> list[Cost]:
    seeds = [int(seed) for seed in options.seeds.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        data = data_directory(options.data)
        return costs(Path(folder), data, seeds, labels=options.labels, rounds=options.rounds)


def _line(found: Cost) -> str:
    figures = "  ".join(
        f"{name} {found.coded[name]:.1f} ({found.difference[name]:+.2f} +- {found.standard_error[name]:.2f})"
        for name in found.coded
    )
    return f"{found.fleet:18} body {found.body_bits:.2f} bit, message {found.message_bits:.2f} bit  {figures}"


def synthetic(kind: str, size: int) -> Floats:
    """A vector of that kind, float32 [size]."""
    random = np.random.Generator(np.random.PCG64(size))
    vector = random.normal(size=size)
    if kind == "heavy_tailed":
        scale = np.repeat(np.exp(random.normal(size=-(-size // 1000))), 1000)[:size]
        vector = random.standard_t(3, size) * scale
    return (1e-3 * vector).astype(np.float32)


def demo_updates() -> Iterator[Floats]:
    """What the demo's devices would send next, float32 [parameters] each."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "simulation", "demo", "--rounds", "3", "--directory", folder]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{result.stderr}")
        for path in sorted(Path(folder).glob("devices/*/**/agent.sqlite")):
            with contextlib.closing(Store(path)) as store:
                personal, base = store.adapter("personal"), store.adapter("global")
            if personal is not None and base is not None:
                yield personal - base


def ours(kind: str, vector: Floats) -> dict[str, Any]:
    """One row of the table."""
    parts, seed = [slice(0, vector.size)], dither_seed("benchmark", kind, 1, b"")
    encoding, decoding = [], []
    for _ in range(REPEATS):
        started = time.perf_counter()
        quantised = quantise(vector, parts, seed, STEP_RATIO)
        body = entropy_coding.encode(quantised.symbols)
        encoded = time.perf_counter()
        symbols = entropy_coding.decode(body, vector.size)
        restored = to_float(dequantise(Quantised(quantised.steps, symbols), parts, seed))
        encoding.append(encoded - started)
        decoding.append(time.perf_counter() - encoded)
    encode, decode = float(np.median(encoding)), float(np.median(decoding))
    shares = np.unique(symbols, return_counts=True)[1] / vector.size
    entropy = float(-(shares * np.log2(shares)).sum())
    bits, error = 8 * len(body) / vector.size, nmse(restored, vector)
    return {
        "kind": kind,
        "parameters": vector.size,
        "bits_per_parameter": round(bits, 3),
        "entropy_overhead": round(bits / entropy - 1, 4),
        "nmse": round(error, 4),
        "bits_above_gaussian_bound": round(bits + 0.5 * float(np.log2(error)), 3),
        "encode_mparameters_per_second": round(vector.size / encode / 1e6, 2),
        "decode_mparameters_per_second": round(vector.size / decode / 1e6, 2),
        "both_mparameters_per_second": round(vector.size / (encode + decode) / 1e6, 2),
    }


def mean_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of rows of one kind."""
    figures = [name for name in rows[0] if name != "kind"]
    return {"kind": rows[0]["kind"]} | {
        name: round(float(np.mean([row[name] for row in rows])), 4) for name in figures
    }


def nmse(restored: NDArray[np.floating[Any]], vector: Floats) -> float:
    """Squared error relative to the vector's energy."""
    wanted = vector.astype(np.float64)
    return float(np.sum((restored - wanted) ** 2) / np.sum(wanted**2))


def row(payload: bytes, restored: NDArray[np.floating[Any]], vector: Floats) -> dict[str, Any]:
    """Bits and error of another code."""
    return {
        "bits_per_parameter": round(8 * len(payload) / vector.size, 3),
        "nmse": round(nmse(restored, vector), 6),
    }


def whole(vector: Floats) -> dict[str, Any]:
    """What a framework without compression sends."""
    return row(vector.tobytes(), vector, vector)


def half_zstd(vector: Floats) -> dict[str, Any]:
    """Half precision and a general compressor."""
    halved = vector.astype(np.float16)
    return row(zstandard.compress(halved.tobytes(), 19), halved.astype(np.float32), vector)


def four_bits(vector: Floats) -> dict[str, Any]:
    """Sixteen levels between the extremes, rounded up or down at random (after Alistarh et al. 2017)."""
    random = np.random.Generator(np.random.PCG64(0))
    scale = float(np.abs(vector).max()) / 7
    levels = np.floor(vector / scale + random.random(vector.size)).clip(-8, 7)
    packed = bytes((vector.size + 1) // 2)
    return row(packed, levels * scale, vector)


def largest_percent(vector: Floats) -> dict[str, Any]:
    """The largest 1 % in half precision; their distances entropy-coded."""
    count = max(1, vector.size // 100)
    chosen = np.sort(np.argpartition(-np.abs(vector), count)[:count])
    values = vector[chosen].astype(np.float16)
    gaps = np.diff(chosen, prepend=-1).astype(np.int32)
    restored = np.zeros_like(vector)
    restored[chosen] = values
    return row(values.tobytes() + entropy_coding.encode(gaps), restored, vector)


OTHERS: dict[str, Callable[[Floats], dict[str, Any]]] = {
    "float32": whole,
    "float16 and zstd": half_zstd,
    "4 bit, stochastic": four_bits,
    "largest 1 %": largest_percent,
}


if __name__ == "__main__":
    main()
