"""One federation of Flower, measured: a SuperLink, a SuperNode per device, a proxy for each.

Flower runs as it comes, in an environment of its own: ClientApps in subprocesses, plain HTTP, no
installation of dependencies at run time (it would ask a package index). Its folder, FLWR_HOME, is one per
process tree.
"""

import json
import math
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.federation import Floats, Outcome, Plan, outcome
from benchmarks.process import Child, Sampler, one_thread
from benchmarks.wire import CountingProxy
from server.broker import free_port

APP = Path(__file__).resolve().parent / "flower_app"
ROOT = APP.parents[2]
POLL_SECONDS = 0.05
GREETING_BYTES = 4_500
"""More than a SuperNode sends to register and to activate itself; a poll is 850 bytes."""
READY_SECONDS = 90.0
PATIENCE_SECONDS = 900.0


def run(plan: Plan, partitions: list[tuple[Floats, np.ndarray]], initial: Floats) -> Outcome:
    """Run all rounds.

    Args:
        plan: as for Graftwork; `interpreter` is that of the environment with Flower.
        partitions: windows and labels of each device.
        initial: the adapter to start from, float32 [parameters].

    Raises:
        RuntimeError: a program ended by itself, or nothing happened for a long time.
    """
    shutil.rmtree(plan.directory, ignore_errors=True)
    plan.directory.mkdir(parents=True)
    for index, (windows, labels) in enumerate(partitions):
        np.save(plan.directory / f"device-{index}_x.npy", windows)
        np.save(plan.directory / f"device-{index}_y.npy", labels)
    np.save(plan.directory / "initial.npy", initial)
    shutil.copy(plan.weights, plan.directory / "weights.npz")
    app = plan.directory / "app"
    shutil.copytree(APP, app, ignore=shutil.ignore_patterns("__pycache__"))
    (app / "__init__.py").unlink()
    shutil.copy(ROOT / "LICENSE", app / "LICENSE")
    children: list[Child] = []
    port = free_port()
    proxies = {f"device-{index}": CountingProxy(port) for index in range(plan.devices)}
    for proxy in proxies.values():
        proxy.__enter__()
    try:
        return _measure(plan, app, port, proxies, children)
    finally:
        for child in reversed(children):
            child.stop()
        for proxy in proxies.values():
            proxy.__exit__(None, None, None)


def _measure(
    plan: Plan,
    app: Path,
    port: int,
    proxies: dict[str, CountingProxy],
    children: list[Child],
) -> Outcome:
    def start(name: str, *command: str) -> Child:
        child = Child(
            [str(plan.interpreter.parent / command[0]), *command[1:]],
            plan.directory / f"{name}.log",
            cwd=plan.directory,
            environment=_environment(plan, name),
        )
        children.append(child)
        return child

    link = start(
        "superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port),
        "--disable-runtime-dependency-installation",
    )  # fmt: skip
    _until(lambda: _listens(port), link, READY_SECONDS, "the SuperLink listens")
    nodes = {
        name: start(
            name, "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{proxy.port}",
            "--host", "127.0.0.1", "--port", str(free_port()),
            "--node-config", f"partition-id={index} num-partitions={plan.devices}",
        )
        for index, (name, proxy) in enumerate(proxies.items())
    }  # fmt: skip
    with Sampler({name: node.pid for name, node in nodes.items()}) as sampler:
        for name, node in nodes.items():
            # A node that has registered polls: it has sent more than a greeting.
            _until(partial(_polls, proxies[name]), node, READY_SECONDS, f"{name} polls")
        config = f"run='{plan.directory}' rounds={plan.rounds} devices={plan.devices} epochs={plan.epochs}"
        config += f" learning-rate={plan.learning_rate} seed={plan.seed}"
        home = Path(_environment(plan, "cli")["FLWR_HOME"])
        address = f'address = "127.0.0.1:{port}"\ninsecure = true\n'
        settings = f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\n{address}'
        home.joinpath("config.toml").write_text(settings, "utf-8")
        begun = time.monotonic()
        cli = start("cli", "flwr", "run", str(app), "bench", "-c", config)
        ends: list[float] = []
        while len(ends) < plan.rounds:
            ends = _ends(plan.directory)
            for child in (link, *nodes.values()):
                child.check()
            if cli.process.poll() not in (None, 0):
                raise RuntimeError(f"flwr run failed:\n{cli.last_words()}")
            if time.monotonic() - begun > PATIENCE_SECONDS:
                raise RuntimeError(f"no result for {PATIENCE_SECONDS:.0f} s:\n{link.last_words()}")
            time.sleep(POLL_SECONDS)
        idle = None
        if plan.idle_seconds:
            time.sleep(10.0)  # the run's programs end
            first = time.monotonic()
            time.sleep(plan.idle_seconds)
            idle = (first, time.monotonic())
    adapters = [np.load(plan.directory / f"round-{number}.npy") for number in range(1, plan.rounds + 1)]
    lines = [
        json.loads(line)
        for index in range(plan.devices)
        for line in (plan.directory / f"device-{index}.jsonl").read_text("utf-8").splitlines()
    ]
    show = "import flwr, torch; print('flwr', flwr.__version__, 'torch', torch.__version__)"
    version = subprocess.run(
        [plan.interpreter, "-c", show],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    facts = {
        "system": version.stdout.strip(),
        "training_windows": [
            len(np.load(plan.directory / f"device-{index}_y.npy")) for index in range(plan.devices)
        ],
        "cold_start_seconds": float(np.median([line["cold_start_seconds"] for line in lines])),
        "client_app_cpu_seconds": float(np.median([line["cpu"] for line in lines])),
        "connections": {name: proxy.connections for name, proxy in proxies.items()},
    }
    return outcome(sampler, proxies, begun, ends, adapters, idle=idle, facts=facts)


def _environment(plan: Plan, name: str) -> dict[str, str]:
    home = plan.directory / "home" / name
    home.mkdir(parents=True, exist_ok=True)
    return {
        **one_thread(),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{plan.interpreter.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "",
    }


def _ends(directory: Path) -> list[float]:
    """When each round ended; line 0 is the start."""
    file = directory / "rounds.jsonl"
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    return [json.loads(line)["time"] for line in lines if json.loads(line)["round"] > 0]


def _polls(proxy: CountingProxy) -> bool:
    # It keeps one connection, or opens many when the machine is slow: bytes tell, connections do not.
    return proxy.between(0, math.inf)[0] > GREETING_BYTES


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _until(condition: Callable[[], bool], child: Child, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        child.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {seconds:.0f} s in vain: {what}\n{child.last_words()}")
        time.sleep(POLL_SECONDS)
