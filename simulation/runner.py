"""Runs an experiment: a real broker, a real server and real agents as processes, then the test."""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from protocol.package import unpack
from runtime.keys import load_or_make
from server.broker import BrokerSupervisor
from server.keys import SIGNING_FILE
from server.store import Store
from simulation import report
from simulation.errors import SimulationError
from simulation.evaluation import evaluate
from simulation.experiment import Experiment, write_configurations
from simulation.processes import Federation
from simulation.progress import RoundsView
from simulation.secure import secure

POLL_SECONDS = 0.25
STALL_SECONDS = 900.0
"""A federation in which nothing happens for so long is given up."""


def run(
    experiment: Experiment,
    package: Path,
    *,
    console: Console,
    report_file: Path,
    plot_file: Path,
    broker_kind: str | None = None,
    secured: bool = False,
    verbose: bool = False,
) -> dict[str, Any]:
    """Run all rounds, test every device, write report and plot; returns the summary.

    Args:
        experiment: what is run.
        package: the model package.
        console: for people.
        report_file: where the report goes.
        plot_file: where the plot goes.
        broker_kind: "mosquitto" or "amqtt".
        secured: with TLS, certificates, a root of trust, and devices that enrol (simulation/secure.py).
        verbose: whether the programs log every detail.

    Raises:
        SimulationError: a program ended by itself, or nothing happened for a long time.
        ServerError: the broker does not start.
    """
    manifest = unpack(package.read_bytes(), None).manifest
    if (manifest.schema, manifest.window) != (experiment.fleet.schema, experiment.fleet.window):
        raise SimulationError(
            f"{package} does not fit the fleet: "
            f"expected {experiment.fleet.schema} {experiment.fleet.window}, "
            f"got {manifest.schema} {manifest.window}"
        )
    started = time.monotonic()
    with _broker(experiment, broker_kind, secured=secured) as broker:
        console.print(f"broker: {broker.description}", highlight=False)
        with Federation(experiment, verbose=verbose) as federation:
            if not secured:
                federation.register()
            federation.push(package)
            console.print(
                f"server and {len(experiment.participants)} agents start; logs are in {experiment.directory}",
                highlight=False,
            )
            federation.start()
            with RoundsView(console, experiment.settings.rounds) as view:
                follow(experiment, federation, view.update)
            seconds = time.monotonic() - started
    store = Store(experiment.server_directory / "data")
    try:
        results = evaluate(experiment)
        summary = report.summarise(experiment, store, results, manifest.parameters, seconds)
        report.show(console, experiment, store, results)
        report.write(report_file, experiment, store, results, summary)
        report.plot(plot_file, experiment, store, results)
    finally:
        store.close()
    return summary


def _broker(experiment: Experiment, kind: str | None, *, secured: bool) -> BrokerSupervisor:
    """The broker of a run, once all configurations are written."""
    if not secured:
        broker = BrokerSupervisor(experiment.directory / "broker", kind=kind)
        write_configurations(experiment, broker.port, "3.1.1" if broker.kind == "amqtt" else "auto")
        return broker
    key = load_or_make(experiment.server_directory / "data" / SIGNING_FILE)
    setup = secure(experiment, key.public)
    write_configurations(experiment, 0, "auto", server_changes=setup.server, device_changes=setup.device)
    return setup.broker


def follow(experiment: Experiment, federation: Federation, look: Callable[[Store], None]) -> None:
    """Wait until all rounds are done and every device has reported on the last release.

    Raises:
        SimulationError: a program ended by itself, or nothing happened for a long time.
    """
    devices = {participant.device.id for participant in experiment.participants}
    seen: tuple[int, int, int] = (0, 0, 0)
    changed = time.monotonic()
    while True:
        federation.check()
        look(federation.store)
        rows = federation.store.rounds()
        done = sum(1 for row in rows if row["outcome"] == "released")
        newest = federation.store.newest_release()
        reported = federation.store.reports(newest.number) if newest else {}
        if done >= experiment.settings.rounds and devices <= set(reported):
            return
        now = (done, sum(row["counted"] for row in rows), len(reported))
        if now != seen:
            seen, changed = now, time.monotonic()
        elif time.monotonic() - changed > STALL_SECONDS:
            raise SimulationError(
                f"nothing happened for {STALL_SECONDS:.0f} s; the server's log ends with:\n"
                f"{federation.server.last_words()}"
            )
        time.sleep(POLL_SECONDS)


def pretrain(fleet_directory: Path, package: Path, seed: int, arguments: list[str], console: Console) -> None:
    """Pre-train a backbone on the source devices with graftwork-models, which alone knows torch.

    Raises:
        SimulationError: it is not installed, or fails.
    """
    if importlib.util.find_spec("torch") is None:
        raise SimulationError(
            "pre-training needs the models extra: pip install '.[models]', "
            "or name a ready package with --package"
        )
    console.print("pre-training a backbone on the source devices")
    command = [sys.executable, "-m", "models", "pretrain", str(fleet_directory), "--output", str(package)]
    result = subprocess.run([*command, "--seed", str(seed), *arguments], check=False)  # noqa: S603
    if result.returncode:
        raise SimulationError("pre-training failed, see above")
