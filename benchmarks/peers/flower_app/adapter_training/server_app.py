"""The server's side: FedAvg over flat adapter vectors; every round's result and time go to a folder."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds."""
    config = context.run_config
    devices, run = int(config["devices"]), Path(str(config["run"]))

    def keep(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        now = time.monotonic()
        np.save(run / f"round-{server_round}.npy", arrays.to_numpy_ndarrays()[0])
        with (run / "rounds.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"round": server_round, "time": now}) + "\n")
        return None

    strategy = FedAvg(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=devices,
        min_evaluate_nodes=0,
        min_available_nodes=devices,
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.load(run / "initial.npy")]),
        num_rounds=int(config["rounds"]),
        timeout=600,
        evaluate_fn=keep,
    )
