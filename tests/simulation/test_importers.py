"""Importers: the real data sets become fleets of known size, and what is missing is named."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import DataError
from protocol.fleet import FleetDescription
from protocol.recording import Recording
from runtime.pictures import read_picture
from simulation.importers import IMPORTERS, import_dataset
from simulation.pictures import read_device_pictures
from simulation.recordings import read_device, read_fleet
from simulation.splits import divide

DATA = Path(os.environ.get("GRAFTWORK_DATA", Path(__file__).parents[3] / "shared" / "data"))


def imported(name: str, target: Path) -> tuple[FleetDescription, dict[str, tuple[Recording, ...]]]:
    """Import a data set and read every device back, without a single error."""
    pytest.importorskip("pyarrow")
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is absent; set GRAFTWORK_DATA to the folder of the data sets")
    import_dataset(name, DATA, target)
    fleet = read_fleet(target)
    found = {device.id: read_device(target, fleet, device) for device in fleet.devices}
    assert [error for device in found.values() for error in device.errors] == []
    assert not fleet.simulated
    assert "Licence:" in fleet.description
    return fleet, {identity: device.recordings for identity, device in found.items()}


def rows(recordings: dict[str, tuple[Recording, ...]]) -> int:
    return sum(len(recording.labels) for parts in recordings.values() for recording in parts)


@pytest.mark.data
def test_gearbox_devices_are_one_sensor_at_one_load(tmp_path: Path) -> None:
    fleet, recordings = imported("gearbox_vibration", tmp_path / "fleet")
    assert len(fleet.devices) == 40
    assert len(fleet.of_role("source")) == 10
    assert {device.domain for device in fleet.of_role("source")} == {"a1"}
    assert fleet.schema.channels == ("acceleration",)
    assert fleet.schema.classes == ("healthy", "broken_tooth")
    assert rows(recordings) == 4 * 20 * 50_000
    with np.load(DATA / "gearbox_vibration" / "gearbox_vibration.npz") as data:
        index = int(np.flatnonzero((data["domain"] == 30) & (data["y"] == 1))[0])
        expected = data["x"][index, :, 2]
    broken = recordings["a3-load30"][0]
    assert broken.name == "broken_tooth.parquet"
    assert broken.labels.tolist() == [1] * 50_000
    assert broken.samples[:, 0].tobytes() == expected.tobytes()


@pytest.mark.data
def test_activity_devices_are_one_persons_phone_or_watch(tmp_path: Path) -> None:
    fleet, recordings = imported("sp_sw_har", tmp_path / "fleet")
    assert len(fleet.devices) == 46
    assert len(fleet.of_role("source")) == 8
    assert {device.domain for device in fleet.of_role("source")} == {"sp"}
    assert len(fleet.schema.channels) == 6
    assert len(fleet.schema.classes) == 5
    assert fleet.split.by == "recording"
    assert sum(len(parts) for parts in recordings.values()) == 446
    assert rows(recordings) == 521_766


@pytest.mark.data
def test_pump_devices_are_three_or_four_experiments_of_one_fault(tmp_path: Path) -> None:
    fleet, recordings = imported("skab_valve", tmp_path / "fleet")
    assert len(fleet.devices) == 10
    assert len(fleet.of_role("source")) == 2
    assert {device.domain for device in fleet.of_role("edge")} == {"valve1", "valve2", "other"}
    assert {len(parts) for parts in recordings.values()} == {3, 4}
    assert rows(recordings) == 37_401
    labels = np.concatenate([part.labels for parts in recordings.values() for part in parts])
    assert np.unique(labels).tolist() == [0, 1]
    assert labels.mean() == pytest.approx(0.35, abs=0.01)


@pytest.mark.data
def test_hydraulic_devices_are_the_rig_in_one_state(tmp_path: Path) -> None:
    fleet, recordings = imported("hydraulic_rig", tmp_path / "fleet")
    assert len(fleet.devices) == 12
    assert [device.id for device in fleet.of_role("source")] == [
        "cooler003-accumulator130",
        "cooler020-accumulator130",
        "cooler100-accumulator130",
    ]
    assert len(fleet.schema.channels) == 8
    assert rows(recordings) == 2205 * 60
    for parts in recordings.values():
        assert {label for part in parts for label in part.labels.tolist()} == {0, 1, 2}
    with np.load(DATA / "hydraulic_rig" / "hydraulic_rig.npz") as data:
        first = recordings["cooler003-accumulator130"][0]
        assert np.array_equal(first.samples[:60, 0], data["TS1"][0])
        assert first.samples[0, 6] == pytest.approx(data["FS1"][0, :10].mean())


@pytest.mark.data
def test_meter_devices_are_one_meter_with_the_original_files(tmp_path: Path) -> None:
    if not (DATA / "meter_digits").is_dir():
        pytest.skip(f"{DATA / 'meter_digits'} is absent; set GRAFTWORK_DATA to the folder of the data sets")
    target = tmp_path / "fleet"
    import_dataset("meter_digits", DATA, target)
    fleet = read_fleet(target)
    assert (len(fleet.devices), len(fleet.of_role("source"))) == (16, 6)
    assert {device.domain for device in fleet.devices} == {"gas", "power", "water"}
    assert fleet.schema.input_shape(fleet.window) == (1, 32, 20)
    assert "Licence:" in fleet.description
    device = next(device for device in fleet.devices if device.id == "water_unknown_iotson")
    found = read_device_pictures(target, fleet, device)
    assert found.errors == ()
    with np.load(DATA / "meter_digits" / "meter_digits.npz") as data:
        archive, offsets = data["jpeg"].tobytes(), data["offsets"]
        members = np.flatnonzero(data["domain"] == device.id)
        originals = Counter(
            (int(data["y"][index]), archive[offsets[index] : offsets[index + 1]]) for index in members
        )
    assert Counter((file.label, file.path.read_bytes()) for file in found.pictures) == originals
    fives = np.stack([read_picture(f, fleet.schema) for f in found.pictures if f.label == 5])
    steps = np.sqrt(((fives[1:] - fives[:-1]) ** 2).mean((1, 2, 3)))
    others = np.sqrt(((fives[1:] - fives[:1]) ** 2).mean((1, 2, 3)))
    assert np.median(steps) < np.median(others), "pictures that hardly differ are neighbours"


@pytest.mark.data
def test_noses_of_one_stall_smell_the_same_ten_foods(tmp_path: Path) -> None:
    fleet, recordings = imported("smellnet_gas", tmp_path / "fleet")
    assert (len(fleet.devices), len(fleet.of_role("source"))) == (11, 4)
    assert fleet.schema.channels == ("NO2", "C2H5OH", "VOC", "CO", "Alcohol", "LPG", "Benzene")
    assert fleet.schema.classes == ("nut", "spice", "herb", "fruit", "vegetable")
    foods = {
        device: Counter(part.name.partition("-")[2] for part in parts) for device, parts in recordings.items()
    }
    assert foods["stall3-nose0"] == foods["stall3-nose1"]
    stalls = [foods[f"stall{stall}-nose0"] for stall in range(5)]
    assert len(set().union(*stalls)) == 50, "no food at two stalls"
    assert all(set(stall.values()) == {3} for stall in stalls)
    with np.load(DATA / "smellnet_gas" / "smellnet_gas.npz") as data:
        usable = ~np.isnan(data["x"]).any(1)
        last = int(np.flatnonzero((data["substance"] == "tomato") & (data["split"] == "offline_testing"))[0])
        expected = data["x"][data["offsets"][last] : data["offsets"][last + 1], :3]
    assert rows(recordings) == usable.sum()
    for device, parts in recordings.items():
        kinds = {0, 1, 2} if device == "online" else {0, 1, 2, 3, 4}
        assert {label for part in parts for label in part.labels.tolist()} == kinds
        assert min(part.samples.min() for part in parts) == -1, "Benzene below zero"
        assert max(part.samples.max() for part in parts) < 2**16, "no count is wrapped round"
    division = divide(recordings["stall4-nose1"], fleet.split)
    assert len(division.test) == 10
    assert {part.name[0] for part in division.test} == {"5"}
    tomato = next(part for part in division.test if part.name == "5-tomato.csv")
    assert np.array_equal(tomato.samples[:, :3], expected), "the source's test recordings are test data"


@pytest.mark.data
def test_a_persons_microphones_have_takes_of_their_own(tmp_path: Path) -> None:
    fleet, recordings = imported("fsdd_audio", tmp_path / "fleet")
    assert (len(fleet.devices), len(fleet.of_role("source"))) == (12, 4)
    assert {device.domain for device in fleet.of_role("source")} == {"george", "jackson"}
    assert fleet.schema.input_shape(fleet.window) == (24, 64)
    assert rows(recordings) == 3_000 * 64
    clips = [
        part.samples[start : start + 64].tobytes()
        for parts in recordings.values()
        for part in parts
        for start in range(0, len(part.labels), 64)
    ]
    assert len(set(clips)) == 3_000, "no take is on two devices"
    for parts in recordings.values():
        assert [part.labels[0] for part in parts] == list(range(10))
        division = divide(parts, fleet.split)
        assert {len(part.labels) for part in division.test} == {5 * 64}, "the split falls between takes"
        assert {len(part.labels) for part in division.development} == {20 * 64}


def test_an_unknown_data_set_is_refused_with_the_known_names(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"expected one of fsdd_audio, gearbox_vibration, hydraulic_rig, meter_digits"
    ):
        import_dataset("mnist", tmp_path, tmp_path / "fleet")


@pytest.mark.parametrize("name", sorted(IMPORTERS))
def test_a_folder_without_the_data_names_the_missing_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(DataError, match=rf"data set '{name}': expected the file .*source.*, found none"):
        import_dataset(name, tmp_path / "source", tmp_path / "fleet")


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected its folder at .*nowhere, found none"):
        import_dataset("sp_sw_har", tmp_path / "nowhere", tmp_path / "fleet")


def test_a_target_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(DataError, match=r"expected a folder that is empty or does not exist"):
        import_dataset("sp_sw_har", tmp_path, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["kept.txt"]


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    np.savez(tmp_path / "source" / "sp_sw_har.npz", other=np.zeros(3))
    with pytest.raises(DataError, match="does not hold the expected data"):
        import_dataset("sp_sw_har", tmp_path / "source", tmp_path / "fleet")
    (tmp_path / "source" / "gearbox_vibration.npz").write_bytes(b"not an archive")
    with pytest.raises(DataError, match="does not hold the expected data"):
        import_dataset("gearbox_vibration", tmp_path / "source", tmp_path / "fleet")
