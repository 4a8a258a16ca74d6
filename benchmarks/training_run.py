"""One training by the agent's own code, measured from inside a fresh process; engines.py starts it.

It needs what a device has: no torch, no psutil. The last line it prints is a JSON object. With `--first-step`
it ends after the first step of the optimiser; otherwise it trains as a device does in its first round (frozen
part once per window, then the epochs), and then again as in every later round (the features are there).
"""

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from agent import optimizers
from agent.dataset import Labelled
from agent.training import train
from protocol import cbor, records
from protocol.charter import TrainingPolicy
from protocol.package import ADAPTER, Manifest, read_adapter
from runtime import memory

ENGINES = {
    "onnxruntime": ("agent.onnxruntime_engine", "OnnxruntimeEngine"),
    "onnxruntime-training": ("agent.onnxruntime_training_engine", "OnnxruntimeTrainingEngine"),
    "litert": ("agent.litert_engine", "LiteRTEngine"),
}
"""Opened by themselves: the agent's configuration imports its network link, which PyTorch has none of."""
LEARNING_RATE = 0.003


def main() -> None:
    """Train and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("package", type=Path, help="folder of an unpacked package")
    parser.add_argument("task", type=Path, help="folder of the windows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--started", type=float, required=True, help="monotonic clock at the start")
    parser.add_argument("--first-step", action="store_true")
    options = parser.parse_args()

    memory.use_one_heap()  # as the agent does before its threads start
    manifest = records.from_numbered(
        Manifest, cbor.decode((options.package / "manifest.cbor").read_bytes(), limit=1 << 20)
    )
    adapter = read_adapter((options.package / ADAPTER).read_bytes(), manifest.parameters)
    windows = np.load(options.task / "training_x.npy", mmap_mode="r")
    labels = np.load(options.task / "training_y.npy")
    policy = TrainingPolicy(epochs=options.epochs, learning_rate=LEARNING_RATE)
    batch = manifest.batch
    # Opening imports the runtime; the graphs themselves are loaded at their first use, and count as training.
    module, name = ENGINES[options.engine]
    make = getattr(importlib.import_module(module), name)
    engine = make(options.package, manifest, threads=options.threads)
    if options.first_step:
        ones = np.ones(batch, np.float32)
        features = engine.features(np.asarray(windows[:batch]))
        _, gradient = engine.loss_and_gradient(adapter, features, labels[:batch], ones)
        stepped = optimizers.make(policy, policy.learning_rate).step(adapter, gradient)
        if not np.isfinite(stepped).all():
            raise SystemExit("the first step diverged")
        wall, cpu = time.monotonic() - options.started, time.process_time()
        print(
            json.dumps(
                {
                    "cold_start_seconds": wall,
                    "cold_start_cpu_seconds": cpu,
                    "rss_bytes": memory.peak_resident_bytes(),
                }
            )
        )
        return

    everything = np.load(options.task / "training_x.npy")  # in memory before the clock starts, as for PyTorch
    index = np.arange(len(labels))

    def trained(features: Any) -> Any:
        data = Labelled(features, labels, np.zeros_like(index), index)
        return train(engine, adapter, data, policy, np.random.Generator(np.random.PCG64(options.seed)))

    cpu = imports = time.process_time()
    features = engine.features(everything)
    prefix = time.process_time()
    result = trained(features)
    cold = time.process_time()
    started = time.perf_counter()
    again = trained(features)
    warm, seconds = time.process_time(), time.perf_counter() - started
    peak = memory.peak_resident_bytes()
    total = time.process_time()
    held, held_labels = (np.load(options.task / f"held_out_{part}.npy") for part in "xy")
    right = engine.predict(result, engine.features(held)).argmax(1) == held_labels
    if not np.array_equal(result, again):
        raise SystemExit("the second training gave another adapter")
    report = {
        "imports_cpu_seconds": imports,
        "prefix_cpu_seconds": prefix - cpu,
        "cold_cpu_seconds": cold - cpu,
        "warm_cpu_seconds": warm - cold,
        "process_cpu_seconds": total,
        "epoch_ms": 1e3 * seconds / options.epochs,
        "step_ms": 1e3 * seconds / options.epochs / -(-len(labels) // batch),
        "rss_bytes": peak,
        "accuracy": float(right.mean()),
        "runtime": engine.describe(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
