"""The report of a run: figures, table, report.json and plot, from a federation that was really run."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from protocol.fleet import Device, FleetDescription, Split
from protocol.messages import Update, peek
from protocol.topics import Topics
from server.round import RoundPolicy
from server.store import Store
from simulation import report
from simulation.evaluation import DeviceResult
from simulation.experiment import Experiment, Participant, Settings
from simulation.in_process import FEDERATION, SERVER, InProcessFederation
from tests.builders import (
    PARAMETERS,
    SCHEMA,
    WINDOW,
    LogisticEngine,
    tiny_package,
    two_levels,
    write_recording,
)

NAMES = ("fan-1", "pump-1")
RESULTS = [
    DeviceResult("fan-1", "fan", 20, 8, backbone=0.5, local=0.75, fleet=0.5, release=0.25, choice="local"),
    DeviceResult(
        "pump-1", "pump", 20, 8, backbone=0.5, local=0.5, fleet=1.0, release=0.75, choice="personal"
    ),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The store of a server that ran two rounds with two devices."""
    folder = tmp_path_factory.mktemp("federation")
    spools = {name: folder / "spools" / name for name in NAMES}
    for spool in spools.values():
        spool.mkdir(parents=True)
        write_recording(spool / "a.csv", two_levels(10))
    policy = RoundPolicy(minimum_devices=2, rounds=2)
    make_engine = lambda *_: LogisticEngine()  # noqa: E731
    with InProcessFederation(folder, tiny_package(), spools, policy, make_engine=make_engine) as federation:
        federation.run()
    store = Store(folder / SERVER)
    yield store
    store.close()


def experiment_in(directory: Path, *, simulated: bool = True) -> Experiment:
    devices = tuple(Device(name, name[:-2], "edge") for name in NAMES)
    fleet = FleetDescription(SCHEMA, WINDOW, devices, Split("time"), "plant", "", simulated=simulated)
    participants = tuple(Participant(device, directory, 28, 20, 8) for device in devices)
    return Experiment(directory, fleet, Settings(rounds=2), participants, ("fan-2: broken",))


def test_the_summary_counts_bytes_rounds_and_devices_that_lost(tmp_path: Path, store: Store) -> None:
    experiment = experiment_in(tmp_path)
    summary = report.summarise(experiment, store, RESULTS, PARAMETERS, 1.26)
    topics = Topics(FEDERATION)
    sizes = [
        len(envelope) + len(topics.up(device, "update")) + 58
        for number in (1, 2)
        for device, envelope, *_ in store.journalled_updates(number)
    ]
    bodies = [
        len(peek(Update, envelope).body)
        for number in (1, 2)
        for _, envelope, *_ in store.journalled_updates(number)
    ]
    assert summary == {
        "devices": 2,
        "rounds": 2,
        "accuracy_backbone": 0.5,
        "accuracy_local": 0.625,
        "accuracy_fleet": 0.75,
        "accuracy_release": 0.5,
        "devices_worse": 1,
        "bytes_up_per_update": round(sum(sizes) / 4, 1),
        "bits_per_parameter": round(8 * sum(sizes) / 4 / PARAMETERS, 3),
        "body_bits_per_parameter": round(8 * sum(bodies) / 4 / PARAMETERS, 3),
        "seconds": 1.3,
        "release_sha256": store.releases()[0]["sha256"].hex(),
    }


def test_a_run_without_a_single_round(tmp_path: Path) -> None:
    empty = Store(tmp_path / "server")
    summary = report.summarise(experiment_in(tmp_path), empty, RESULTS, PARAMETERS, 1.0)
    assert (summary["rounds"], summary["bits_per_parameter"], summary["release_sha256"]) == (0, 0.0, "")
    empty.close()


def test_the_report_holds_summary_devices_releases_and_problems(tmp_path: Path, store: Store) -> None:
    experiment = experiment_in(tmp_path)
    summary = report.summarise(experiment, store, RESULTS, PARAMETERS, 1.0)
    path = tmp_path / "deep" / "report.json"
    report.write(path, experiment, store, RESULTS, summary)
    content = json.loads(path.read_text("utf-8"))
    assert {key: content[key] for key in summary} == summary
    assert content["simulated_data"] is True
    assert content["problems"] == ["fan-2: broken"]
    assert [device["worse"] for device in content["per_device"]] == [True, False]
    assert all(device["report"]["labelled_windows"] == 20 for device in content["per_device"])
    assert [release["number"] for release in content["releases"]] == [0, 1, 2]
    assert content["releases"][-1]["sha256"] == summary["release_sha256"]
    assert content["settings"]["rounds"] == 2


@pytest.mark.parametrize(("simulated", "words"), [(True, "simulated data"), (False, "real data")])
def test_the_table_says_where_the_data_come_from(
    tmp_path: Path, store: Store, words: str, *, simulated: bool
) -> None:
    out = io.StringIO()
    console = Console(file=out, width=200)
    report.show(console, experiment_in(tmp_path, simulated=simulated), store, RESULTS)
    text = out.getvalue()
    assert words in text
    assert "left out: fan-2: broken" in text
    for value in ("fan-1", "pump-1", "-25.0", "+50.0", "+12.5"):
        assert value in text


@pytest.mark.filterwarnings("default")
def test_the_plot_is_a_picture(tmp_path: Path, store: Store) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "deep" / "plot.png"
    report.plot(path, experiment_in(tmp_path), store, RESULTS)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
