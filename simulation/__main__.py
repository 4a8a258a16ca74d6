"""graftwork-simulate: whole federations on one machine, with real processes and a real broker."""

import argparse
import json
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console

from protocol import toml
from protocol.charter import TrainingPolicy
from protocol.errors import ProtocolError
from server.broker import find_mosquitto
from server.errors import ServerError
from simulation import importers, runner, vibration
from simulation.errors import SimulationError
from simulation.experiment import Settings, prepare
from simulation.recordings import read_fleet

DEMO_PACKAGE = "vibration.zip"
ANOMALY_RANK = "8"
"""Of the head for anomaly detection, where a fleet has anomalies."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    # What a person reads goes to standard error, so that standard output is one JSON object.
    console = Console(stderr=True)
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal stops everything, like Ctrl-C
        signal.signal(number, signal.default_int_handler)
    try:
        options.command(options, console)
    except KeyboardInterrupt:
        console.print("stopped; all programs have ended")
        return 130
    except (SimulationError, ServerError, ProtocolError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("graftwork-simulate", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="8 simulated machines and the demo package")
    demo.set_defaults(command=_demo)
    run = commands.add_parser("run", help="a fleet directory of your own, or one that `import` made")
    run.set_defaults(command=_run)
    run.add_argument("--data", type=Path, required=True, help="fleet directory (docs/fleet-directory.md)")
    run.add_argument("--package", type=Path, help="model package; without it a backbone is pre-trained")
    run.add_argument("--pretrain-epochs", type=int, help="of the pre-training (default: its own)")
    for command in (demo, run):
        default = 10 if command is demo else 15
        command.add_argument(
            "--labels-per-class",
            type=_labels,
            default=default,
            metavar="N",
            help=f"labelled windows per class and device, or 'all' (default: {default})",
        )
        command.add_argument("--rounds", type=_positive, default=10, help="rounds (default: 10)")
        command.add_argument("--seed", type=int, default=0, help="of data, labels and training (default: 0)")
        command.add_argument("--epochs", type=_positive, help="local epochs per round")
        command.add_argument("--learning-rate", type=float, help="of local training")
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="an entry of the server's configuration, e.g. training.step_ratio=2 (may be repeated)",
        )
        command.add_argument(
            "--directory", type=Path, default=Path("runs"), help="for all files (default: runs)"
        )
        command.add_argument("--report", type=Path, help="report file (default: DIRECTORY/report.json)")
        command.add_argument("--plot", type=Path, help="plot (default: beside the report, .png)")
        command.add_argument(
            "--secure",
            action="store_true",
            help="as in production: TLS, certificates, a root of trust, devices that enrol; needs mosquitto",
        )
        command.add_argument("--verbose", action="store_true", help="server and agents log every detail")
        command.add_argument(
            "--broker", choices=("mosquitto", "amqtt"), help="default: mosquitto if installed"
        )

    generate = commands.add_parser("generate", help="write the demo's simulated machines as fleet directory")
    generate.set_defaults(command=_generate)
    generate.add_argument("target", type=Path, help="fleet directory to write")
    generate.add_argument("--seed", type=int, default=0, help="of the machines and their recordings")

    load = commands.add_parser("import", help="make a fleet directory of a public data set")
    load.set_defaults(command=_import)
    load.add_argument("name", choices=sorted(importers.IMPORTERS), help="the data set")
    load.add_argument("source", type=Path, help="folder of the data set")
    load.add_argument("target", type=Path, help="fleet directory to write; empty or new")
    return parser


def _demo(options: argparse.Namespace, console: Console) -> None:
    directory: Path = options.directory
    console.print("making simulated vibration of 8 machines", highlight=False)
    vibration.write_fleet(directory / "fleet", options.seed)
    with resources.as_file(resources.files("simulation") / "demo" / DEMO_PACKAGE) as package:
        _experiment(options, directory / "fleet", package, console)


def _run(options: argparse.Namespace, console: Console) -> None:
    package = options.package
    if package is None:
        package = options.directory / "package.zip"
        package.parent.mkdir(parents=True, exist_ok=True)
        extra = ["--epochs", str(options.pretrain_epochs)] if options.pretrain_epochs else []
        if read_fleet(options.data).anomalies:
            extra += ["--anomaly-rank", ANOMALY_RANK]
        runner.pretrain(options.data, package, options.seed, extra, console)
    _experiment(options, options.data, package, console)


def _generate(options: argparse.Namespace, console: Console) -> None:
    fleet = vibration.write_fleet(options.target, options.seed)
    console.print(f"wrote {options.target}: {len(fleet.devices)} simulated machines", highlight=False)


def _import(options: argparse.Namespace, console: Console) -> None:
    importers.import_dataset(options.name, options.source, options.target)
    console.print(f"wrote {options.target}; next: graftwork-simulate run --data {options.target}")


def _experiment(options: argparse.Namespace, data: Path, package: Path, console: Console) -> None:
    changes: dict[str, Any] = {
        name: value
        for name, value in (("epochs", options.epochs), ("learning_rate", options.learning_rate))
        if value is not None
    }
    settings = Settings(
        rounds=options.rounds,
        labels_per_class=options.labels_per_class,
        seed=options.seed,
        training=replace(TrainingPolicy(), **changes),
        server=_entries(options.set),
    )
    if options.secure and (options.broker == "amqtt" or find_mosquitto() is None):
        raise SimulationError("--secure needs mosquitto; on Debian: apt install mosquitto")
    report_file = options.report or options.directory / "report.json"
    plot_file = options.plot or report_file.with_suffix(".png")
    experiment = prepare(options.directory, data, settings)
    summary = runner.run(
        experiment,
        package,
        console=console,
        report_file=report_file,
        plot_file=plot_file,
        broker_kind=options.broker,
        secured=options.secure,
        verbose=options.verbose,
    )
    console.print(f"report: {report_file}   plot: {plot_file}", highlight=False)
    print(json.dumps(summary))


def _entries(texts: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE as lines of one TOML document.

    Raises:
        SimulationError: they are not TOML.
    """
    try:
        return toml.loads("\n".join(texts))
    except toml.TOMLDecodeError as error:
        raise SimulationError(
            f"--set: expected KEY=VALUE as in server.toml, e.g. training.step_ratio=2: {error}"
        ) from None


def _labels(text: str) -> int | None:
    # None at all: for anomaly detection alone.
    return None if text == "all" else 0 if text == "0" else _positive(text)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
