"""The device's side: take the adapter, train it on the device's own windows, give it back.

Only the flat adapter vector travels, as float32. Windows and backbone lie on the device's disk. Each round
runs in a process of its own, as Flower does it; what that costs is appended to a file and not sent.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from .network import load
from .training import train

app = ClientApp()


@app.train()
def train_adapter(message: Message, context: Context) -> Message:
    """Train from the adapter that came and reply with the new one."""
    config, device = context.run_config, int(context.node_config["partition-id"])
    torch.set_num_threads(int(config["threads"]))
    run = Path(str(config["run"]))
    windows, labels = (torch.from_numpy(np.load(run / f"device-{device}_{part}.npy")) for part in "xy")
    network = load(run / "weights.npz")
    [adapter] = message.content["arrays"].to_numpy_ndarrays()
    network.set_adapter(adapter)
    server_round = int(message.content["config"]["server-round"])
    first_step: list[float] = []

    def note() -> None:
        if not first_step:
            first_step.append(_age())

    train(
        network,
        windows,
        labels,
        epochs=int(config["epochs"]),
        batch=int(config["batch"]),
        learning_rate=float(config["learning-rate"]),
        random=np.random.Generator(np.random.PCG64([int(config["seed"]), device, server_round])),
        after_step=note,
    )
    with (run / f"device-{device}.jsonl").open("a", encoding="utf-8") as file:
        figures = {"round": server_round, "cold_start_seconds": first_step[0], "cpu": time.process_time()}
        file.write(json.dumps(figures) + "\n")
    content = RecordDict(
        {
            "arrays": ArrayRecord([network.flat_adapter()]),
            "metrics": MetricRecord({"num-examples": len(labels)}),
        }
    )
    return Message(content=content, reply_to=message)


def _age() -> float:
    """Seconds since this process was started."""
    # The name of the program, in brackets, may hold spaces; field 22 is the start in ticks since boot.
    fields = Path("/proc/self/stat").read_text("ascii").rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
