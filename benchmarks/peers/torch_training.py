"""One training in plain PyTorch, measured from inside a fresh process; engines.py starts it.

The counterpart of training_run.py: same weights, windows, batches in the same order, epochs, optimiser. The
last line it prints is a JSON object. With `--cached` the frozen part runs once per window and the epochs
train on its features, which a PyTorch user has to write for each network by hand.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.flower_app.adapter_training.network import load
from benchmarks.peers.flower_app.adapter_training.training import accuracy, features, train

BATCH = 32
LEARNING_RATE = 0.003


def main() -> None:
    """Train and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", type=Path, help="folder of windows and weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--started", type=float, required=True, help="monotonic clock at the start")
    parser.add_argument("--first-step", action="store_true")
    parser.add_argument("--cached", action="store_true")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.set_num_interop_threads(1)
    weights = options.task / "weights.npz"
    windows = np.load(options.task / "training_x.npy", mmap_mode="r")
    labels = torch.from_numpy(np.load(options.task / "training_y.npy"))
    settings: dict[str, Any] = {"batch": BATCH, "learning_rate": LEARNING_RATE}

    def random() -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(options.seed))

    if options.first_step:
        train(
            load(weights),
            torch.tensor(windows[:BATCH]),
            labels[:BATCH],
            epochs=1,
            random=random(),
            **settings,
        )
        wall, cpu = time.monotonic() - options.started, time.process_time()
        print(json.dumps({"cold_start_seconds": wall, "cold_start_cpu_seconds": cpu, "rss_bytes": _peak()}))
        return

    everything = torch.from_numpy(np.load(options.task / "training_x.npy"))
    # PyTorch imports a good part of itself at the first step of an optimiser; imports are counted apart.
    train(load(weights), everything[:BATCH], labels[:BATCH], epochs=1, random=random(), **settings)
    imports, cpu = time.process_time(), time.process_time()
    network = load(weights)
    initial = network.flat_adapter().copy()
    inputs, forward = everything, None
    if options.cached:
        inputs, forward = features(network, everything, BATCH), network.trained
    prefix = time.process_time()
    train(network, inputs, labels, epochs=options.epochs, random=random(), forward=forward, **settings)
    cold = time.process_time()
    learned = network.flat_adapter().copy()
    network.set_adapter(initial)
    warm_from, started = time.process_time(), time.perf_counter()
    train(network, inputs, labels, epochs=options.epochs, random=random(), forward=forward, **settings)
    warm, seconds = time.process_time(), time.perf_counter() - started
    peak = _peak()
    total = time.process_time()
    network.set_adapter(learned)
    held, held_labels = (torch.from_numpy(np.load(options.task / f"held_out_{part}.npy")) for part in "xy")
    report = {
        "imports_cpu_seconds": imports,
        "prefix_cpu_seconds": prefix - cpu,
        "cold_cpu_seconds": cold - cpu,
        "warm_cpu_seconds": warm - warm_from,
        "process_cpu_seconds": total,
        "epoch_ms": 1e3 * seconds / options.epochs,
        "step_ms": 1e3 * seconds / options.epochs / -(-len(labels) // BATCH),
        "rss_bytes": peak,
        "accuracy": accuracy(network, held, held_labels),
        "runtime": f"torch {torch.__version__}",
    }
    print(json.dumps(report))


def _peak() -> int:
    """VmHWM in bytes."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
