"""What an experiment ends with: a table, a plot, report.json, and one line of JSON."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from protocol.messages import Update, peek
from protocol.sealing import SEALED_BYTES
from protocol.topics import Topics
from server.store import Store
from simulation.evaluation import DeviceResult, anomaly_means, means
from simulation.experiment import Experiment


def summarise(
    experiment: Experiment, store: Store, results: list[DeviceResult], parameters: int, seconds: float
) -> dict[str, Any]:
    """The figures that the last line prints.

    Args:
        experiment: what was run.
        store: the server's.
        results: of every device.
        parameters: of the adapter.
        seconds: from the start of the programs to their end.
    """
    newest = store.newest_release()
    accuracy = means(results)
    messages, bodies = _update_bytes(experiment, store)
    return {
        "devices": len(results),
        "rounds": sum(1 for row in store.rounds() if row["outcome"] == "released"),
        "accuracy_backbone": round(accuracy["backbone"], 4),
        "accuracy_local": round(accuracy["local"], 4),
        "accuracy_fleet": round(accuracy["fleet"], 4),
        "accuracy_release": round(accuracy["release"], 4),
        "devices_worse": sum(result.worse for result in results),
        **{name: round(value, 4) for name, value in anomaly_means(results).items()},
        "bytes_up_per_update": round(messages, 1),
        "bits_per_parameter": round(8 * messages / parameters, 3),
        "body_bits_per_parameter": round(8 * bodies / parameters, 3),
        "seconds": round(seconds, 1),
        "release_sha256": newest.sha256.hex() if newest else "",
    }


def write(
    path: Path, experiment: Experiment, store: Store, results: list[DeviceResult], summary: dict[str, Any]
) -> None:
    """Write report.json: the summary, every device, every release, and the settings."""
    newest = store.newest_release()
    reports = store.reports(newest.number) if newest else {}
    content = {
        **summary,
        "simulated_data": experiment.fleet.simulated,
        "fleet": experiment.fleet.name,
        "settings": asdict(experiment.settings),
        "problems": list(experiment.problems),
        "per_device": [
            {**asdict(result), "worse": result.worse, "report": reports.get(result.device)}
            for result in results
        ],
        "releases": [
            {name: value.hex() if isinstance(value, bytes) else value for name, value in row.items()}
            for row in store.releases()[::-1]
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def table(experiment: Experiment, store: Store, results: list[DeviceResult]) -> Table:
    """A row per device: accuracies, the gate's choice, bytes and memory."""
    newest = store.newest_release()
    reports = store.reports(newest.number) if newest else {}
    source = "simulated data" if experiment.fleet.simulated else "real data"
    title = f"{experiment.fleet.name or 'fleet'} ({source}): accuracy on unseen test data, %"
    # Narrow enough for a terminal of 80 columns; report.json has the rest.
    out = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.add_column("device", no_wrap=True)
    for name in ("labels", "backbone", "alone", "fleet", "change"):
        out.add_column(name, justify="right", min_width=len(name))
    out.add_column("uses", min_width=8)
    for name in ("KiB up", "KiB down"):
        out.add_column(name, justify="right")
    for result in results:
        report = reports.get(result.device, {})
        change = 100 * (result.fleet - result.local)
        colour = "green" if change > 0 else "red" if change < 0 else "dim"
        out.add_row(
            result.device,
            str(result.labelled_windows),
            *(f"{100 * value:.1f}" for value in (result.backbone, result.local, result.fleet)),
            f"[{colour}]{change:+.1f}[/{colour}]",
            result.choice,
            f"{report.get('bytes_up', 0) / 1024:.1f}",
            f"{report.get('bytes_down', 0) / 1024:.1f}",
        )
    accuracy = means(results)
    out.add_section()
    out.add_row(
        "mean",
        "",
        *(f"{100 * accuracy[name]:.1f}" for name in ("backbone", "local", "fleet")),
        f"{100 * (accuracy['fleet'] - accuracy['local']):+.1f}",
    )
    return out


def show(console: Console, experiment: Experiment, store: Store, results: list[DeviceResult]) -> None:
    """Print the table and what was left out."""
    for problem in experiment.problems:
        console.print(f"[yellow]left out:[/yellow] {problem}", highlight=False)
    console.print(table(experiment, store, results))
    anomalies = anomaly_means(results)
    if anomalies:
        console.print(
            "anomalies without labels, mean over devices: "
            f"AUROC alone {anomalies['auroc_local']:.3f}, fleet {anomalies['auroc_fleet']:.3f}; "
            f"F1 alone {anomalies['f1_local']:.3f}, fleet {anomalies['f1_fleet']:.3f}",
            highlight=False,
        )
    console.print(
        "backbone: the untouched head; alone: training without the fleet; fleet: what the device uses after "
        "its gate; labels: labelled windows on the device",
        style="dim",
    )


def plot(path: Path, experiment: Experiment, store: Store, results: list[DeviceResult]) -> None:
    """Draw accuracies per device and the training loss per round as PNG."""
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, and only needed at the end

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(14, max(4.5, 0.28 * len(results) + 1.5)), width_ratios=(3, 2), layout="constrained"
    )
    rows = np.arange(len(results))[::-1]
    colours = {"backbone": "#9aa0a6", "local": "#e8a33d", "fleet": "#1f6f54"}
    labels = {"backbone": "untouched backbone", "local": "training alone", "fleet": "with the fleet"}
    for row, result in zip(rows, results, strict=True):
        values = [100 * getattr(result, name) for name in colours]
        left.plot([min(values), max(values)], [row, row], color="#d0d4d8", zorder=1, linewidth=2)
    for name, colour in colours.items():
        values = [100 * getattr(result, name) for result in results]
        left.scatter(values, rows, color=colour, label=labels[name], zorder=2, s=46)
        left.axvline(float(np.mean(values)), color=colour, linestyle=":", linewidth=1)
    left.set_yticks(rows, [f"{result.device}" for result in results], fontsize=8)
    left.set_xlabel("accuracy on unseen test data, % (dotted: mean)")
    left.legend(loc="best", fontsize=8)
    left.grid(axis="x", alpha=0.3)
    releases = [row for row in store.releases()[::-1] if row["round"] is not None]
    numbers = range(1, len(releases) + 1)
    for key, text, colour in (
        ("loss_before", "release, before local training", colours["fleet"]),
        ("loss_after", "after local training", colours["local"]),
    ):
        right.plot(
            numbers, [row["metrics"][key] for row in releases], "o-", label=text, color=colour, markersize=4
        )
    right.set_xlabel("round")
    right.set_ylabel("training loss, mean over devices")
    right.set_ylim(bottom=0)
    right.legend(fontsize=8)
    right.grid(alpha=0.3)
    source = "simulated data" if experiment.fleet.simulated else "real data"
    figure.suptitle(f"{experiment.fleet.name or 'fleet'} ({source}), {len(results)} devices")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _update_bytes(experiment: Experiment, store: Store) -> tuple[float, float]:
    """Mean bytes of counted updates: with topic, envelope and seal, and of the coded body alone."""
    topics = Topics(experiment.federation)
    messages, bodies = [], []
    for row in store.rounds():
        for device, envelope, *_ in store.journalled_updates(row["number"]):
            messages.append(len(topics.up(device, "update")) + len(envelope) + SEALED_BYTES)
            bodies.append(len(peek(Update, envelope).body))
    return (float(np.mean(messages)), float(np.mean(bodies))) if messages else (0.0, 0.0)
