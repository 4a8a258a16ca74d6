"""Image fleets in the simulator: splits by time, the label budget, and files copied as they are."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from protocol.fleet import Split
from protocol.input_schema import ONE_PICTURE
from runtime.pictures import PictureFile, pictures_in, read_picture
from simulation.errors import SimulationError
from simulation.experiment import Settings, prepare
from simulation.pictures import copy_pictures, read_device_pictures
from simulation.recordings import read_fleet
from simulation.splits import divide_pictures, keep_picture_labels
from tests.pictures import SCHEMA, shade, write_fleet


def files(labels: list[int]) -> list[PictureFile]:
    return [PictureFile(Path(f"{i:03d}.png"), f"{i:03d}.png", label) for i, label in enumerate(labels)]


def test_the_last_pictures_of_every_label_are_test() -> None:
    pictures = files([0, 1] * 10 + [-1] * 5)
    division = divide_pictures(pictures, Split("time", 0.2))
    assert [file.name for file in division.test] == ["016.png", "017.png", "018.png", "019.png", "024.png"]
    assert sorted([*division.development, *division.test], key=lambda file: file.name) == pictures


def test_the_budget_is_exact_and_the_same_for_the_same_seed() -> None:
    pictures = files([0, 1, 1, -1] * 10 + [0])
    kept = keep_picture_labels(pictures, SCHEMA, 3, seed=1)
    assert Counter(file.label for file in kept) == {0: 3, 1: 3, -1: 35}
    assert kept == keep_picture_labels(pictures, SCHEMA, 3, seed=1)
    assert kept != keep_picture_labels(pictures, SCHEMA, 3, seed=2)
    assert [file.path for file in kept] == [file.path for file in pictures]
    assert keep_picture_labels(pictures, SCHEMA, None, seed=1) == pictures


def test_copies_are_byte_for_byte_and_none_overwrites_another(tmp_path: Path) -> None:
    for name, level in (("dark/1.png", 10), ("bright/1.png", 20), ("bright/2.png", 30)):
        shade(tmp_path / "from" / name, level)
    found, _ = pictures_in(tmp_path / "from", SCHEMA)
    unlabelled = [PictureFile(file.path, file.name, -1) for file in found]
    copy_pictures([*found[:1], *unlabelled], tmp_path / "to", SCHEMA)
    copies, _ = pictures_in(tmp_path / "to", SCHEMA)
    assert sorted(file.name for file in copies) == [
        "bright/1.png",
        "unlabelled/1.2.png",
        "unlabelled/1.png",
        "unlabelled/2.png",
    ]
    originals = Counter(file.path.read_bytes() for file in [found[0], *found])
    assert Counter(file.path.read_bytes() for file in copies) == originals


def test_a_bad_picture_costs_only_itself(tmp_path: Path) -> None:
    fleet = read_fleet(write_fleet(tmp_path, pictures=3))
    (tmp_path / "edge0" / "dark" / "bad.png").write_bytes(b"broken")
    shade(tmp_path / "edge0" / "other" / "1.png", 1)
    found = read_device_pictures(tmp_path, fleet, fleet.of_role("edge")[0])
    assert len(found.pictures) == 6
    messages = [str(error) for error in found.errors]
    assert messages[0].startswith(
        "device 'edge0': folder 'other': expected the name of a class (bright, dark)"
    )
    assert messages[1].startswith("device 'edge0': dark/bad.png: expected a readable JPEG or PNG picture")


def test_a_device_without_pictures_stays_out_and_says_why(tmp_path: Path) -> None:
    fleet_dir = write_fleet(tmp_path / "fleet", pictures=6, edges=3)
    (fleet_dir / "edge1").rename(tmp_path / "elsewhere")
    for file in (fleet_dir / "edge2").rglob("*.png"):
        file.write_bytes(b"broken")
    experiment = prepare(tmp_path / "run", fleet_dir, Settings(labels_per_class=2))
    assert [participant.device.id for participant in experiment.participants] == ["edge0"]
    assert any(
        "'edge1': expected pictures" in p and "the folder is missing" in p for p in experiment.problems
    )
    assert any("'edge2': expected pictures" in p and "none of them good" in p for p in experiment.problems)
    assert not (tmp_path / "run" / "devices" / "edge2").exists()


def test_unlabelled_pictures_alone_are_nothing_to_train_on(tmp_path: Path) -> None:
    fleet_dir = write_fleet(tmp_path / "fleet", pictures=3)
    for file in list((fleet_dir / "edge0").rglob("*.png")):
        file.rename(fleet_dir / "edge0" / f"{file.parent.name}-{file.name}")
    with pytest.raises(SimulationError, match="'edge0': expected labelled pictures to train on, found none"):
        prepare(tmp_path / "run", fleet_dir, Settings())


def test_no_test_picture_is_on_the_device(tmp_path: Path) -> None:
    fleet_dir = write_fleet(tmp_path / "fleet", pictures=10)
    experiment = prepare(tmp_path / "run", fleet_dir, Settings(labels_per_class=3))
    [participant] = experiment.participants
    schema = experiment.fleet.schema
    spool, errors = pictures_in(participant.directory / "spool", schema)
    assert errors == []
    assert Counter(file.label for file in spool) == {0: 3, 1: 3, -1: 10}
    assert (participant.development_windows, participant.labelled_windows) == (16, 6)
    x, y = experiment.test_set("edge0")
    assert x.shape == (4, *schema.input_shape(ONE_PICTURE))
    assert Counter(y.tolist()) == {0: 2, 1: 2}
    on_device = {read_picture(file, schema).tobytes() for file in spool}
    assert len(on_device) == 16
    assert on_device.isdisjoint({picture.tobytes() for picture in np.ascontiguousarray(x)})
