"""Fleet directories: good recordings survive bad neighbours, and what is written is read back."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from protocol.errors import DataError
from protocol.fleet import Device, FleetDescription
from protocol.input_schema import InputSchema, WindowSpec
from protocol.recording import Recording, parse
from simulation.recordings import read_device, read_fleet, write_fleet_description, write_recording

SCHEMA = InputSchema("timeseries", ("x", "flow, l/s"), 10.0, ("idle", 'on, "full"'))
PUMP = Device("pump-1", "pump", "edge")
FLEET = FleetDescription(SCHEMA, WindowSpec(2, 2), (PUMP,))
GOOD = Recording("good.csv", np.ones((4, 2), np.float32), np.array([0, 1, -1, 1]))


def test_one_bad_recording_leaves_the_good_ones(tmp_path: Path) -> None:
    write_fleet_description(tmp_path, FLEET)
    folder = tmp_path / "pump-1"
    folder.mkdir()
    write_recording(folder / "good.csv", GOOD, SCHEMA)
    (folder / "bad.csv").write_text('x,"flow, l/s"\n1,oops\n')
    (folder / "notes.txt").write_text("not a recording")
    found = read_device(tmp_path, read_fleet(tmp_path), PUMP)
    assert [recording.name for recording in found.recordings] == ["good.csv"]
    [error] = found.errors
    assert str(error).startswith(
        "device 'pump-1': bad.csv: line 2: column 'flow, l/s': expected a finite number"
    )


def test_a_device_without_a_good_recording_is_reported(tmp_path: Path) -> None:
    [missing] = read_device(tmp_path, FLEET, PUMP).errors
    assert "device 'pump-1': expected recordings" in str(missing)
    assert "the folder is missing" in str(missing)
    (tmp_path / "pump-1").mkdir()
    (tmp_path / "pump-1" / "empty.csv").write_bytes(b"")
    found = read_device(tmp_path, FLEET, PUMP)
    assert found.recordings == ()
    assert "empty.csv: line 1" in str(found.errors[0])
    assert "none of them good" in str(found.errors[1])


def test_two_recordings_of_one_stem_are_not_mixed_up(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "pump-1").mkdir()
    for name in ("good.csv", "good.parquet"):
        write_recording(tmp_path / "pump-1" / name, GOOD, SCHEMA)
    found = read_device(tmp_path, FLEET, PUMP)
    assert len(found.recordings) == 1
    assert "good.parquet: expected one recording 'good', good.csv is there as well" in str(found.errors[0])


def test_a_directory_without_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fleet\.toml: expected a readable fleet description"):
        read_fleet(tmp_path)


def test_a_description_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(DataError, match=r"fleet\.toml: expected text in UTF-8"):
        read_fleet(tmp_path)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@given(data=st.data())
def test_a_written_recording_is_read_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    pytest.importorskip("pyarrow")
    rows = data.draw(st.integers(1, 30))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    samples = data.draw(arrays.arrays(np.float32, (rows, 2), elements=finite))
    labels = data.draw(arrays.arrays(np.int64, rows, elements=st.integers(-1, 1)))
    path = tmp_path_factory.mktemp("spool") / f"r.{suffix}"
    write_recording(path, Recording("r", samples, labels), SCHEMA)
    with path.open("rb") as stream:
        again = parse(stream, path.name, SCHEMA)
    assert again.samples.tobytes() == samples.tobytes()
    assert again.labels.tolist() == labels.tolist()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
