"""One federation of Graftwork, measured: real agents, a real server, a real mosquitto, a proxy per device."""

import re
import shutil
import time

import numpy as np
from numpy.typing import NDArray

from agent.dataset import Labelled, split
from benchmarks.federation import Outcome, Plan, outcome
from benchmarks.process import Sampler
from benchmarks.wire import CountingProxy
from protocol import recording
from protocol.charter import TrainingPolicy
from protocol.windows import concatenate, cut
from server.broker import BrokerSupervisor
from server.store import Store
from simulation.experiment import Experiment, Participant, Settings, prepare, write_configurations
from simulation.processes import Federation

POLL_SECONDS = 0.05
PATIENCE_SECONDS = 600.0


def policy(plan: Plan) -> TrainingPolicy:
    """How devices train; everything else is the default."""
    return TrainingPolicy(epochs=plan.epochs, learning_rate=plan.learning_rate)


def experiment(plan: Plan) -> Experiment:
    """Lay the devices out on disk."""
    settings = Settings(
        rounds=plan.rounds, labels_per_class=None, seed=plan.seed, training=policy(plan), threads=1
    )
    plan.directory.mkdir(parents=True, exist_ok=True)
    return prepare(plan.directory, plan.fleet, settings)


def training_windows(
    plan: Plan, laid_out: Experiment, participant: Participant
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The windows that a device's agent will train on: what it does not hold out for its gate."""
    schema, window = laid_out.fleet.schema, laid_out.fleet.window
    parts = []
    for file in sorted((participant.directory / "spool").iterdir()):
        with file.open("rb") as stream:
            parts.append(cut(recording.parse(stream, file.name, schema), window))
    windows = concatenate(parts)
    index = np.arange(len(windows), dtype=np.float32)[:, np.newaxis]
    data = Labelled(index, windows.y, windows.recording, windows.start)
    chosen = split(data, policy(plan).holdout_fraction, window.length)[0].features[:, 0].astype(np.int64)
    return windows.x[chosen], windows.y[chosen]


def run(plan: Plan) -> Outcome:
    """Run all rounds.

    Raises:
        RuntimeError: nothing happened for a long time.
        SimulationError: a program ended by itself.
    """
    shutil.rmtree(plan.directory, ignore_errors=True)
    laid_out = experiment(plan)
    with BrokerSupervisor(plan.directory / "broker", kind="mosquitto") as broker:
        write_configurations(laid_out, broker.port, "auto")
        proxies = {participant.device.id: CountingProxy(broker.port) for participant in laid_out.participants}
        for proxy in proxies.values():
            proxy.__enter__()
        for participant in laid_out.participants:
            text = participant.config.read_text("utf-8")
            port = f"port = {proxies[participant.device.id].port}"
            participant.config.write_text(re.sub(r"port = \d+", port, text), "utf-8")
        try:
            with Federation(laid_out) as federation:
                return _measure(plan, laid_out, federation, proxies, broker.description)
        finally:
            for proxy in proxies.values():
                proxy.__exit__(None, None, None)


def _measure(
    plan: Plan, laid_out: Experiment, federation: Federation, proxies: dict[str, CountingProxy], broker: str
) -> Outcome:
    federation.register()
    federation.push(plan.package)
    federation.server.start()
    start = time.monotonic()
    for agent in federation.agents.values():
        agent.start()
    with Sampler({name: agent.pid for name, agent in federation.agents.items()}) as sampler:
        ends: list[float] = []
        adapters = []
        clocks = time.monotonic() - time.time()  # noqa: TID251 - the server notes wall-clock time
        deadline = start + PATIENCE_SECONDS
        while len(ends) < plan.rounds:
            federation.check()
            newest = federation.store.newest_release()
            if newest and newest.number > len(ends):
                if newest.number != len(ends) + 1:
                    raise RuntimeError(
                        f"expected release {len(ends) + 1}, missed it: {newest.number} is there"
                    )
                ends.append(newest.created_at + clocks)
                adapters.append(np.array(newest.adapter, np.float32))
            if time.monotonic() > deadline:
                raise RuntimeError(f"no release for {PATIENCE_SECONDS:.0f} s; logs are in {plan.directory}")
            time.sleep(POLL_SECONDS)
        idle = None
        if plan.idle_seconds:
            _wait_for_reports(federation.store, plan, deadline)
            time.sleep(2.0)  # receipts and acknowledgements
            begun = time.monotonic()
            time.sleep(plan.idle_seconds)
            idle = (begun, time.monotonic())
    reports = federation.store.reports(plan.rounds - 1)
    facts = {
        "system": "graftwork",
        "broker": broker,
        "labelled_windows": [participant.labelled_windows for participant in laid_out.participants],
        "reported_peak_rss_bytes": {device: report["peak_rss_bytes"] for device, report in reports.items()},
    }
    return outcome(sampler, proxies, start, ends, adapters, idle=idle, facts=facts)


def _wait_for_reports(store: Store, plan: Plan, deadline: float) -> None:
    while len(store.reports(plan.rounds)) < plan.devices and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
