"""Size, error and speed of the update codec on synthetic updates.

    python -m benchmarks.codec [--json]

Gaussian and heavy-tailed (Student t, 3 degrees, with a log-normal scale per 1,000 parameters) vectors, step
of two root mean squares: bits per parameter of the coded body, its overhead to the entropy of the symbols,
the error relative to the vector's energy, and millions of parameters per second on one core.

Measured 2026-11-23 on 2 shared x86-64 cores: see docs/results.md.
"""

import argparse
import json
import time

import numpy as np

from protocol import entropy_coding
from protocol.quantisation import Quantised, dequantise, dither_seed, quantise, to_float

SIZES = (5_000, 10_000, 100_000, 1_000_000)


def main() -> None:
    """Measure and print a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    options = parser.parse_args()
    rows = [measure(kind, size) for size in SIZES for kind in ("gaussian", "heavy_tailed")]
    if not options.json:
        for row in rows:
            print("  ".join(f"{name} {value}" for name, value in row.items()))
    print(json.dumps({"results": rows}))


def measure(kind: str, size: int) -> dict[str, float | str]:
    """One row of the table."""
    random = np.random.Generator(np.random.PCG64(size))
    vector = random.normal(size=size)
    if kind == "heavy_tailed":
        scale = np.repeat(np.exp(random.normal(size=-(-size // 1000))), 1000)[:size]
        vector = random.standard_t(3, size) * scale
    vector = (1e-3 * vector).astype(np.float32)
    parts, seed = [slice(0, size)], dither_seed("benchmark", kind, 1, b"")
    started = time.perf_counter()
    quantised = quantise(vector, parts, seed, 2.0)
    body = entropy_coding.encode(quantised.symbols)
    encoded = time.perf_counter()
    symbols = entropy_coding.decode(body, size)
    restored = to_float(dequantise(Quantised(quantised.steps, symbols), parts, seed))
    decoded = time.perf_counter()
    shares = np.unique(symbols, return_counts=True)[1] / size
    entropy = float(-(shares * np.log2(shares)).sum())
    bits = 8 * len(body) / size
    return {
        "kind": kind,
        "parameters": size,
        "bits_per_parameter": round(bits, 3),
        "entropy_overhead": round(bits / entropy - 1, 4),
        "error": round(float(np.sum((restored - vector) ** 2) / np.sum(vector.astype(np.float64) ** 2)), 4),
        "encode_mparameters_per_second": round(size / (encoded - started) / 1e6, 2),
        "decode_mparameters_per_second": round(size / (decoded - encoded) / 1e6, 2),
    }


if __name__ == "__main__":
    main()
