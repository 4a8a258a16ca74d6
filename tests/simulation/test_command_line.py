"""graftwork-simulate: what it refuses, in words; and bad recordings, which stop one device, not the fleet."""

import shutil
from pathlib import Path

import pytest

from protocol.charter import TrainingPolicy
from server.config import load
from simulation import vibration
from simulation.__main__ import main
from simulation.errors import SimulationError
from simulation.experiment import Settings, prepare, write_configurations
from simulation.machines import machines

Captured = pytest.CaptureFixture[str]


def said(capsys: Captured) -> str:
    """Standard error in one line; standard output must be empty."""
    captured = capsys.readouterr()
    assert captured.out == ""
    return " ".join(captured.err.split())


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fleet")
    chosen = [machine for machine in machines(0) if machine.id in ("pump-1", "fan-1", "gearbox-1")]
    vibration.write_fleet(directory, 0, tuple(chosen))
    return directory


@pytest.fixture
def fleet(tmp_path: Path, intact: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "fleet"))


def break_row(path: Path, line: int) -> None:
    lines = path.read_text("utf-8").splitlines()
    lines[line - 1] = "oops" + lines[line - 1][lines[line - 1].index(",") :]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def test_import_of_data_that_are_not_there(tmp_path: Path, capsys: Captured) -> None:
    assert main(["import", "skab_valve", str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert "error: data set 'skab_valve': expected its folder at" in said(capsys)


def test_import_of_a_folder_that_holds_something_else(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "in").mkdir()
    assert main(["import", "gearbox_vibration", str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    assert "error: data set 'gearbox_vibration': expected the file" in said(capsys)


def test_import_into_a_folder_in_use(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "note.txt").write_text("mine")
    assert main(["import", "sp_sw_har", str(tmp_path), str(tmp_path)]) == 1
    assert "expected a folder that is empty or does not exist" in said(capsys)
    assert (tmp_path / "note.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments", [["import", "unknown", "a", "b"], ["demo", "--rounds", "0"], ["demo", "--broker", "x"], []]
)
def test_a_wrong_command_line_is_explained(arguments: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage:" in said(capsys)


def test_run_of_a_folder_that_is_no_fleet(tmp_path: Path, capsys: Captured) -> None:
    package = tmp_path / "package.zip"
    package.write_bytes(b"")
    arguments = ["--data", str(tmp_path), "--package", str(package), "--directory", str(tmp_path / "run")]
    assert main(["run", *arguments]) == 1
    assert "fleet.toml" in said(capsys)


def test_generate_writes_a_fleet(tmp_path: Path, capsys: Captured) -> None:
    assert main(["generate", str(tmp_path / "fleet"), "--seed", "3"]) == 0
    assert "14 simulated machines" in said(capsys)
    assert (tmp_path / "fleet" / "fleet.toml").is_file()


def test_one_broken_recording_is_named_and_the_device_goes_on(tmp_path: Path, fleet: Path) -> None:
    break_row(fleet / "pump-1" / "healthy-0.csv", 17)
    experiment = prepare(tmp_path / "run", fleet, Settings())
    assert [participant.device.id for participant in experiment.participants] == [
        "pump-1",
        "fan-1",
        "gearbox-1",
    ]
    [problem] = experiment.problems
    for word in ("'pump-1'", "healthy-0.csv", "line 17", "oops"):
        assert word in problem


def test_a_device_with_nothing_but_broken_recordings_is_left_out(tmp_path: Path, fleet: Path) -> None:
    for path in (fleet / "fan-1").iterdir():
        break_row(path, 5)
    experiment = prepare(tmp_path / "run", fleet, Settings())
    assert [participant.device.id for participant in experiment.participants] == ["pump-1", "gearbox-1"]
    assert len(experiment.problems) == 16
    assert all("'fan-1'" in problem for problem in experiment.problems)
    assert all("line 5" in problem for problem in experiment.problems[:15])
    assert "none of them good" in experiment.problems[15]
    assert not (tmp_path / "run" / "devices" / "fan-1").exists()


def test_a_fleet_of_which_nothing_is_left(tmp_path: Path, fleet: Path) -> None:
    for name in ("pump-1", "fan-1", "gearbox-1"):
        shutil.rmtree(fleet / name)
    with pytest.raises(SimulationError, match="the folder is missing"):
        prepare(tmp_path / "run", fleet, Settings())


def test_entries_of_the_server_reach_its_configuration(tmp_path: Path, fleet: Path) -> None:
    changes = {
        "training": {"step_ratio": 3.5, "learning_rate_factors": {"head": 0.5}},
        "release_step_ratio": 1.0,
    }
    experiment = prepare(tmp_path / "run", fleet, Settings(server=changes))
    write_configurations(experiment, 1883, "auto")
    config = load(experiment.server_directory / "server.toml")
    assert (config.training.step_ratio, config.training.learning_rate_factors) == (3.5, {"head": 0.5})
    assert (config.training.epochs, config.release_step_ratio) == (TrainingPolicy().epochs, 1.0)


def test_an_entry_that_is_not_toml_is_explained(tmp_path: Path, capsys: Captured) -> None:
    arguments = ["demo", "--directory", str(tmp_path), "--set", "training.step_ratio"]
    assert main(arguments) == 1
    assert "--set: expected KEY=VALUE as in server.toml" in capsys.readouterr().err
