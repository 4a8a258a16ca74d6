"""Folders of pictures: which label, which order, and what does not belong there."""

from pathlib import Path

import pytest

from protocol.errors import DataError
from runtime.pictures import PictureFile, pictures_in, read_picture
from tests.pictures import SCHEMA, shade


def test_the_folder_is_the_label_and_the_name_is_the_time(tmp_path: Path) -> None:
    for name in ("dark/0002.png", "bright/0003.jpg", "0001.PNG", "unlabelled/0004.jpeg", "dark/0003.jpg"):
        shade(tmp_path / name, 100)
    found, errors = pictures_in(tmp_path, SCHEMA)
    assert [(file.name, file.label) for file in found] == [
        ("0001.PNG", -1),
        ("dark/0002.png", 1),
        ("bright/0003.jpg", 0),
        ("dark/0003.jpg", 1),
        ("unlabelled/0004.jpeg", -1),
    ]
    assert errors == []


def test_what_is_no_finished_picture_is_passed_over(tmp_path: Path) -> None:
    shade(tmp_path / "dark" / "a.png", 1)
    shade(tmp_path / "dark" / ".b.png", 1)
    shade(tmp_path / ".thumbnails" / "c.png", 1)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "dark" / "folder.png").mkdir()
    (tmp_path / "logs").mkdir()
    found, errors = pictures_in(tmp_path, SCHEMA)
    assert [file.name for file in found] == ["dark/a.png"]
    assert errors == []


def test_pictures_of_an_unknown_class_are_named_and_left_out(tmp_path: Path) -> None:
    shade(tmp_path / "drak" / "a.png", 1)
    shade(tmp_path / "dark" / "a.png", 1)
    found, errors = pictures_in(tmp_path, SCHEMA)
    assert [file.name for file in found] == ["dark/a.png"]
    assert "folder 'drak': expected the name of a class (bright, dark) or unlabelled" in str(errors[0])


def test_a_picture_that_vanished_is_a_data_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^dark/a\.png: not readable: No such file"):
        read_picture(PictureFile(tmp_path / "a.png", "dark/a.png", 1), SCHEMA)
